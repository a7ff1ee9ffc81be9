"""The faults of scale and time: right below their condition, bit by bit, and wrong within it."""

import itertools
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.zoo import ages, scale

FAULTS = {fault.name: fault for fault in (*scale.FAULTS, *ages.FAULTS)}


@dataclass(frozen=True)
class Plan:
    """A short life: the shapes of each group's parameters, and what is done with them.

    Attributes:
        groups: the options of each group; ``shapes`` among them where its shapes are others.
        added: as many of the groups are added after the construction.
        at: the count that the state has after the first step, as if an old one were loaded.
        growth: how many times as large as those of the step before the gradients are.
        schedule: options that are set before a step.
        loss: what the closure returns.
    """

    shapes: tuple = ((5, 3), (7,), ())
    steps: int = 2
    options: dict = field(default_factory=dict)
    groups: tuple = ({},)
    added: int = 0
    at: int | None = None
    growth: float = 1.0
    schedule: dict = field(default_factory=dict)
    loss: float | None = None


def play(make, life):
    """The parameters and their states after each step, and what the step returned."""
    random = torch.Generator().manual_seed(0)
    groups = []
    for options in life.groups:
        rest = dict(options)
        shapes = rest.pop("shapes", life.shapes)
        groups.append({"params": [torch.nn.Parameter(torch.randn(s, generator=random)) for s in shapes], **rest})
    built = len(groups) - life.added
    optimizer = make(groups[:built], **life.options)
    for group in groups[built:]:
        optimizer.add_param_group(group)
    everyone = [p for group in groups for p in group["params"]]
    for number in range(1, life.steps + 1):
        for p in everyone:
            p.grad = life.growth ** (number - 1) * torch.randn(p.shape, generator=random)
        if number == 2 and life.at is not None:
            for p in everyone:
                optimizer.state[p]["step"].fill_(life.at)
        for group in optimizer.param_groups:
            group.update(life.schedule.get(number, {}))
        returned = optimizer.step(None if life.loss is None else lambda: torch.tensor(life.loss))
        seen = [p.detach().clone() for p in everyone]
        for p in everyone:
            seen += [torch.as_tensor(value).clone() for _, value in sorted(optimizer.state[p].items())]
        yield seen, returned


def right(fault):
    """The right optimizer that a fault is built on."""
    return next(cls for cls in fault.make.__mro__ if cls.__name__.startswith("Right"))


def differs(one, other):
    (seen, returned), (others, other_returned) = one, other
    return (
        len(seen) != len(others)
        or not all(map(torch.equal, seen, others))
        or (returned is None) != (other_returned is None)
    )


def first_difference(fault, life):
    """The first step after which a fault and its right base are not the same, or None."""
    both = zip(play(fault.make, life), play(right(fault), life), strict=True)
    return next((n for n, (wrong, true) in enumerate(both, 1) if differs(wrong, true)), None)


def flat(size, **more):
    return Plan(((size,), (3, 2)), **more)


def several(number, **more):
    return Plan(((2,),) * number, **more)


def late(steps, **more):
    return Plan(((3,),), steps, **more)


def old(at, steps=4, **more):
    return Plan(((3,),), steps, at=at, **more)


def grouped(number, *rest, option="lr", **more):
    groups = tuple({option: 0.01 * (n + 1)} for n in range(number))
    return Plan(((2,),), groups=(*groups, *rest), **more)


HEAVY = {"momentum": 0.9}

