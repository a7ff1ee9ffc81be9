"""A program that speaks JSON lines, dressed as an optimizer of torch's: what is sent, what is stored, and what it cannot do."""

import copy
import json
import shlex
import sys
import textwrap

import numpy as np
import pytest
import torch
from processes import BAD, EXAMPLES, NODE, SGD, command, written

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.shapes import process
from stepcheck.harness.play.subjects import asked_for, class_subject
from stepcheck.harness.support.lines import ClientError, RefusedError
from stepcheck.harness.support.usage import UsageError

#: Answers the gradient as parameter, and all that it was sent as a text.
ECHOES = 'say({"parameter": step["gradient"], "state": step["state"] or {"flat": step["gradient"]}})'
ECHOES_IN_JAVASCRIPT = """\
import { createInterface } from "node:readline";
const written = (x) => (Object.is(x, -0) ? "-0" : Number.isFinite(x) ? x : String(x));
for await (const line of createInterface({ input: process.stdin })) {
  const { hello, step } = JSON.parse(line);
  const parameter = step?.gradient.map(Number).map(written);
  console.log(JSON.stringify(hello ? { options: {} } : { parameter, state: { flat: parameter } }));
}
"""
NUMBERS = [
    0.0,
    -0.0,
    1 / 3,
    0.1,
    -1e-3,
    5e-324,
    2.0**-1074 * 3,
    1.7976931348623157e308,
    np.inf,
    -np.inf,
    np.nan,
    2.0**53 + 2,
    123456789.0,
]


@pytest.fixture(params=["python", pytest.param("javascript", marks=pytest.mark.skipif(not NODE, reason="no node"))])
def echoing(request, tmp_path):
    """The class of a program that answers the gradient as parameter."""
    if request.param == "python":
        return process(written(tmp_path, ECHOES))
    file = tmp_path / "echoes.mjs"
    file.write_text(ECHOES_IN_JAVASCRIPT)
    return process(command(file))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_go_through_as_they_are(dtype, echoing):
    gradient = torch.tensor(NUMBERS, dtype=torch.float64).to(dtype)
    p = torch.zeros(len(NUMBERS), dtype=dtype, requires_grad=True)
    p.grad = gradient
    optimizer = echoing([p])
    optimizer.step()
    assert p.detach().numpy().tobytes() == gradient.numpy().tobytes()
    assert optimizer.state[p]["flat"].numpy().tobytes() == gradient.numpy().tobytes()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3), (3, 1, 2), (0, 2)])
def test_elements_are_sent_row_by_row_whatever_the_strides_and_stored_so(shape, echoing):
    p = torch.zeros(shape[::-1], dtype=torch.float64).movedim(tuple(range(len(shape))), tuple(range(len(shape)))[::-1])
    p.requires_grad_()
    assert p.shape == shape
    p.grad = torch.arange(p.numel(), dtype=torch.float64).reshape(shape)
    optimizer = echoing([p])
    optimizer.step()
    assert torch.equal(p.detach(), p.grad)
    assert torch.equal(optimizer.state[p]["flat"], p.grad)


def test_a_step_is_sent_with_all_that_it_needs_and_its_state_comes_back(tmp_path):
    tells = """\
state = {"n": 3, "x": 0.5, "rows": [[1, 2.5], [3, "Infinity"]], "m": [1, 2], "flag": True, "none": None, "nan": "NaN"}
open({file!r}, "a").write(json.dumps(step) + "\\n")
say({"parameter": [0.5, "-inf"], "state": state})
"""
    file = tmp_path / "asked"
    cls = process(
        written(tmp_path, tells.replace("{file!r}", repr(str(file))), {"options": {"lr": 1, "betas": [0.5, 1]}})
    )
    p = torch.tensor([1.0, torch.nan], requires_grad=True)
    optimizer = cls([p], lr=float("inf"))
    for _ in range(2):
        p.grad = torch.tensor([2.0, -torch.inf])
        optimizer.step()
    first, second = map(json.loads, file.read_text().splitlines())
    assert first == {
        "options": {"lr": "Infinity", "betas": [0.5, 1]}, "parameter": [1.0, "NaN"], "gradient": [2.0, "-Infinity"],
        "state": None, "shape": [2], "dtype": "float32",
    }  # fmt: skip
    assert second["parameter"] == [0.5, "-Infinity"]
    assert second["state"] == {
        "n": 3, "x": 0.5, "rows": [[1, 2.5], [3, "Infinity"]], "m": [1, 2], "flag": True, "none": None, "nan": "NaN",
    }  # fmt: skip
    kept = optimizer.state[p]
    assert (kept["rows"].shape, kept["rows"].dtype, kept["m"].shape) == ((2, 2), torch.float32, (2,))


def test_what_is_no_float32_is_rounded_when_it_is_stored(tmp_path):
    cls = process(written(tmp_path, 'say({"parameter": [1 / 3], "state": {"m": [1e300]}})'))
    p = torch.zeros(1, requires_grad=True)
    p.grad = torch.ones(1)
    optimizer = cls([p])
    optimizer.step()
    assert p.item() == np.float32(1 / 3)
    assert optimizer.state[p]["m"].item() == np.inf


