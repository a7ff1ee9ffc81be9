"""The zoo: right optimizers pass, wrong ones fail the check that is about their fault."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from zoo import adadelta, adafactor, adagrad, adam, adamax, asgd, muon, nadam, radam, rmsprop, rprop, sgd, sparse_adam

from stepcheck import check_optimizer
from stepcheck.harness import campaign

TESTS = Path(__file__).parents[1]

RIGHT = {
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
}

# Fewer lives of these: they have state or products whose budgets take longer to compute.
COSTLY = ("ASGD", "NAdam", "RAdam", "Rprop", "SparseAdam", "Adafactor", "Muon")

WRONG = {
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


def _named(cls, *values):
    return pytest.param(cls, *values, id=f"{cls.__module__}.{cls.__name__}")


@pytest.mark.parametrize(("optimizer", "like"), [_named(cls, like) for cls, like in RIGHT.items()])
def test_right_passes(optimizer, like, tmp_path):
    examples = campaign.DEFAULT_EXAMPLES // (5 if like in COSTLY else 1)
    report = check_optimizer(optimizer, like, examples=examples, out=tmp_path)
    report.raise_on_divergence()
    assert report.verdict == "pass"


@pytest.mark.parametrize(
    ("optimizer", "like", "check"),
    [_named(cls, like, check) for like, zoo in WRONG.items() for cls, check in zoo.items()],
)
def test_wrong_fails(optimizer, like, check, tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "_ATTEMPTS", 1)  # that it fails is asked here, not how small a life shows it
    failed = set()
    # Most faults show in the first few lives; all have to in as many as a campaign plays.
    for examples in (3, 20, campaign.DEFAULT_EXAMPLES):
        if check not in failed:
            report = check_optimizer(optimizer, like, examples=examples, only=(check,), out=tmp_path)
            failed = {d.check for d in report.divergences}
    assert check in failed


def test_divergence_is_told_by_a_script_and_a_replay(tmp_path):
    report = check_optimizer(adam.EpsInsideRoot, "Adam", examples=20, out=tmp_path)
    divergence = report.divergences[0]
    assert "stepcheck" not in divergence.script
    assert len(divergence.script.splitlines()) <= 30

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(TESTS)}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
        )

    script = run("-c", divergence.script)
    assert script.returncode != 0
    assert "AssertionError" in script.stderr

    trace = str(tmp_path / f"{divergence.id}.json")
    fails = run("-m", "stepcheck", "replay", trace)
    assert (fails.returncode, fails.stdout.split()[0]) == (1, "FAILS")
    fixed = run("-m", "stepcheck", "replay", trace, "--subject", "zoo.adam:RightAdam")
    assert (fixed.returncode, fixed.stdout.split()[0]) == (0, "FIXED")