#: The life in which a fault is right, that in which it is wrong, and the step at which it first shows.
CASES = {
    # large
    "scale.UpdatesOnePage": (flat(4096), flat(4097), 1),
    "scale.NumbersBlocksInUint16": (flat(1 << 16), flat((1 << 16) + 1), 1),
    "scale.UpdatesFirstMillion": (flat(1 << 20, steps=1), flat((1 << 20) + 1, steps=1), 1),
    "scale.DropsTailOfBlocks": (flat(2048), flat(2049), 1),
    "scale.StepsFirstRows": (Plan(((1024, 3), (1030,))), Plan(((1025, 2),)), 1),
    "scale.NumbersInInt16": (flat(32768), flat(32769), 1),
    "scale.WrapsNumbers": (flat(65536), flat(65537), 1),
    "scale.NumbersInHalf": (flat(2049), flat(2050), 1),
    "scale.ReadsFirstBlock": (flat(4096), flat(4097), 1),
    "scale.OverlapsBlocks": (flat(4096), flat(4097), 1),
    "scale.DropsRemainderOfTiles": (Plan(((64, 33), (50, 3), (96, 2))), Plan(((65, 32),)), 1),
    "scale.MeasuresFirstBlock": (flat(4096), flat(4097), 1),
    "scale.AveragesFirstColumns": (Plan(((4, 512), (513,), (513, 4))), Plan(((4, 513),)), 1),
    "scale.StoresPartOfNorm": (flat(1 << 18), flat((1 << 18) + 1), 1),
    "scale.StoresPartOfMomentum": (flat(16384, options=HEAVY), flat(16385, options=HEAVY), 2),
    "scale.AveragesPart": (flat(32768), flat(32769), 1),
    "scale.ReadsMeanOfBlockBefore": (flat(8192), flat(8193), 2),
    "scale.ReadsByColumn": (Plan(((128, 128), (20000,))), Plan(((129, 128),)), 1),
    "scale.StepsFirstMatrices": (Plan(((64, 8, 8), (65, 8))), Plan(((65, 8, 8),)), 1),
    "scale.KeepsFarSizes": (flat(1 << 17), flat((1 << 17) + 8), 2),
    "scale.DropsRemainderOfVectors": (flat(8191), flat(8193), 1),
    # many
    "scale.LaunchesOnce": (several(30), several(31), 1),
    "scale.StateOfLaunchBefore": (several(36), several(37), 1),
    "scale.DropsLastLaunch": (several(64), several(65), 1),
    "scale.DropsOneOfLaunch": (several(110), several(111), 1),
    "scale.SkipsStartOfLaunch": (several(320), several(321), 1),
    "scale.StepsFirstThousand": (several(1000, steps=1), several(1001, steps=1), 1),
    "scale.ShiftsPastEmpty": (Plan(((0,), *((2,),) * 23)), Plan(((0,), *((2,),) * 24)), 1),
    "scale.EndsAtEmptyGroup": (grouped(2, {"shapes": ()}), Plan(groups=({"shapes": ()}, {})), 1),
    "scale.NinthLrFromFirst": (grouped(8), grouped(9), 1),
    "scale.StepsFirstGroups": (grouped(16), grouped(17), 1),
    "scale.FourthDecayForLater": (grouped(4, option="weight_decay"), grouped(5, option="weight_decay"), 1),
    "scale.SecondAddedAsFirst": (grouped(4, added=1), grouped(4, added=2), 1),
    "scale.StateByNumber": (several(64), several(65), 1),
    "scale.PoolsBuffers": (several(50, options=HEAVY), several(51, options=HEAVY), 1),
    "scale.CountsLaunches": (several(48), several(49), 1),
    "scale.GradientOfOneBefore": (several(99), several(100), 1),
    "scale.WholeEights": (Plan(((2, 2),) * 16), Plan(((2, 2),) * 17), 1),
    "scale.KeepsFirstStates": (several(200), several(201), 2),
    # rare
    "scale.SkipsByHash": (flat(20), flat(20_000), 1),
    "scale.SkipsEach1021st": (flat(1020), flat(1021), 1),
    "scale.RoundsSmallToZero": (flat(20), flat(20_000), 1),
    "scale.SkipsEach211thStep": (None, late(212), 211),
    "scale.SkipsSeldomGroups": (flat(89), flat(90), 1),
    "scale.FixesByHash": (flat(20), flat(20_000), 1),
    "scale.WrongTableEntry": (flat(20), flat(20_000), 1),
    "scale.SwapsNeighbours": (flat(1009), flat(1010), 1),
    "scale.ClearsSmallMomentum": (flat(20, options=HEAVY), flat(20_000, options=HEAVY), 2),
    "scale.DecaysNoSmallElements": (flat(20), flat(20_000), 1),
    "scale.FlushesSmallSquares": (flat(20), flat(20_000), 1),
    "scale.MissesChanges": (flat(508), flat(20_000), 2),
    "scale.LeavesLargest": (flat(500), flat(501), 1),
    "scale.KeepsEtaAtTimes": (None, late(301), 300),
    "scale.DropsMomentumByHash": (late(30), Plan(((3,),) * 8, 60), 59),
    # long
    "ages.DropsMomentumEach50": (None, late(51, options=HEAVY), 50),
    "ages.StaleMeanEach64": (None, late(65), 64),
    "ages.SkipsEach100": (None, late(101), 100),
    "ages.ResetsSquareEach32": (None, late(33), 32),
    "ages.CountsInInt8": (None, late(129), 128),
    "ages.CountsInUint8": (None, late(257), 256),
    "ages.CountsInInt16": (old(32_000), old(32_765, options={"lr_decay": 0.01}), 4),
    "ages.CountsInUint16": (old(65_000), old(65_534), 4),
    "ages.CountsInHalf": (old(2040), old(2046), 4),
    "ages.CountsInBFloat16": (old(200), late(258), 257),
    "ages.CorrectsDuringWarmUp": (None, late(252), 251),
    "ages.CorrectsFirstThousand": (None, late(1002), 1001),
    "ages.RectifiesFirst512": (None, late(514), 513),
    "ages.TakesUnderflowForStart": (old(900), late(151, options={"betas": (0.5, 0.999)}), 150),
    "ages.AveragesFrom10000": (old(9000), old(9_999), 4),
    "ages.KeepsLateEta": (None, late(1001), 1000),
    "ages.DecaysLrEach64": (None, late(66), 65),
    "ages.ReadsOldGradient": (None, late(97), 96),
    "ages.BoundsFirst400": (late(402), old(398, options={"lr": 0.1}), 4),
    "ages.ForgetsAtLeast": (None, late(202), 201),
    "ages.SavesIterations": (None, Plan(((3, 2),), 42), 41),
    "ages.ResetsSizesEach75": (None, late(76), 75),
    "ages.DecaysFirst500": (None, late(502, options={"weight_decay": 0.1}), 501),
    "ages.ForgetsMaximumEach128": (late(130), late(130, options={"amsgrad": True, "betas": (0.9, 0.5)}), 128),
    # valued
    "ages.NeverRectifiesShort": (
        Plan(steps=40, options={"betas": (0.9, 0.6)}),
        Plan(steps=40, options={"betas": (0.9, 0.8)}),
        7,
    ),
    "ages.KnownBeta2": (Plan(options={"betas": (0.9, 0.95)}), Plan(options={"betas": (0.9, 0.96)}), 1),
    "ages.CorrectsByDefaultBeta2": (Plan(options={"betas": (0.9, 0.98)}), Plan(options={"betas": (0.9, 0.99)}), 1),
    "ages.BoundsEps": (Plan(options={"eps": 1e-4}), Plan(options={"eps": 1e-3}), 1),
    "ages.DecaysFrom1e4": (Plan(options={"weight_decay": 1e-4}), Plan(options={"weight_decay": 9e-5, "lr": 1.0}), 1),
    "ages.BoundsLr": (Plan(), Plan(options={"lr": 1.5}), 1),
    "ages.RoundsSomeLr": (Plan(options={"lr": 0.0125}), Plan(options={"lr": 0.0035}), 1),
    "ages.NeverDampensHeavy": (
        Plan(options={"momentum": 0.99, "dampening": 0.5}),
        Plan(options={"momentum": 0.995, "dampening": 0.5}),
        2,
    ),
    "ages.LooksAheadFromHalf": (
        Plan(options={"momentum": 0.6, "nesterov": True}),
        Plan(options={"momentum": 0.5, "nesterov": True}),
        1,
    ),
    "ages.DecouplesHeavyDecay": (Plan(options={"weight_decay": 0.5}), Plan(options={"weight_decay": 0.6}), 1),
    "ages.IgnoresLightMomentum": (Plan(options={"momentum": 0.05}), Plan(options={"momentum": 0.04}), 1),
    "ages.BoundsAlpha": (
        Plan(options={"alpha": 1.0, "lambd": 0.1}),
        Plan(options={"alpha": 1.5, "lambd": 0.1}),
        1,
    ),
    "ages.BoundsGrowth": (Plan(options={"etas": (0.5, 2.0)}), Plan(options={"etas": (0.5, 2.5)}), 2),
    "ages.BoundsThreshold": (late(8, growth=10, options={"d": 2.0}), late(8, growth=10, options={"d": 3.0}), 6),
    "ages.NeverLooksAheadLight": (
        Plan(((3, 2),), options={"momentum": 0.5}),
        Plan(((3, 2),), options={"momentum": 0.4}),
        1,
    ),
    "ages.DecaysAtMostToZero": (
        Plan(options={"lr": 1.0, "weight_decay": 1.0}),
        Plan(options={"lr": 1.0, "weight_decay": 1.5}),
        1,
    ),
    "ages.ForgetsWhileOff": (
        Plan(steps=4, options=HEAVY, schedule={3: {"momentum": 0.5}}),
        Plan(steps=4, options=HEAVY, schedule={3: {"momentum": 0.0}, 4: HEAVY}),
        3,
    ),
    "ages.TakesZeroForNoLoss": (Plan(loss=1.0), Plan(loss=0.0), 1),
    "ages.ClimbsNegativeLoss": (Plan(loss=0.0), Plan(loss=-1.0), 1),
    "ages.SkipsUnknownLoss": (Plan(loss=float("inf")), Plan(loss=float("nan")), 1),
}

