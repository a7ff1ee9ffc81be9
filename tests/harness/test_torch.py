"""torch.optim 2.13 on CPU: what conforms, and each way in which it does not. A change in either direction is noticed."""

import subprocess
import sys

import pytest

from stepcheck.harness.campaign import Campaign, Settings, findings, shows
from stepcheck.harness.ledger import LEDGER
from stepcheck.harness.repro import script
from stepcheck.harness.subjects import resolve

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


@each_subject
def test_divergences_are_the_known_ones(subject):
    result = Campaign(subject, Settings(examples=150, seed=1)).run()
    assert not result.error
    assert all(t.ran or t.verdict == "unsupported" for t in result.tallies.values())
    assert not [(d.check, d.cause, d.summary, d.life) for d in result.divergences]
    assert result.verdict == "pass"
    assert CERTAIN.get(subject.name, set()) <= {d.entry for d in result.known} == set(result.known_lives)


@pytest.mark.parametrize("subject", [s for s in SUBJECTS if "fused" not in s.mode_options], ids=lambda s: s.name)
def test_the_float32_budget_is_never_exceeded_and_nearly_used_up(subject):
    # What diverges in float32 lies in sparse gradients on views, in lost bits or in the constructor.
    result = Campaign(subject, Settings(examples=100, dtypes=("float32",), only=("agreement",))).run()
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
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    # What is raised by torch is named in a comment of the script; what is wrong is an assertion.
    asserted = any(line.startswith("AssertionError") for line in done.stderr.splitlines())
    kind = done.stderr.strip().splitlines()[-1].partition(":")[0]
    assert asserted or (entry.saved.check == "completes" and f"# {kind.rpartition('.')[2]} in " in text)


@pytest.mark.parametrize("subject", [s for s in resolve("torch") if s.unsupported], ids=lambda s: s.name)
def test_what_is_unsupported_says_why(subject):
    result = Campaign(subject, Settings(examples=1)).run()
    assert result.verdict == "unsupported"
    assert any(note.startswith("unsupported: ") for note in result.notes)
