"""Pure functions, dressed as an optimizer of torch's: what they are given, and what becomes of their state."""

import copy
import dataclasses
import inspect
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pure
import pytest
import torch

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.play import signature, trees
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.functions import functional
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.support.lines import ClientError
from stepcheck.harness.support.usage import UsageError


def parameter(*values, dtype=torch.float32):
    p = torch.tensor(values, dtype=dtype, requires_grad=True)
    p.grad = torch.ones_like(p).detach()
    return p


class Two(NamedTuple):
    count: np.ndarray
    mu: list


@dataclasses.dataclass
class Data:
    mu: np.ndarray
    rest: dict


TREES = {
    "a list of one": ([np.ones(2)], {"state": [1.0, 1.0]}),
    "optax's": ((Two(np.array(3, np.int32), [np.ones(2)]), ()), {"count": 3, "mu": [1.0, 1.0]}),
    "two of a name": (
        (Two(np.array(1), [np.ones(2)]), Two(np.array(2), None)),
        {"0.count": 1, "mu": [1.0, 1.0], "1.count": 2},
    ),
    "a dictionary in a dataclass": (
        Data(np.zeros((2, 1)), {"t": 7, "x": 0.5, "flag": True}),
        {"mu": [[0.0], [0.0]], "t": 7, "x": 0.5, "flag": True},
    ),
    "tensors": ({"m": torch.ones(2)}, {"m": [1.0, 1.0]}),
    "nothing": ((), {}),
}


@pytest.mark.parametrize("tree, named", TREES.values(), ids=list(TREES))
def test_a_state_is_taken_to_pieces_by_name_and_put_together_again(tree, named):
    p = parameter(0.0, 0.0)
    stored = {name: trees.stored(leaf, p) for name, leaf in trees.named_leaves(tree).items()}
    assert {k: v.tolist() if torch.is_tensor(v) else v for k, v in stored.items()} == named
    again = trees.filled(tree, stored)
    assert type(again) is type(tree)
    assert str(again) == str(tree)
    # What was not kept is as it begins.
    assert str(trees.filled(tree, {"another": 1.0})) == str(tree)


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
def test_functions_step_and_their_state_is_carried(arrays):
    seen = []

    def make(lr=0.5, momentum=0.0):
        def update(gradients, state, params):
            seen.append((gradients, state, params))
            return [-lr * gradients[0]], {"n": state["n"] + 1, "m": [momentum * state["m"][0] + gradients[0]]}

        return (lambda params: {"n": 0, "m": [0 * params[0]]}), update

    cls = functional(make, arrays=arrays)
    assert list(inspect.signature(cls).parameters) == ["params", "lr", "momentum"]
    p = parameter(1.0, 2.0)
    optimizer = cls([p], lr=0.25)
    optimizer.step()
    assert p.tolist() == [0.75, 1.75]
    again = cls([p])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.param_groups[0]["lr"] = 1.0
    again.step()
    assert p.tolist() == [-0.25, 0.75]
    gradients, state, params = seen[1]
    assert isinstance(gradients[0], {"numpy": np.ndarray, "torch": torch.Tensor}[arrays])
    assert (state["n"], state["m"][0].tolist(), params[0].tolist()) == (1, [1.0, 1.0], [0.75, 1.75])
    # They are given copies.
    gradients[0][...] = params[0][...] = 9
    assert p.grad.tolist() == [1.0, 1.0]
    assert p.tolist() == [-0.25, 0.75]


def test_updates_may_be_applied_otherwise():
    cls = functional(
        lambda lr=0.5: (lambda _: (), lambda g, s, p: (g, s)), lambda params, updates: [params[0] * updates[0]]
    )
    p = parameter(3.0)
    p.grad *= 2
    cls([p]).step()
    assert p.tolist() == [6.0]


BAD = {
    "returns a parameter of shape (1, 2), which has (2,)": lambda: (lambda _: (), lambda g, s, p: ([g[0][None]], s)),
    "returns 2 arrays, where one parameter was given": lambda: (lambda _: (), lambda g, s, p: (g * 2, s)),
    "keeps something of type str in its state": lambda: (lambda _: (), lambda g, s, p: (g, {"x": "text"})),
    "makes something of type int, which is no pair": lambda: 3,
}


