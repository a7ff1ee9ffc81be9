"""torch.optim on CPU: what conforms, and each way in which it does not. A change in either direction is noticed."""

import warnings

import pytest
import torch

from stepcheck.harness.known.entry import shows
from stepcheck.harness.known.ledger import LEDGER
from stepcheck.harness.play.families import resolve
from stepcheck.harness.search import workers
from stepcheck.harness.search.asking import findings
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.telling.repro import script

#: Seen at this seed and number of examples; the others need luck.
CERTAIN = {
    "torch:Adam[fused]": {"fused-cpu-ignores-strides"},
    "torch:Adagrad[foreach]": {"adagrad-ignores-group-initial-accumulator"},
    "torch:SGD[fused]": {"fused-cpu-ignores-strides", "fused-sgd-never-stores-narrow-vectors"},
    "torch:NAdam[forloop]": {"load-state-dict-casts-scalars"},
    "torch:Muon[forloop]": {"muon-normalizes-its-bfloat16-momentum"},
}
SUBJECTS = [s for s in resolve("torch") if not s.unsupported and s.cost < 10]
each_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.name)


def of_entries(entries):
    """Each entry of the ledger; those whose subject is costly are slow."""
    costly = pytest.mark.slow
    subjects = {e.name: e.subject for e in entries}
    return pytest.mark.parametrize(
        "entry", [pytest.param(e, id=e.name, marks=[costly] if subjects[e.name].cost >= 10 else []) for e in entries]
    )


each_entry = of_entries(LEDGER.values())


@pytest.mark.slow  # `nox -s check` says the same of another seed, and check_short of fewer lives
@each_subject
def test_divergences_are_the_known_ones(subject):
    result = Campaign(subject, Settings(examples=150, seed=1)).run()
    assert not result.error
    assert all(t.ran or t.verdict == "unsupported" for t in result.tallies.values())
    assert not [(d.check, d.cause, d.summary, d.life) for d in result.divergences]
    assert result.verdict == "known"
    assert CERTAIN.get(subject.name, set()) <= {d.entry for d in result.known} == set(result.known_lives)


def one_of_each():
    """Every subject in its turn; on a commit one of each optimizer, now in this mode and now in that."""
    modes = {}
    for subject in SUBJECTS:
        if "fused" not in subject.mode_options:
            modes.setdefault(subject.spec.name, []).append(subject)
    for n, alike in enumerate(modes.values()):
        for k, subject in enumerate(alike):
            yield pytest.param(subject, id=subject.name, marks=() if k == n % len(alike) else pytest.mark.slow)


@pytest.mark.parametrize("subject", list(one_of_each()))
def test_the_float32_budget_is_never_exceeded_and_nearly_used_up(subject):
    # What diverges in float32 lies in sparse gradients on views, in lost bits or in the constructor.
    result = Campaign(subject, Settings(examples=60, dtypes=("float32",), only=("agreement",))).run()
    assert not result.divergences
    assert 0.8 < max(result.worst.values()) <= 1


@each_entry
def test_every_entry_is_shown_by_its_own_life(entry):
    subject = entry.subject
    if subject.unsupported:
        pytest.skip(subject.unsupported)
    assert shows(subject, entry) == ""


@each_entry
def test_every_entry_is_shown_by_a_script_without_stepcheck(entry):
    subject = entry.subject
    if subject.unsupported:
        pytest.skip(subject.unsupported)
    found = findings(subject, entry.saved.trace, entry.saved.check)
    text = script(subject, entry.saved.trace, next(f for f, known in found if known is entry))
    assert "import stepcheck" not in text
    assert "from stepcheck" not in text
    said = workers.in_child(lambda: _said(text), 120)
    # What is raised by torch is named in a comment of the script; what is wrong is an assertion.
    kind = said.partition(":")[0]
    assert kind == "AssertionError" or (entry.saved.check == "completes" and f" raises {kind}: " in text), said


def _said(text):
    """What a script raises. A fresh interpreter would spend seconds on importing torch, for each entry."""
    torch.set_num_threads(1)  # its threads did not come along into this process
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # outside of pytest they are no errors
        try:
            exec(compile(text, "script", "exec"), {"__name__": "__main__"})
        except Exception as error:  # noqa: BLE001 - whatever it raises is what it says
            return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("subject", [s for s in resolve("torch") if s.unsupported], ids=lambda s: s.name)
def test_what_is_unsupported_says_why(subject):
    result = Campaign(subject, Settings(examples=1)).run()
    assert result.verdict == "unsupported"
    assert any(note.startswith("unsupported: ") for note in result.notes)
