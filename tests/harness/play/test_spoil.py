"""Malformed state: who takes it for something else is found, and nobody who refuses it, steps as it means, or does not look at it."""

import pytest
import torch

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.known import ledger
from stepcheck.harness.life.events import SPOILING_WAYS, SPOILINGS, Gradient, Group, Parameter, Reload, Spoil, Step
from stepcheck.harness.life.memory import GUARD
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play import spoil
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.zoo import life
from stepcheck.harness.zoo.adam import RightAdam
from stepcheck.harness.zoo.right import VARIANTS
from stepcheck.harness.zoo.sgd import RightSGD

QUARTERS = Values("quarters", 1, high=2.0)
GO = Step({0: Gradient(QUARTERS), 1: Gradient(QUARTERS)})
MATRIX, VECTOR = (Parameter(shape, values=QUARTERS) for shape in ((4, 3), (6,)))
#: Options that make each optimizer of that name keep all the state that it can.
OPTIONS = {"SGD": {"momentum": 0.5}, "RMSprop": {"momentum": 0.5, "centered": True}, "Adam": {"amsgrad": True}}


def evidence(subject, *events, parameters=(MATRIX, VECTOR)):
    name = subject.spec.name
    parameters = tuple(p for p in parameters if subject.spec.shapes(p.shape))
    trace = Trace(name, parameters, (Group(tuple(range(len(parameters))), OPTIONS.get(name, {})),), events)
    assert trace.problem(subject.spec) is None
    return Evidence(subject, trace)


def told(subject, *events, **more):
    played = evidence(subject, *events, **more)
    assert played.recording.raised is None
    return list(CHECKS["malformed-state"].find(played))


def of_class(cls, like="Adam"):
    return class_subject(cls, like)


#: Each wrong one, what it takes wrongly, and how that is told.
WRONG = {
    life.RepeatsState: {"of half the elements": "another number of elements", "a row short": "another number of elements"},
    life.FillsState: {"of half the elements": "another number of elements", "a row short": "another number of elements"},
    life.ReadsBehindState: {"of half the elements": "memory beside", "empty": "memory beside", "column-major": "another layout"},
    life.WritesBehindState: {"a row short": "memory beside", "strided": "memory beside", "column-major": "another layout"},
}  # fmt: skip