@pytest.mark.parametrize("told, make", BAD.items(), ids=list(BAD))
def test_what_they_must_not_return_is_told_in_a_line(told, make):
    apply = (lambda _, updates: updates) if "2 arrays" in told else None
    p = parameter(1.0, 2.0)
    with pytest.raises(ClientError) as error:
        functional(make, apply)([p]).step()
    assert told in str(error.value)
    assert p.tolist() == [1.0, 2.0]


def test_a_dtype_that_is_computed_in_another_is_unsupported_and_said():
    def single(lr=1e-3):
        return (lambda _: ()), (lambda g, s, p: ([np.float32(-lr) * g[0].astype(np.float32)], s))

    added = lambda params, updates: [params[0].astype(np.float32) + updates[0]]  # noqa: E731
    subject = class_subject(functional(single, added), "SGD")
    assert subject.dtypes == ("float32",)
    assert subject.remarks == ("unsupported: float64: it computes float32 of a parameter that is float64",)


def test_where_that_cannot_be_tried_float32_alone_is_given(monkeypatch):
    monkeypatch.setattr(signature, "apart", lambda ask: None)
    subject = class_subject(functional(pure.adam), "Adam")
    assert subject.dtypes == ("float32",)
    assert "could not be tried" in subject.remarks[0]


@pytest.mark.parametrize(
    "text, told",
    [
        ("functions:pure", "cannot import functions"),
        ("functions:pure:nothing", "pure has no nothing"),
        ("functions:no_such:adam", "cannot import no_such"),
        ("functions:pure:by_place", "takes lr by its place alone"),
        ("functions:pure:no_pair", "which is no pair of functions init and update"),
    ],
)
def test_what_makes_no_functions_is_bad_usage_in_a_line(text, told):
    with pytest.raises(UsageError) as error:
        resolve(text, "Adam")
    assert told in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def checked(name, examples, **said):
    (subject,) = resolve(f"functions:pure:{name}", "Adam")
    return Campaign(subject, Settings(examples=examples, **said)).run()


@pytest.mark.parametrize("examples", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_right_ones_pass(examples):
    result = checked("adam", examples)
    assert result.verdict == "pass", result.unexplained
    assert result.tallies["agreement"].ran
    assert result.tallies["random-state"].verdict == result.tallies["settings-kept"].verdict == "pass"
    unasked = {name for name in CHECKS if result.tallies[name].verdict == "unsupported"}
    assert {"memory-beside", "gradient-unwritten", "closure", "hooks-run-once", "malformed-state"} <= unasked


def test_wrong_ones_fail_and_their_script_needs_no_stepcheck(tmp_path):
    result = checked("wrong", 4)
    (divergence,) = result.unexplained
    assert divergence.check == "agreement"
    (tmp_path / "pure.py").write_text(inspect.getsource(pure))
    (tmp_path / "script.py").write_text(divergence.script)
    assert "stepcheck" not in divergence.script

    def fails():
        return subprocess.run(
            [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
        ).stderr

    assert "AssertionError: " in fails()
    assert " is not " in fails()
    (tmp_path / "pure.py").write_text(inspect.getsource(pure).replace("inside=True", "inside=False"))
    assert fails() == ""


def test_ones_that_draw_random_numbers_are_found_out():
    result = checked("draws", 3, only=("random-state",))
    assert result.verdict == "fail"


def of_tensors(lr=0.5):
    """Functions that want tensors of torch's, as torchopt's do."""

    def update(gradients, state, params):
        return [gradients[0].mul(-lr)], {"n": state["n"] + 1}

    return (lambda params: {"n": torch.zeros_like(params[0]).sum()}), update


def of_any(lr=0.5):
    return (lambda _: ()), (lambda gradients, state, params: ([-lr * gradients[0]], state))


@pytest.mark.parametrize(("make", "arrays"), [(of_tensors, "torch"), (of_any, "numpy")])
def test_which_arrays_they_take_is_tried(make, arrays):
    subject = class_subject(functional(make), "SGD", "functions:test:make")
    assert subject.make.arrays == arrays
    assert subject.dtypes == ("float32", "float64")
