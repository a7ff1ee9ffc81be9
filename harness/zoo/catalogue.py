"""Everything in the zoo, right and wrong, and the check that must find each fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from stepcheck.harness.zoo import (
    adadelta,
    adafactor,
    adagrad,
    adam,
    adamax,
    ages,
    around,
    asgd,
    elsewhere,
    handled,
    lbfgs,
    life,
    muon,
    nadam,
    radam,
    right,
    rmsprop,
    rprop,
    scale,
    sgd,
    sparse_adam,
)
from stepcheck.harness.zoo.equivalent import EQUIVALENT
from stepcheck.harness.zoo.fault import Fault, Variant
from stepcheck.harness.zoo.history import HISTORY
from stepcheck.harness.zoo.mutants import mutants
from stepcheck.harness.zoo.written import written
from stepcheck.reference import SPECS

#: Right ones that the faults are built on, and what they pretend to be.
RIGHT: dict[Callable[..., Any], str] = {
    sgd.RightSGD: "SGD",
    sgd.OtherNames: "SGD",
    adam.RightAdam: "Adam",
    adam.PaperAdam: "Adam",
    adam.FewOptions: "Adam",
    adam.RightAdamW: "AdamW",
    adagrad.RightAdagrad: "Adagrad",
    rmsprop.RightRMSprop: "RMSprop",
    adadelta.RightAdadelta: "Adadelta",
    adamax.RightAdamax: "Adamax",
    asgd.RightASGD: "ASGD",
    nadam.RightNAdam: "NAdam",
    radam.RightRAdam: "RAdam",
    rprop.RightRprop: "Rprop",
    sparse_adam.RightSparseAdam: "SparseAdam",
    adafactor.RightAdafactor: "Adafactor",
    muon.RightMuon: "Muon",
    life.ScalesItselfSGD: "SGD",
    life.ScalesItselfAdam: "Adam",
}

#: The check that must find a fault; or several, where a life decides which of them explains it.
WRONG: dict[str, dict[Callable[..., Any], str | tuple[str, ...]]] = {
    "SGD": {
        sgd.DampensFirstStep: "agreement",
        sgd.FirstGradientTwice: "agreement",
        sgd.IgnoresDampening: "agreement",
        sgd.Averages: "agreement",
        sgd.AccumulatesLr: "agreement",
        sgd.StaleBuffer: "agreement",
        sgd.NesterovWithOldBuffer: "agreement",
        sgd.NesterovWithoutGradient: "agreement",
        sgd.KeepsGradient: "gradient-unwritten",
        sgd.SharesGradient: "between-steps",
        sgd.DecoupledSGD: "agreement",
        sgd.MaximizesPenaltySGD: "agreement",
        sgd.DecaysIntoGradientSGD: "gradient-unwritten",
        sgd.FirstLrForAllSGD: "agreement",
        sgd.CachedLrSGD: "agreement",
        sgd.TakesAbsentForZeroSGD: "no-gradient",
        sgd.WritesToCopySGD: "agreement",
        sgd.DropsTailSGD: "agreement",
        sgd.ForgetsStateSGD: "save-load-continue",
        sgd.OtherNamesStale: "agreement",
    },
    "Adam": {
        adam.EpsInsideRoot: "agreement",
        adam.EpsBeforeCorrection: "agreement",
        adam.WithoutRoot: "agreement",
        adam.WithoutCorrection1: "agreement",
        adam.WithoutCorrection2: "agreement",
        adam.CorrectsByNextStep: "agreement",
        adam.StaleMean: "agreement",
        adam.StaleSquare: "agreement",
        adam.SquaresMean: "agreement",
        adam.ForgetsMaximum: "agreement",
        adam.StoresMaximumOnly: "agreement",
        adam.CorrectedMaximum: "agreement",
        adam.IgnoresDecoupled: "agreement",
        adam.MaximizesPenaltyAdam: "agreement",
        adam.SwappedBetasAdam: "agreement",
        adam.SingleBetasAdam: "agreement",
        adam.HalfEpsAdam: "agreement",
        adam.RoundedLrAdam: "agreement",
        adam.FirstLrForAllAdam: "agreement",
        adam.FirstEpsForAllAdam: "agreement",
        adam.CachedLrAdam: "agreement",
        adam.SinglePrecisionAdam: "agreement",
        adam.CountsForAllAdam: "agreement",
        adam.CountsInGroup: "agreement",
        adam.CountsAbsentAdam: "no-gradient",
        adam.TakesAbsentForZeroAdam: "no-gradient",
        adam.CountsAsideAdam: "save-load-continue",
        adam.ForgetsStateAdam: "save-load-continue",
        adam.ConsumesGradientAdam: "gradient-unwritten",
        adam.DecaysIntoGradientAdam: "gradient-unwritten",
        adam.DropsTailAdam: "agreement",
        adam.IgnoresStridesAdam: "memory-beside",
        adam.WritesWholeVectorsAdam: "memory-beside",
        adam.NeedsDimensionsAdam: "completes",
        adam.NeedsElementsAdam: "completes",
        adam.PaperAdamUncorrected: "agreement",
        adam.PaperAdamForgets: "save-load-continue",
        adam.FewOptionsEpsInsideRoot: "agreement",
    },
    "AdamW": {
        adam.PenalizesGradient: "agreement",
        adam.DecaysAfterUpdate: "agreement",
        adam.DecaysWithoutLr: "agreement",
        adam.DecaysByFirstLr: "agreement",
        adam.GrowsUnderMaximize: "agreement",
        adam.DecaysAbsent: "no-gradient",
        adam.DecaysTwice: "agreement",
        adam.WritesToCopyAdamW: "agreement",
    },
    "Adagrad": {
        adagrad.EpsInsideRoot: "agreement",
        adagrad.WithoutRoot: "agreement",
        adagrad.StaleSum: "agreement",
        adagrad.AveragesSquares: "agreement",
        adagrad.DecaysLrEarly: "agreement",
        adagrad.CompoundsLrDecay: "agreement",
        adagrad.StartsFromZero: "agreement",
        adagrad.FirstStartForAll: "agreement",
        adagrad.StartsFromRoot: "agreement",
        adagrad.MaximizesPenaltyAdagrad: "agreement",
        adagrad.CountsForAllAdagrad: "agreement",
        adagrad.FirstEpsForAllAdagrad: "agreement",
        adagrad.ForgetsStateAdagrad: "save-load-continue",
        adagrad.IgnoresStridesAdagrad: "memory-beside",
    },
    "RMSprop": {
        rmsprop.EpsInsideRoot: "agreement",
        rmsprop.NotCentered: "agreement",
        rmsprop.SubtractsMean: "agreement",
        rmsprop.StaleSquare: "agreement",
        rmsprop.SwapsWeights: "agreement",
        rmsprop.AccumulatesLr: "agreement",
        rmsprop.StaleBuffer: "agreement",
        rmsprop.DampensMomentum: "agreement",
        rmsprop.DecoupledRMSprop: "agreement",
        rmsprop.IgnoresMaximizeRMSprop: "agreement",
        rmsprop.FirstLrForAllRMSprop: "agreement",
        rmsprop.ForgetsOptionsRMSprop: "save-load-continue",
        rmsprop.NeedsDimensionsRMSprop: "completes",
        rmsprop.WritesToCopyRMSprop: "agreement",
    },
    "Adadelta": {
        adadelta.EpsOutsideRoots: "agreement",
        adadelta.EpsBelowOnly: "agreement",
        adadelta.WithoutRoots: "agreement",
        adadelta.StaleSquare: "agreement",
        adadelta.AccumulatesLr: "agreement",
        adadelta.AccumulatesMagnitude: "agreement",
        adadelta.ScalesByRho: "agreement",
        adadelta.MaximizesPenaltyAdadelta: "agreement",
        adadelta.CachedLrAdadelta: "agreement",
        adadelta.TakesAbsentForZeroAdadelta: "no-gradient",
        adadelta.NeedsElementsAdadelta: "completes",
        adadelta.ForgetsStateAdadelta: "save-load-continue",
    },
    "Adamax": {
        adamax.EpsAtDivision: "agreement",
        adamax.EpsOutsideMaximum: "agreement",
        adamax.WithoutAbs: "agreement",
        adamax.NeverForgets: "agreement",
        adamax.StaleNorm: "agreement",
        adamax.WithoutCorrection: "agreement",
        adamax.CorrectsByLastStep: "agreement",
        adamax.SwappedBetasAdamax: "agreement",
        adamax.CountsAsideAdamax: "save-load-continue",
        adamax.CountsAbsentAdamax: "no-gradient",
        adamax.WritesWholeVectorsAdamax: "memory-beside",
        adamax.DecaysIntoGradientAdamax: "gradient-unwritten",
    },
    "ASGD": {
        asgd.KeepsEta: "agreement",
        asgd.SchedulesFirst: "agreement",
        asgd.AveragesFromStart: "agreement",
        asgd.AveragesOneStepEarly: "agreement",
        asgd.AveragesOldValue: "agreement",
        asgd.ForgetsAverage: "agreement",
        asgd.ReturnsAverage: "agreement",
        asgd.IgnoresAlpha: "agreement",
        asgd.IgnoresLambd: "agreement",
        asgd.DecaysByLr: "agreement",
        asgd.DecoupledASGD: "agreement",
        asgd.ForgetsStateASGD: "save-load-continue",
    },
    "NAdam": {
        nadam.WithoutNextMomentum: "agreement",
        nadam.CorrectsByThisProduct: "agreement",
        nadam.WithoutGradient: "agreement",
        nadam.ForgetsProduct: "agreement",
        nadam.StaleProduct: "agreement",
        nadam.IgnoresMomentumDecay: "agreement",
        nadam.ConstantMomentum: "agreement",
        nadam.AveragesByMomentum: "agreement",
        nadam.WithoutCorrection2: "agreement",
        nadam.EpsInsideRoot: "agreement",
        nadam.EpsBeforeCorrection: "agreement",
        nadam.IgnoresDecoupled: "agreement",
        nadam.CountsAbsentNAdam: "no-gradient",
    },
    "RAdam": {
        radam.PaperThreshold: "agreement",
        radam.LateThreshold: "agreement",
        radam.LongestOffByOne: "agreement",
        radam.LongestByBeta1: "agreement",
        radam.WithoutRoot: "agreement",
        radam.NeverRectifies: "agreement",
        radam.WithoutCorrection2: "agreement",
        radam.EpsInsideRoot: "agreement",
        radam.EpsAfterCorrection: "agreement",
        radam.PlainUncorrected: "agreement",
        radam.IgnoresDecoupled: "agreement",
        radam.CountsAsideRAdam: "save-load-continue",
    },
    "Rprop": {
        rprop.SwappedEtas: "agreement",
        rprop.NoSmallest: "agreement",
        rprop.NoLargest: "agreement",
        rprop.KeepsSign: "agreement",
        rprop.MovesAfterChange: "agreement",
        rprop.StartsFromOne: "agreement",
        rprop.FollowsLr: "agreement",
        rprop.GrowsFromRest: "agreement",
        rprop.RemembersUnsigned: "agreement",
        rprop.StaleSize: "agreement",
        rprop.MovesByGradient: "agreement",
        rprop.ConsumesGradientRprop: "gradient-unwritten",
    },
    "SparseAdam": {
        sparse_adam.EpsAfterCorrection: "agreement",
        sparse_adam.EpsInsideRoot: "agreement",
        sparse_adam.WithoutCorrections: "agreement",
        sparse_adam.Densifies: "agreement",
        sparse_adam.ForgetsUnnamed: "agreement",
        sparse_adam.TakesLastDuplicate: "agreement",
        sparse_adam.SquaresDuplicates: "agreement",
        sparse_adam.AppliesDuplicatesInTurn: "agreement",
        sparse_adam.CountsNamed: "agreement",
        sparse_adam.MinimizesSparse: "agreement",
        sparse_adam.AveragesNew: "agreement",
        sparse_adam.ForgetsStateSparseAdam: "save-load-continue",
        sparse_adam.WritesToCopySparseAdam: "agreement",
    },
    "Adafactor": {
        adafactor.ClipsRows: "agreement",
        adafactor.NeverClips: "agreement",
        adafactor.IgnoresThreshold: "agreement",
        adafactor.IgnoresEps2: "agreement",
        adafactor.AbsoluteStep: "agreement",
        adafactor.ScalesByDecayed: "agreement",
        adafactor.AddsEps1: "agreement",
        adafactor.BoundsByEps1: "agreement",
        adafactor.SwapsWeights: "agreement",
        adafactor.ForgetsEarly: "agreement",
        adafactor.IgnoresBeta2Decay: "agreement",
        adafactor.WithoutSchedule: "agreement",
        adafactor.SumsSquares: "agreement",
        adafactor.MeanOfBatch: "agreement",
        adafactor.NormalizesBySum: "agreement",
        adafactor.DecaysByAlpha: "agreement",
        adafactor.PenalizesGradient: "agreement",
        adafactor.IgnoresMaximizeAdafactor: "agreement",
        adafactor.CountsAbsentAdafactor: "no-gradient",
    },
    "Muon": {
        muon.Sums: "agreement",
        muon.NeverNesterov: "agreement",
        muon.LooksAheadUnweighted: "agreement",
        muon.WrongCoefficient: "agreement",
        muon.IgnoresCoefficients: "agreement",
        muon.WrongSign: "agreement",
        muon.OneIterationLess: "agreement",
        muon.IgnoresSteps: "agreement",
        muon.SpectralNorm: "agreement",
        muon.AddsEps: "agreement",
        muon.NeverAdjusts: "agreement",
        muon.AdjustsTheOtherWay: "agreement",
        muon.IgnoresAdjustment: "agreement",
        muon.DecaysByAdjustedLr: "agreement",
        muon.CachedLrMuon: "agreement",
    },
}

WRONG["SGD"] |= life.SGD
WRONG["Adam"] |= life.ADAM


def _written_by_hand() -> Iterator[Fault]:
    """The tables as one list."""
    for like, of_one in WRONG.items():
        for make, checks in of_one.items():
            named = (checks,) if isinstance(checks, str) else checks
            yield Fault(make, like, named, "life" if make.__module__ == life.__name__ else "rule")
    yield from (Fault(make, "LBFGS", checks) for make, checks in lbfgs.FAULTS.items())


_HAPPENED = {fault.make for fault in HISTORY}
#: Wrong optimizers that somebody wrote; what happened to somebody first.
FAULTS: tuple[Fault, ...] = (
    *HISTORY,
    *scale.FAULTS,
    *ages.FAULTS,
    *handled.FAULTS,
    *around.FAULTS,
    *elsewhere.FAULTS,
    *(fault for fault in _written_by_hand() if fault.make not in _HAPPENED),
)
#: Right optimizers, whatever their order of operations.
VARIANTS: tuple[Variant, ...] = (
    *(Variant(make, like) for make, like in RIGHT.items()),
    Variant(lbfgs.RightLBFGS, "LBFGS"),
    *right.VARIANTS,
    *(Variant(written(spec), name) for name, spec in SPECS.items() if not spec.closure),
)


def faults(most_mutants: int | None = None) -> list[Fault]:
    """Everything wrong, and what looks wrong and is equivalent.

    Args:
        most_mutants: of each optimizer, at most as many of those made from its Spec, evenly spread; all by default.
    """
    made = (mutant for spec in SPECS.values() for mutant in mutants(spec, most_mutants))
    equivalent = (Fault(make, "LBFGS", equivalent=why) for make, why in lbfgs.EQUIVALENT.items())
    return [*FAULTS, *EQUIVALENT, *equivalent, *made]
