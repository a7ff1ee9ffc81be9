"""Which checks say no of a class: the lives of a campaign, with nothing made smaller and nothing told."""

from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import DEFAULT_EXAMPLES, Settings


def accused(make, like, *, until=(), **settings):
    """The checks that say no, and the result. The first life in which one of ``until`` does is the last one."""
    campaign = Campaign(class_subject(make, like), Settings(**{"examples": DEFAULT_EXAMPLES} | settings))
    campaign._shrink_new = campaign.suspects.sort_effective
    ended = campaign._ended

    def said_no():
        return {check for check, _ in campaign.suspects.ready}

    campaign._ended = lambda **how: ended(**how) or not said_no().isdisjoint(until)
    result = campaign.run()
    assert not result.error, result.error
    return said_no(), result
