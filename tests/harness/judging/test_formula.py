"""The formula in a script is what the reference computes, whichever optimizer it is."""

import numpy as np
import pytest
import torch
from scripted import run_here

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.checks import EXPLAINED_BY
from stepcheck.harness.judging import formula
from stepcheck.harness.life.events import Gradient, Group, Parameter, Sparse, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search.asking import findings
from stepcheck.harness.telling import repro
from stepcheck.reference import SPECS


def overshooting(name):
    """A descendant of torch's class that adds 1 after each step."""

    def step(self, closure=None):
        loss = base.step(self, closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(1.0)
        return loss

    base = getattr(torch.optim, name)
    return class_subject(type("Overshoots", (base,), {"step": step, "__init__": base.__init__}), name)


def life(name, *, events=2, dtype="float64"):
    entries = Sparse((0,)) if SPECS[name].sparse == "only" else None
    gradient = Gradient(Values("listed", listed=(0.5,)), sparse=entries)
    parameter = Parameter((1,), dtype, values=Values("listed", listed=(0.25,)))
    return Trace(name, (parameter,), (Group((0,)),), (Step({0: gradient}),) * events)


#: Of two steps, how many have no formula: eta and mu_product are stored as float32, and a product of 0 may have either sign.
NOT_ARGUED = {"ASGD": 1, "NAdam": 2}


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.elementwise])
def test_formula_comes_to_what_was_expected(name):
    deviations = Evidence(overshooting(name), life(name)).judgement.deviations
    formulas = [(d, w) for d in deviations if isinstance(w := formula.of(SPECS[name], d, 0), formula.Formula)]
    assert len(formulas) == len(deviations) - NOT_ARGUED.get(name, 0)
    for deviation, written in formulas:
        tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in {**written.values, **written.options}.items()}
        exec("\n".join(written.lines), {"torch": torch}, tensors)
        assert abs(tensors["expected"] - deviation.expected) <= 0.1 * deviation.budget


def test_script_argues_what_it_asserts():
    subject = overshooting("Adam")
    finding = next(f for check in EXPLAINED_BY for f, _ in findings(subject, life("Adam", events=1), check))
    script = repro.script(subject, life("Adam", events=1), finding)
    assert "new_exp_avg = beta1 * exp_avg + (1 - beta1) * g\n" in script
    assert repr(finding.deviation.expected) not in script
    right = script.replace("import Overshoots", "import *").replace("Overshoots(", "torch.optim.Adam(")
    assert run_here(right) == ""
    wrong = right.replace("optimizer.step()", "optimizer.step(); params[0].data.add_(1.0)")
    assert run_here(wrong).startswith("AssertionError")


def test_script_says_why_it_has_no_formula():
    trace = Trace(
        "Adafactor", (Parameter((2, 2)),), (Group((0,)),), (Step({0: Gradient(Values("constant", high=1.0))}),)
    )
    subject = overshooting("Adafactor")
    finding = next(f for check in EXPLAINED_BY for f, _ in findings(subject, trace, check))
    assert "one element depends on all others" in repro.script(subject, trace, finding)


def test_what_is_used_twice_gets_a_name_and_brackets_are_few():
    x = formula._Symbol(np.array([2.0]), ("x", 9))
    total = (x + 1) * (x + 1) - (x - (x - 1))
    assert formula._written(total, {}, {"x": 2.0}, {}).lines == ["expected = float((x + 1) * (x + 1) - (x - (x - 1)))"]
    once = x + 1
    assert formula._written(once * once, {}, {"x": 2.0}, {}).lines == ["t1 = x + 1", "expected = float(t1 * t1)"]


def test_script_prints_the_versions_that_it_runs():
    subject = overshooting("SGD")
    finding = next(f for check in EXPLAINED_BY for f, _ in findings(subject, life("SGD"), check))
    assert 'print("torch", torch.__version__' in repro.script(subject, life("SGD"), finding)
