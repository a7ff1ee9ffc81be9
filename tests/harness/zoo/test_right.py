"""Right variants of the zoo pass, and so do changes that no input can tell."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stepcheck import check_optimizer
from stepcheck.harness.judging.judge import judge
from stepcheck.harness.life.events import Gradient, Group, Parameter, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.power.kill import first_kill
from stepcheck.harness.search.generate import decoder, page
from stepcheck.harness.zoo import right
from stepcheck.harness.zoo.equivalent import EQUIVALENT
from stepcheck.harness.zoo.right import VARIANTS
from stepcheck.reference import SPECS

LIVES = 40
# Fewer of these: their steps evaluate a closure, multiply matrices, or look at all elements for each.
COSTLY = {"LBFGS": 20, "Muon": 20, "Adafactor": 20}


def _named(cases):
    return [pytest.param(case, id=case.name) for case in cases]


def _bits(x):
    """Of a value, with the sign of zero; those of a NaN are nobody's promise (IEEE 754, 6.2.3 and 6.3)."""
    x = np.asarray(x)
    return x.shape, np.where(np.isnan(x), np.nan, x).tobytes()


def _passes(case, tmp_path, dtypes=(), **declared):
    examples = COSTLY.get(case.like, LIVES)
    report = check_optimizer(case.make, case.like, examples=examples, dtypes=dtypes, out=tmp_path, **declared)
    report.raise_on_divergence()
    assert report.verdict == "pass"


@pytest.mark.sampled(20)
@pytest.mark.parametrize("variant", _named(VARIANTS))
def test_a_right_variant_passes(variant, tmp_path):
    """However it computes, in float32 and float64."""
    _passes(variant, tmp_path, profile=variant.profile)


@pytest.mark.sampled(20)
@pytest.mark.parametrize(
    ("variant", "dtype"), [pytest.param(v, d, id=f"{v.name}-{d}") for v in VARIANTS for d in v.dtypes]
)
def test_a_right_variant_passes_in_narrow_dtypes(variant, dtype, tmp_path):
    """Beside float32, which a gradient scaler needs to find something to look at."""
    _passes(variant, tmp_path, dtypes=("float32", dtype), profile=variant.profile)


@pytest.mark.sampled(20)
@pytest.mark.parametrize("fault", _named(EQUIVALENT))
def test_a_change_that_nobody_can_tell_passes(fault, tmp_path):
    """It is argued in a line why it is none."""
    assert fault.equivalent
    _passes(fault, tmp_path)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("fault", _named(EQUIVALENT))
def test_a_change_that_nobody_can_tell_changes_no_bit(fault):
    """In lives with infinities, NaN and zeros of both signs, it does what the right optimizer does that it was made from."""
    changed, right = (class_subject(make, fault.like) for make in (fault.make, fault.make.__mro__[1]))
    decode = decoder(right, ("float32", "float64"))
    for trace in map(decode, page(b"equivalent")[: COSTLY.get(fault.like, LIVES)]):
        ours, theirs = Player(changed, trace).play(), Player(right, trace).play()
        assert ours.raised is theirs.raised is None
        for a, b in zip(ours.steps, theirs.steps, strict=True):
            for after, before in zip(a.parameters, b.parameters, strict=True):
                assert _bits(after.value_after) == _bits(before.value_after)
                states = ({k: _bits(v) for k, v in parameter.state_after.items()} for parameter in (after, before))
                assert next(states) == next(states)


def _deviations(variant, profile, start, *gradients, **options):
    """What deviates in a life of one float32 parameter, full of one number, with gradients that are lists."""
    shape = {2: (2,), 4: (2, 2)}[len(gradients[0])]
    parameter = Parameter(shape, "float32", "contiguous", Values("constant", high=start))
    events = tuple(Step({0: Gradient(Values("listed", listed=g))}) for g in gradients)
    trace = Trace(variant.like, (parameter,), (Group((0,), options),), events)
    subject = class_subject(variant.make, variant.like, profile=profile)
    return {d.field for d in judge(subject, Player(subject, trace).play()).deviations}


#: Lives in which a result on the way leaves the format in the written order, and not in that of the variant; or the other way round.
EDGES = {
    # Divided by eps times the root of the correction, not by eps, a subnormal number of the numerator is 30 times as much.
    right.ScaledEpsAdam: (0.0, [(1.7e-37,) * 2], {"lr": 1e-6, "eps": 0.1}),
    right.ScaledEpsNAdam: (0.0, [(1.7e-37,) * 2], {"lr": 1e-6, "eps": 0.1}),
    # The rows times the columns are 1e48.
    right.QuotientAdafactor: (1.0, [(1e12,) * 4], {}),
    # Columns of 1e-10, divided by the mean of rows of 5e37, are 0; their product with a row is none.
    right.ColumnAdafactor: (1.0, [(1e19, 1e-5) * 2], {}),
    # The square is 9e38, and 0.33 of it an ordinary number.
    right.AddcmulAdafactor: (1.0, [(1e18,) * 2] * 3 + [(3e19,) * 2], {}),
}


@pytest.mark.parametrize("variant", _named([v for v in VARIANTS if v.make in EDGES]))
def test_what_leaves_the_format_in_one_order_alone_is_no_deviation(variant):
    start, gradients, options = EDGES[variant.make]
    assert _deviations(variant, variant.profile, start, *gradients, **options) == set()


def test_what_overflows_in_float32_alone_is_right_in_a_wider_format_that_is_declared():
    """The penalty is 1e39; its quotient by an infinite root is 0 in float64, where infinity over infinity is NaN."""
    (variant,) = (v for v in VARIANTS if v.make is right.WideAdagrad)
    assert _deviations(variant, variant.profile, 1e38, (0.0, 0.0), weight_decay=10.0) == set()
    undeclared = replace(variant.profile, wider=False, regroups=False)
    assert _deviations(variant, undeclared, 1e38, (0.0, 0.0), weight_decay=10.0) == {"parameter"}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("variant", _named([v for v in VARIANTS if v.profile.scalars == "float32"]))
def test_scalars_in_single_precision_are_right_where_they_are_declared(variant):
    """Undeclared, they are a fault: float64 parameters show it at once."""
    undeclared = replace(variant.profile, scalars="float64", counters="float64")
    assert first_kill(variant.make, variant.like, 0, 40, undeclared).caught
    assert not first_kill(variant.make, variant.like, 0, 40, variant.profile).caught


def test_scalars_in_single_precision_excuse_no_other_fault():
    """A learning rate that is off by as much as half precision rounds is told from one in single precision."""

    class HalfAdam(right.SingleAdam):
        def update(self, p, g, state, group):
            super().update(p, g, state, {**group, "lr": float(np.float16(group["lr"]))})

    (single,) = (v.profile for v in VARIANTS if v.make is right.SingleAdam)
    assert first_kill(HalfAdam, "Adam", 0, 40, single).checks == ("agreement",)


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


def _takes_few_options(params, lr=1e-3, weight_decay=0.0):
    return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, foreach=False)


def test_a_factory_that_takes_fewer_options_than_its_optimizer_has_is_right(tmp_path):
    """A schedule that would cycle what the factory does not take cycles the learning rate alone."""
    check_optimizer(_takes_few_options, "AdamW", examples=LIVES, out=tmp_path).raise_on_divergence()