@pytest.mark.parametrize("does, told", BAD.values(), ids=list(BAD))
def test_what_is_no_answer_raises_one_line_and_changes_nothing(does, told, tmp_path):
    right, wrong = (textwrap.indent(lines, "    ") for lines in (SGD, does))
    cls = process(written(tmp_path, f'if step["shape"] == [2]:\n{right}\nelse:\n{wrong}'))
    pair, one = (torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (2, 1))
    optimizer = cls([pair, one], lr=0.5)
    for p in (pair, one):
        p.grad = torch.ones_like(p)
    with pytest.raises(ClientError) as error:
        optimizer.step()
    assert f"{type(error.value).__name__}: {error.value}" == told
    assert pair.tolist() == [0.0, 0.0]
    one.grad = None
    optimizer.step()  # one that died is started anew
    assert pair.tolist() == [-0.5, -0.5]


def test_what_torch_has_an_optimizer_has(tmp_path):
    cls = process(written(tmp_path, ECHOES))
    p = torch.zeros(2, requires_grad=True)
    optimizer = cls([{"params": [p], "lr": 0.5}], lr=0.25)
    p.grad = torch.ones(2)
    assert optimizer.step(lambda: 7.0) == 7.0
    again = cls([p])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert again.param_groups[0]["lr"] == 0.5
    assert torch.equal(again.state[p]["flat"], p.grad)
    with pytest.raises(TypeError, match="no option 'eps'"):
        cls([p], eps=1.0)
    p.grad = torch.ones(2).to_sparse()
    with pytest.raises(NotImplementedError):
        again.step()


@pytest.mark.parametrize(
    "hello, told",
    [
        ({}, "answers no object as options, but {}"),
        ({"options": [1]}, "answers no object as options"),
        ({"options": {"a b": 1}}, "has an option 'a b', which is no name"),
        ({"options": {"params": 1}}, "has an option 'params', which is no name"),
        ({"options": {"lr": {}}}, "has an option lr of {}; it is a number, a flag, a text or a list"),
        ({"options": {}, "dtypes": ["float8"]}, 'answers ["float8"] as dtypes; there is float32'),
        ({"options": {}, "validates": 1}, "answers 1 as validates"),
        ({"error": "not\nnow"}, " not now;"),
    ],
)
def test_one_that_does_not_say_what_it_is_is_bad_usage(hello, told, tmp_path):
    with pytest.raises(UsageError) as error:
        process(written(tmp_path, "pass", hello))
    assert told in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_its_dtypes_are_those_that_it_says():
    subject = class_subject(process(command(EXAMPLES / "adam.py")), "Adam")
    assert subject.dtypes == ("float32", "float64")
    assert subject.name == f"process:{shlex.join([sys.executable, str(EXAMPLES / 'adam.py')])}"
    assert subject.missing_options == ("amsgrad", "decoupled_weight_decay")


def test_it_may_look_at_options_before_it_takes_steps(tmp_path):
    looks = """\
if "options" in asked:
    return say({"error": "lr must not be 0"} if asked["options"]["lr"] == 0 else {})
"""
    cls = process(written(tmp_path, looks + SGD, {"options": {"lr": 0.5}, "validates": True}))
    p = torch.zeros(1, requires_grad=True)
    with pytest.raises(RefusedError, match="lr must not be 0"):
        cls([p], lr=0.0)
    optimizer = cls([p])
    with pytest.raises(ValueError, match="lr must not be 0"):
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0})
    assert len(optimizer.param_groups) == 1
    # So its author says what it does not take; that is no failure.
    subject = class_subject(cls, "SGD")
    assert subject.accepts({"lr": 0.25})
    assert not subject.accepts({"lr": 0.0})


def test_what_it_cannot_do_is_unsupported_and_said(tmp_path):
    cls = process(command(EXAMPLES / "adam.py"))
    assert "takes no closure" in class_subject(cls, "LBFGS").unsupported
    assert "takes no sparse gradients" in class_subject(cls, "SparseAdam").unsupported
    subject = class_subject(cls, "Adam")
    for asked in ({"sparse": True, "tensor_lr": False}, {"sparse": False, "tensor_lr": True}):
        with pytest.raises(UsageError, match="a process takes no"):
            asked_for(subject, **asked)
    assert subject.spellings == ("plain",)  # JSON has one
    asked = [name for name, check in CHECKS.items() if not check.without_meaning(subject)]
    assert asked == [
        "completes", "save-load-continue", "agreement", "groups-independent", "order-of-parameters", "maximize-mirrors",
        "option-effect",
    ]  # fmt: skip


def test_a_label_tells_two_declarations_apart_and_is_no_part_of_the_command():
    text = f"process:{command(EXAMPLES / 'adam.py')}[decayed]"
    (subject,) = resolve(text, "Adam")
    assert subject.name == text
    assert subject.shape.command == (sys.executable, str(EXAMPLES / "adam.py"))


def test_a_class_in_a_module_that_is_called_like_a_shape(tmp_path, monkeypatch):
    for name in ("process", "functions"):
        (tmp_path / f"{name}.py").write_text("import torch\n\n\nclass Mine(torch.optim.SGD):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("process", "functions"):
        (subject,) = resolve(f"{name}:Mine", "SGD")
        assert subject.shape is None
        assert subject.make.__module__ == name
        del sys.modules[name]