#: Faults that strike few elements of a large parameter.
FEW = [
    fault.name
    for fault in scale.FAULTS
    if fault.kind == "rare" and CASES[fault.name][2] <= 2 and fault.make is not scale.SkipsSeldomGroups
]


def test_there_are_enough_of_each_kind():
    kinds = Counter(fault.kind for fault in FAULTS.values())
    assert kinds.keys() == {"large", "many", "rare", "long", "valued"}
    assert all(kinds[kind] >= least for kind, least in {"large": 14, "many": 14, "rare": 12}.items())
    assert kinds["long"] >= 16
    assert kinds["valued"] >= 12


def test_each_has_a_case():
    assert CASES.keys() == FAULTS.keys()
    assert len(FAULTS) == len(scale.FAULTS) + len(ages.FAULTS)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=lambda fault: fault.name)
def test_a_fault_says_what_is_wrong(fault):
    assert fault.told.endswith(".")
    assert "." not in fault.told[:-1].replace("0.", "")
    assert right(fault).__name__ == f"Right{fault.like}"
    assert set(fault.checks) <= set(CHECKS)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [name for name, (below, _, _) in CASES.items() if below])
def test_it_is_right_below_its_condition(name):
    assert first_difference(FAULTS[name], CASES[name][0]) is None


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CASES)
def test_it_is_wrong_from_where_it_says(name):
    _, life, first = CASES[name]
    assert first_difference(FAULTS[name], life) == first


@pytest.mark.parametrize("name", FEW)
def test_a_rare_fault_strikes_few_elements(name):
    fault, (_, life, first) = FAULTS[name], CASES[name]
    (wrong, _), (true, _) = (
        next(itertools.islice(play(make, life), first - 1, None)) for make in (fault.make, right(fault))
    )
    assert 0 < torch.ne(wrong[0], true[0]).double().mean() < 0.01
