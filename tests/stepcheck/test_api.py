"""The Python door."""

import functools
import re
import subprocess
import sys

import pytest
import torch

from stepcheck import Divergences, check_optimizer, parametrize_with_checks
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.support.usage import UsageError


class NoBiasCorrection(torch.optim.Adam):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p in self.state:
                    self.state[p]["step"].fill_(1e4)
        return super().step(closure)


def without_foreach(params, lr=1e-3, momentum=0.0):
    return torch.optim.SGD(params, lr=lr, momentum=momentum, foreach=False)


def test_a_right_optimizer_passes_and_missing_options_are_told(tmp_path):
    report = check_optimizer(without_foreach, like="SGD", examples=60, out=tmp_path)
    report.raise_on_divergence()
    assert report.verdict == "pass"
    # Four options are missing; and with them, two checks have no meaning for this one.
    asked = [t for t in report.result.tallies.values() if t.check not in ("maximize-mirrors", "refuses-invalid")]
    assert {t.unsupported for t in asked} == {4}
    assert "dampening, weight_decay, nesterov, maximize" in report.result.notes[0]


def test_a_wrong_one_raises_with_life_replay_and_script(tmp_path):
    report = check_optimizer(NoBiasCorrection, like="Adam", examples=25, out=tmp_path)
    with pytest.raises(Divergences) as raised:
        report.raise_on_divergence()
    message = str(raised.value)
    assert "fails agreement" in message
    assert "stepcheck replay" in message
    told = [*report.divergences, *report.result.known]
    assert len(list(tmp_path.rglob("*.py"))) == len(told) > len(report.divergences) >= 1


@pytest.mark.parametrize("said", [{"like": "Adam", "dialects": ["decoupled-decay"]}, {"like": "Adam[decoupled-decay]"}])
def test_a_dialect_can_be_declared(said, tmp_path):
    def decoupled(params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        return torch.optim.AdamW(params, lr, betas, eps, weight_decay)

    report = check_optimizer(decoupled, **said, examples=20, only=["agreement"], out=tmp_path)
    assert (report.verdict, report.result.like) == ("pass", "Adam[decoupled-decay]")
    undeclared = check_optimizer(decoupled, like="Adam", examples=20, only=["agreement"], first=True, out=tmp_path)
    assert undeclared.verdict == "fail"


def test_first_is_told_at_once(tmp_path):
    report = check_optimizer(NoBiasCorrection, like="Adam", first=True, out=tmp_path)
    assert len(report.divergences) == 1
    assert report.result.traces < 40


@pytest.mark.parametrize("patience", [0, -1.0, float("nan"), float("inf")])
def test_patience_is_a_number_of_seconds(patience, tmp_path):
    with pytest.raises(UsageError, match="patience"):
        check_optimizer(without_foreach, like="SGD", patience=patience, out=tmp_path)


class Unsayable(type):
    def __repr__(cls):
        raise RuntimeError("it has no repr")


class UnsayableError(Exception):
    def __str__(self):
        raise RuntimeError("it has no str")

    __repr__ = __str__


class Raises(torch.optim.SGD, metaclass=Unsayable):
    def __repr__(self):
        raise RuntimeError("it has no repr")

    def step(self, closure=None):
        raise UnsayableError


class ReturnsUnsayable(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        return UnsayableError()


class StrangelyCalled(torch.optim.SGD):
    def step(self, closure=None):
        raise KeyError("always")


StrangelyCalled.__qualname__ = 'two\nlines, "quoted"'
StrangelyCalled.__module__ = None


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        (Raises, "raises UnsayableError"),
        (functools.partial(Raises, lr=0.1), "raises UnsayableError"),
        (ReturnsUnsayable, "returns (UnsayableError that cannot be shown)"),
        (StrangelyCalled, "raises KeyError"),
    ],
)
def test_what_cannot_be_named_or_shown_is_told_all_the_same(optimizer, told, tmp_path):
    report = check_optimizer(optimizer, like="SGD", first=True, out=tmp_path)
    assert report.verdict == "fail"
    assert not report.result.error
    with pytest.raises(Divergences) as raised:
        report.raise_on_divergence()
    assert told in str(raised.value)


def test_what_was_not_checked_is_not_green(tmp_path):
    report = check_optimizer(without_foreach, like="SGD", examples=1, only=("hooks-run-once",), out=tmp_path)
    with pytest.raises(Divergences, match="hooks-run-once"):
        report.raise_on_divergence()


@pytest.mark.parametrize(
    "arguments", [{"like": "Foo"}, {"like": "SGD", "only": ("nothing",)}, {"like": "SGD", "dtypes": ("int8",)}]
)
def test_what_does_not_exist_is_refused(arguments, tmp_path):
    with pytest.raises(UsageError):
        check_optimizer(without_foreach, examples=1, out=tmp_path, **arguments)


@parametrize_with_checks({"sgd": (without_foreach, "SGD")}, examples=60)
def test_parametrized(check):
    check()


def test_parametrize_makes_a_test_of_each_check():
    mark = parametrize_with_checks({"sgd": (without_foreach, "SGD")})
    assert [p.id for p in mark.args[1]] == [f"sgd-{name}" for name in CHECKS]


def test_importing_the_package_or_the_references_does_not_import_torch():
    code = "import sys, stepcheck, stepcheck.reference; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def fixed(params):
    return torch.optim.SGD(params, lr=1e-3)


def test_sparse_gradients_and_tensor_rates_are_given_to_who_asks(tmp_path):
    def features(**asked):
        report = check_optimizer(torch.optim.SGD, "SGD", examples=40, only=["agreement"], out=tmp_path, **asked)
        assert report.verdict == "pass"
        return {"sparse", "tensor_option"} & report.result.features.keys()

    assert features() == set()
    assert features(sparse=True) == {"sparse"}
    assert features(tensor_lr=True) == {"tensor_option"}
    with pytest.raises(UsageError, match=r"Adam gives sparse gradients no meaning, .*: ask for none"):
        check_optimizer(torch.optim.Adam, "Adam", sparse=True)
    with pytest.raises(UsageError, match="no option lr that could be a tensor: name a factory"):
        check_optimizer(fixed, "SGD", tensor_lr=True)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"like": torch.optim.Adam}, "is no reference: name one, such as 'Adam'"),
        ({"like": "Adam", "names": {"lr": 3}}, "names: lr must be a name"),
        ({"like": "Adam", "dialects": "nothing"}, "Adam has no dialect 'nothing'"),
        ({"like": "Adam", "dtypes": "int8"}, "no dtype named 'int8'"),
        ({"like": "Adam", "only": "nothing"}, "no check named 'nothing'"),
    ],
)
def test_what_is_said_wrongly_is_told_in_a_line(said, told):
    with pytest.raises(UsageError, match=re.escape(told)) as raised:
        check_optimizer(torch.optim.Adam, examples=1, **said)
    assert "\n" not in str(raised.value)
