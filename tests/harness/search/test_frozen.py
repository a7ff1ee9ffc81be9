"""What no change of structure may change: the lives that a seed draws, and traces that were saved long ago.

``python tests/harness/search/test_frozen.py`` writes the digests anew. A commit that needs it does that alone, and says why.
"""

import hashlib
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch

from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.families import FAMILIES, resolve
from stepcheck.harness.record.store import KNOWN_FOLDER
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.generate import decoder
from stepcheck.harness.search.settings import Settings

FILE = Path(__file__).parents[2] / "frozen" / "traces.json"
FROZEN = json.loads(FILE.read_text())
SEEDS, LIVES = (0, 1), 200
SUBJECTS = {s.name: s for family in FAMILIES for s in resolve(family)}

#: What a subject takes, and so what is drawn for it, differs from version to version of torch.
of_this_torch = pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="the digests are of torch 2.13")


def digest(subject, seed):
    """A digest of the first lives that a campaign of this seed would play."""
    campaign = Campaign(subject, Settings(seed=seed, examples=LIVES))
    campaign.decode = decoder(subject, campaign.dtypes)
    drawn = itertools.islice(campaign._draw(0, LIVES), LIVES)
    text = "".join(json.dumps(campaign.steering.choose(candidates).to_json()) for candidates in drawn)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digests(subject):
    return [digest(subject, seed) for seed in SEEDS]


@of_this_torch
@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", FROZEN)
@pytest.mark.parametrize("seed", [SEEDS[0], *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[1:])])
def test_a_seed_draws_the_lives_that_it_has_always_drawn(name, seed):
    assert digest(SUBJECTS[name], seed) == FROZEN[name][SEEDS.index(seed)]


@pytest.mark.parametrize("file", sorted(KNOWN_FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_a_trace_that_was_saved_is_read_and_written_as_it_stands(file):
    saved = json.loads(file.read_text())
    trace = saved["trace"]
    assert json.dumps(Trace.from_json(trace).to_json()) == json.dumps(trace)


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: digests(s) for name, s in SUBJECTS.items()}, indent=0) + "\n")
    sys.stdout.write(f"{len(SUBJECTS)} subjects\n")
