"""The fast optimizers as subjects: all of them, with no excuse, and a wrong rule among them is found."""

import dataclasses

import pytest
import torch

from stepcheck import fast
from stepcheck.fast import interpreted, rules
from stepcheck.fast.rules import sqrt
from stepcheck.harness.known.ledger import LEDGER
from stepcheck.harness.play import resume
from stepcheck.harness.play.families import FAST, fast_subject, no_cuda, resolve
from stepcheck.harness.play.profiles import fast_profile
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search import campaign
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.support.usage import UsageError
from stepcheck.reference import SPECS


def test_there_is_one_for_each_reference():
    modes = ["", "[compensated]", "[triton]", *([] if no_cuda() else ["[cuda]"])]
    expected = [f"fast:{name}{mode}" for mode in modes for name in SPECS if mode[1:-1] in FAST.modes[name]]
    assert [s.name for s in resolve("fast")] == expected
    assert [name for name in SPECS if "compensated" not in FAST.modes[name]] == ["Adafactor", "LBFGS", "Muon"]
    assert resolve("fast:Adam") == [fast_subject("Adam")]
    assert resolve("fast:Adam[triton]") == [fast_subject("Adam", "triton")]
    assert resolve("fast:Adam[cuda]") == [fast_subject("Adam", "cuda")]
    assert {name for name in fast.__all__ if name != "Served"} == set(SPECS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fast:Foo", "no reference named 'Foo'"),
        ("fast:", "name an optimizer"),
        ("fast:Adam[x]", "has the modes compensated, triton, cuda, or none"),
        ("fast:Muon[compensated]", "has the modes triton, cuda, or none"),
    ],
)
def test_what_there_is_not_is_told(text, said):
    with pytest.raises(UsageError, match=said.replace("'", ".")):
        resolve(text)


@pytest.mark.parametrize("name, mode", [(name, mode) for name in SPECS for mode in FAST.modes[name] if mode != "cuda"])
def test_the_ledger_excuses_none_of_them(name, mode):
    subject = fast_subject(name, mode)
    assert not any(entry.concerns(subject, subject.make) for entry in LEDGER.values())
    assert issubclass(subject.make, getattr(torch.optim, name))


def _eps_inside(
    p, g, square_avg, grad_avg, momentum_buffer, sign, weight_decay, alpha, weight, eps, momentum, centered, lr
):
    g = sign * g
    g = g + weight_decay * p if weight_decay != 0 else g
    square_avg = alpha * square_avg + weight * g * g
    grad_avg = alpha * grad_avg + weight * g
    variance = square_avg - grad_avg * grad_avg if centered != 0 else square_avg
    denom = sqrt(variance + eps)
    momentum_buffer = momentum * momentum_buffer + g / denom
    p = p - lr * momentum_buffer if momentum != 0 else p - lr * g / denom
    return p, square_avg, grad_avg, momentum_buffer


def _uncounted(step, lr, rho, eps, weight_decay, maximize):
    return step, 1.0 - 2.0 * maximize, weight_decay, rho, 1.0 - rho, eps, lr


class EpsInside(fast.RMSprop):
    """A kernel of a wrong rule."""

    rule = dataclasses.replace(rules.RMSPROP, name="eps_inside", update=_eps_inside)


class Uncounted(fast.Adadelta):
    """Never counts a step."""

    rule = dataclasses.replace(rules.ADADELTA, name="uncounted", prepare=_uncounted)


class EpsInsideOnCuda(EpsInside):
    """The same, as its kernel for CUDA."""

    _interpreted = True


class UncountedOnCuda(Uncounted):
    """The same, as its kernel for CUDA."""

    _interpreted = True


@pytest.mark.sampled(3)  # on a commit, one rule of each kind, of which one is a kernel for CUDA
@pytest.mark.parametrize(
    ("make", "like", "fields"),
    [
        (EpsInside, "RMSprop", {"parameter", "momentum_buffer"}),
        (Uncounted, "Adadelta", {"step"}),
        (EpsInsideOnCuda, "RMSprop", {"parameter", "momentum_buffer"}),
        (UncountedOnCuda, "Adadelta", {"step"}),
    ],
)
def test_a_wrong_rule_is_found(make, like, fields, monkeypatch):
    monkeypatch.setattr(campaign, "_ATTEMPTS", 10)  # lives take long to shrink where they are interpreted
    monkeypatch.setattr(resume, "AGED_BY", 8)  # and to grow old
    subject = class_subject(make, like, profile=fast_subject(like).profile)
    result = Campaign(subject, Settings(examples=12, dtypes=("float32",), only=("agreement",))).run()
    assert result.verdict == "fail", result.error
    assert any(d.cause in fields for d in result.divergences), [d.cause for d in result.divergences]


#: What may go wrong with the bits that a narrow format loses, in which field, done to the state after each step.
LOST = {
    "forgotten": ("compensation", lambda state: state["compensation"].zero_()),
    "turned": ("compensation", lambda state: state["compensation"].neg_()),
    "a hundredth too large": ("compensation", lambda state: state["compensation"].mul_(1 + 2.0**-7)),
    "of an average": ("exp_avg_sq_compensation", lambda state: state["exp_avg_sq_compensation"].zero_()),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("what", LOST)
def test_lost_bits_that_get_lost_are_found(what):
    field, spoil = LOST[what]

    class Spoilt(fast.AdamW):
        def step(self, closure=None):
            loss = super().step(closure)
            for state in self.state.values():
                if "compensation" in state:
                    spoil(state)
            return loss

    subject = dataclasses.replace(fast_subject("AdamW", "compensated"), make=Spoilt, prepare=tuple, cost=1)
    result = Campaign(subject, Settings(examples=16, only=("agreement",))).run()
    assert result.verdict == "fail", result.error
    (found,) = result.divergences
    assert field in found.cause
    assert "together" in found.summary


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_kernels_for_cuda_carry_lost_bits(name):
    subject = dataclasses.replace(
        fast_subject(name, "compensated"),
        make=getattr(interpreted, name),
        computes=fast_profile(name, "triton"),
        cost=1,
    )
    result = Campaign(subject, Settings(examples=6)).run()
    assert result.verdict == "pass", [d.summary for d in result.divergences]
