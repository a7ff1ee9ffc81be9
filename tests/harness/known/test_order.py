"""The order in which known issues are asked: of several that claim a finding, the first explains it."""

import math
from pathlib import Path

from stepcheck.harness import known
from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.judging.judgement import Deviation
from stepcheck.harness.known import ledger
from stepcheck.harness.known.ledger import KINDS, LEDGER, explanation
from stepcheck.harness.known.seen import Seen
from stepcheck.harness.life.events import Gradient, Group, Parameter, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.families import resolve

ORDER = [
    "fused-cpu-ignores-strides",
    "fused-cpu-takes-any-state",
    "fused-sgd-never-stores-narrow-vectors",
    "fused-sgd-misreads-narrow-momentum",
    "fused-sgd-rounds-weight-decay-to-narrow",
    "fused-sgd-late-first-gradient",
    "fused-amsgrad-drops-nan",
    "foreach-nesterov-writes-gradient",
    "foreach-nesterov-writes-expanded-gradient",
    "conjugated-gradient-viewed-as-real",
    "conjugated-gradient-foreach",
    "sparse-added-at-twice-the-offset",
    "adagrad-squares-sparse-complex-whole",
    "adagrad-ignores-group-initial-accumulator",
    "load-state-dict-casts-scalars",
    "asgd-power-overflows",
    "radam-foreach-unused-term-is-nan",
    "rprop-eta-minus-rounds-to-one",
    "adafactor-eps-of-the-first-dtype",
    "adafactor-eps-squared-leaves-float16",
    "muon-normalizes-its-bfloat16-momentum",
    "adafactor-divides-by-no-elements",
    "muon-divides-by-no-elements",
    "lbfgs-views-strided-gradient",
    "lbfgs-largest-of-no-elements",
    "lbfgs-strong-wolfe-nan-loss",
    "lbfgs-extrapolates-a-whole-number",
    "lbfgs-history-size-set-later",
    "lbfgs-history-size-lowered-later",
    "lbfgs-derives-max-eval-from-the-keyword",
    "lbfgs-keeps-the-tensor-lr-as-state",
    "load-state-dict-shares-tensors",
    "add-param-group-writes-the-callers-dictionary",
    "groups-share-the-tensor-lr",
    "super-step-runs-hooks-again",
    "copies-lose-attributes",
    "copies-lose-gradient-scaling",
    "parameters-before-a-refused-gradient-are-stepped",
    "other-dtype-is-refused-half-way",
    "buffer-turned-on-later",
    "fused-sgd-skipped-first-step-leaves-garbage",
    "sgd-nesterov-looks-at-keywords-alone",
    "groups-are-not-validated",
    "infinite-options-are-accepted",
    "sgd-accepts-nan",
    "tuples-of-any-length-are-accepted",
    "options-that-are-not-looked-at",
    "compiled-step-expects-old-strides",
    "compiled-drops-writes-to-double-scalars",
    "compiled-double-scalar-restarts",
    "compiled-complex-without-elements",
]


def test_entries_are_asked_in_the_order_that_is_written_down_here():
    assert list(LEDGER) == ORDER


def test_every_kind_is_asked_and_no_name_stands_twice():
    modules = {f.stem for f in Path(known.__file__).parent.glob("*.py") if "\nKIND = " in f.read_text()}
    assert {kind.__name__.rpartition(".")[2] for kind in KINDS} == modules
    assert sum(len(kind.KIND) for kind in KINDS) == len(LEDGER)


def test_of_two_that_claim_a_finding_the_first_explains_it(monkeypatch):
    first, second = LEDGER["fused-cpu-ignores-strides"], LEDGER["fused-amsgrad-drops-nan"]
    (subject,) = resolve("torch:Adam[fused]")
    strided = Parameter((3, 2), layout="sliced")
    step = Step({0: Gradient(Values("quarters", 1, 2.0**-7, 2.0))})
    evidence = Evidence(subject, Trace("Adam", (strided,), (Group((0,), {"amsgrad": True}),), (step,)))
    dropped = Deviation(0, 0, "max_exp_avg_sq", (0, 0), 1.0, math.nan, 1e-9, 1e9)
    finding = Finding("agreement", "max_exp_avg_sq", 0, "it is wrong", 0, 1e9, dropped)
    assert first.claims(Seen(evidence, finding))
    assert second.claims(Seen(evidence, finding))
    assert explanation(evidence, finding) is first
    monkeypatch.setattr(ledger, "LEDGER", dict(reversed(LEDGER.items())))
    assert explanation(evidence, finding) is second
