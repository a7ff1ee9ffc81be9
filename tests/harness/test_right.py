"""Right variants of the zoo pass, and so do changes that no input can tell."""

import numpy as np
import pytest

from stepcheck import check_optimizer
from stepcheck.harness.generate import decoder, page
from stepcheck.harness.play import Player
from stepcheck.harness.subjects import class_subject
from stepcheck.harness.zoo.equivalent import EQUIVALENT
from stepcheck.harness.zoo.right import VARIANTS
from stepcheck.reference import SPECS

LIVES = 40
# Fewer of these: their steps evaluate a closure, multiply matrices, or look at all elements for each.
COSTLY = {"LBFGS": 20, "Muon": 20, "Adafactor": 20}


# Rightly computed in orders that the reference does not name: rare lives, in which an intermediate result leaves the format in
# one order and not in another, are false alarms.
ALARMS = {
    "right.ScaledEpsAdam": "a product that underflows is divided by eps times the root of the correction",
    "right.QuotientAdafactor": "the product of rows and columns overflows, their quotient by the mean does not",
    "right.WideAdafactor": "the product of rows and columns overflows, but not in float64",
}


def _named(cases):
    marks = {name: pytest.mark.xfail(reason=reason, strict=False) for name, reason in ALARMS.items()}
    return [pytest.param(case, id=case.name, marks=marks.get(case.name, ())) for case in cases]


def _bits(x):
    """Of a value, with the sign of zero; those of a NaN are nobody's promise (IEEE 754, 6.2.3 and 6.3)."""
    x = np.asarray(x)
    return x.shape, np.where(np.isnan(x), np.nan, x).tobytes()


def _passes(case, tmp_path, dtypes=(), **declared):
    examples = COSTLY.get(case.like, LIVES)
    report = check_optimizer(case.make, case.like, examples=examples, dtypes=dtypes, out=tmp_path, **declared)
    report.raise_on_divergence()
    assert report.verdict == "pass"


@pytest.mark.parametrize("variant", _named(VARIANTS))
def test_a_right_variant_passes(variant, tmp_path):
    """However it computes, in float32 and float64."""
    _passes(variant, tmp_path, profile=variant.profile)


@pytest.mark.parametrize(
    ("variant", "dtype"), [pytest.param(v, d, id=f"{v.name}-{d}") for v in VARIANTS for d in v.dtypes]
)
def test_a_right_variant_passes_in_narrow_dtypes(variant, dtype, tmp_path):
    """Beside float32, which a gradient scaler needs to find something to look at."""
    _passes(variant, tmp_path, dtypes=("float32", dtype), profile=variant.profile)


@pytest.mark.parametrize("fault", _named(EQUIVALENT))
def test_a_change_that_nobody_can_tell_passes(fault, tmp_path):
    """It is argued in a line why it is none."""
    assert fault.equivalent
    _passes(fault, tmp_path)


@pytest.mark.parametrize("fault", _named(EQUIVALENT))
def test_a_change_that_nobody_can_tell_changes_no_bit(fault):
    """In lives with infinities, NaN and zeros of both signs, it does what the right optimizer does that it was made from."""
    changed, right = (class_subject(make, fault.like) for make in (fault.make, fault.make.__mro__[1]))
    decode = decoder(right, ("float32", "float64"))
    for trace in map(decode, page(b"equivalent")[: COSTLY.get(fault.like, LIVES)]):
        ours, theirs = Player(changed, trace).play(), Player(right, trace).play()
        assert ours.raised is theirs.raised is None
        for a, b in zip(ours.steps, theirs.steps, strict=True):
            for after, before in zip(a.lives, b.lives, strict=True):
                assert _bits(after.value_after) == _bits(before.value_after)
                states = ({k: _bits(v) for k, v in life.state_after.items()} for life in (after, before))
                assert next(states) == next(states)


def test_every_optimizer_has_a_right_variant():
    """All of torch.optim are covered, and by no fewer variants than are promised."""
    assert {v.like for v in VARIANTS} == set(SPECS)
    assert len(VARIANTS) >= 24
    assert len(EQUIVALENT) >= 10


def test_variants_and_equivalent_changes_are_told():
    """Each says in one line how it computes, or what is changed, under a name of its own."""
    everything = (*VARIANTS, *EQUIVALENT)
    assert all(case.told for case in everything)
    assert len({case.name for case in everything}) == len(everything)