@pytest.mark.parametrize("way", SPOILING_WAYS)
@pytest.mark.parametrize(
    ("fault", "how", "cause"),
    [(fault, how, cause) for fault, causes in WRONG.items() for how, cause in causes.items()],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_who_takes_malformed_state_for_something_else_is_found(fault, how, cause, way):
    for right, like in ((RightAdam, "Adam"), (RightSGD, "SGD")):
        (finding,) = told(of_class(life.on(right, fault), like), Spoil(how, way))
        assert finding.cause == cause
        assert not told(of_class(right, like), Spoil(how, way))


class BeginsAnew(RightAdam):
    """Makes state anew that does not fit, with other numbers than at first: whose they are is not asked."""

    def visit(self, p, group):
        state = self.state[p]
        for name in self.buffers(group) if state else ():
            if state[name].shape != p.shape or not state[name].is_contiguous():
                state[name] = torch.full_like(p, 0.125)
        super().visit(p, group)


class LooksLater(RightAdam):
    """Looks at its state at the fourth step alone, and raises there."""

    def update(self, p, g, state, group):
        if state["step"] == 4:
            return super().update(p, g, state, group)
        return p - group["lr"] * g


class WritesOut(RightAdam):
    """Writes its state as ``out=``, so that torch gives a smaller tensor the memory that it needs."""

    def update(self, p, g, state, group):
        v = state["exp_avg_sq"]
        torch.add(group["betas"][1] * v, (1 - group["betas"][1]) * g * g, out=v)
        return p - group["lr"] * g / (v.sqrt() + group["eps"])


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("cls", [RightAdam, BeginsAnew, LooksLater, WritesOut], ids=lambda cls: cls.__name__)
def test_who_refuses_or_begins_anew_or_does_not_look_is_not(cls):
    events = [Spoil(how, way, 0, n) for how in SPOILINGS for way in SPOILING_WAYS for n in range(2)]
    assert not told(of_class(cls), *events)


FAMILIES = [
    subject
    for family in ("torch", "fast")
    for subject in resolve(family)
    if subject.mode in ("forloop", "foreach", "fast", "") and not subject.spec.closure and "triton" not in subject.name
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("subject", FAMILIES, ids=lambda subject: subject.name)
def test_no_class_of_torch_or_fast_takes_it_for_something_else(subject):
    events = [
        Spoil(how, way, number, n) for how in SPOILINGS for way in SPOILING_WAYS for number, n in ((0, 0), (0, 1))
    ]
    vector = Parameter((6,), "float64", values=QUARTERS)
    played = evidence(subject, *events, parameters=(MATRIX,) if subject.spec.name == "Muon" else (vector, MATRIX))
    assert not list(CHECKS["malformed-state"].find(played))
    assert played.recording.looked["malformed-state"] > len(events) // 4


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_the_fused_kernels_of_torch_read_and_write_beyond_it_as_is_known(name):
    (subject,) = resolve(f"torch:{name}[fused]")
    for how, cause in {"a row short": spoil.MEMORY, "column-major": "another layout"}.items():
        played = evidence(subject, Spoil(how))
        (finding,) = CHECKS["malformed-state"].find(played)
        assert finding.cause == cause
        assert ledger.knows(played, finding) is ledger.LEDGER["fused-cpu-takes-any-state"]


def test_what_is_found_before_the_first_step_after_a_round_trip_is_charged_to_who_plays_then():
    (subject,) = resolve("torch:Adam[fused]")
    there, back = Reload(into=1), Reload(into=0)
    played = evidence(subject, GO, there, GO, back, Spoil("a row short"))
    assert [s.played_by.mode for s in played.recording.steps] == ["fused", "forloop"]
    (finding,) = CHECKS["malformed-state"].find(played)
    assert played.attributed(finding).owner == ""
    assert played.player(2).mode == "forloop"
    left = evidence(subject, GO, there, Spoil("a row short"))
    assert not left.recording.looked["malformed-state"]


def test_the_life_goes_on_as_if_nothing_had_been_tried():
    subject = of_class(life.on(RightAdam, life.WritesBehindState))
    spoilt = [
        evidence(subject, GO, *events, GO).recording for events in ((Spoil("a row short"), Spoil("flat", "loaded")), ())
    ]
    ends = [[(x.value_after.tobytes(), str(x.state_after)) for x in r.steps[-1].parameters] for r in spoilt]
    assert ends[0] == ends[1]
    assert [b.check for b in spoilt[0].breaches] == ["malformed-state"]


@pytest.mark.parametrize(
    ("name", "parameter", "how"),
    [
        ("SGD", Parameter((2, 3)), "a row short"),  # has no state without momentum
        ("Adam", Parameter((1,)), "empty"),
        ("Adam", Parameter((), "float64"), "empty"),
        ("Adam", Parameter((6,)), "flat"),  # as it is
        ("Adam", Parameter((4, 4)), "transposed"),
        ("Adam", Parameter((2, 3), "float64"), "of float64"),
    ],
)
def test_what_is_not_malformed_is_no_pass(name, parameter, how):
    (subject,) = resolve(f"torch:{name}[forloop]")
    recording = Evidence(subject, Trace(name, (parameter,), (Group((0,)),), (Spoil(how),))).recording
    assert recording.raised is None
    assert not recording.looked["malformed-state"]
    assert recording.lacks == {"state"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex128"])
def test_a_life_of_other_dtypes_is_told_apart_in_float32(dtype):
    wrong = of_class(life.on(RightAdam, life.FillsState))
    for cls, findings in ((wrong, 1), (of_class(RightAdam), 0)):
        found = told(cls, Spoil("of half the elements"), parameters=(Parameter((4, 3), dtype), VECTOR))
        assert len(found) == findings


def test_each_spoiling_is_what_it_is_called():
    t = torch.arange(12.0).reshape(4, 3)
    made = {how: spoil.spoilt(how, t) for how in SPOILINGS}
    assert all(spoil.is_malformed(how, t) for how in SPOILINGS)
    assert [made[how].numel() for how in SPOILINGS[:6]] == [6, 9, 1, 0, 24, 12]
    for how in ("column-major", "strided", "lazily negative", "of float64", "sparse"):
        assert torch.equal(made[how].to_dense().resolve_neg().float(), t)
    assert made["lazily negative"].is_neg()
    assert made["strided"].stride() == (6, 2)


def test_state_that_broadcasts_means_what_torch_makes_of_it():
    t = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(spoil.right_tensor(t[:1], t), t[:1].repeat(2, 1))
    assert torch.equal(spoil.right_tensor(t.reshape(-1), t), t)
    with pytest.raises(spoil.NothingToSpoilError):
        spoil.right_tensor(t.reshape(-1)[:4], t)


def test_memory_beside_is_seen_to_be_written():
    buffer = spoil._Buffer(torch.ones(2, 3)[:, :2], 6, GUARD)
    buffer.view.fill_(2.0)
    assert not buffer.written
    buffer.view.as_strided((6,), (1,)).fill_(2.0)
    assert buffer.written


def test_the_order_of_sums_in_a_product_is_no_other_meaning():
    variant = next(v for v in VARIANTS if v.make.__name__ == "SingleMuon")
    subject = class_subject(variant.make, "Muon", profile=variant.profile)
    options = {"weight_decay": 1 / 3, "lr": 3.0, "nesterov": False}
    parameter = Parameter((31, 17), values=Values("constant", 0, 0.0, 0.0))
    trace = Trace("Muon", (parameter,), (Group((0,), options),), (Spoil("strided"),))
    assert list(CHECKS["malformed-state"].find(Evidence(subject, trace))) == []
