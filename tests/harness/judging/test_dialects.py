"""Of a class that follows another convention, the report says which; of a wrong one it says none."""

import math

import pytest
import torch
from accused import accused
from right.base import Base

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.judging.dialects import Accounting, Dialects
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search import campaign
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.generate import decoder, page
from stepcheck.harness.search.settings import Settings
from stepcheck.reference import SPECS
from stepcheck.reference.dialects import dialects as reference_dialects

#: Enough to tell the conventions apart.
LIVES = 15


@pytest.fixture(autouse=True)
def _as_seen(monkeypatch):
    """What lives are made of is of no interest here: they are left as they were drawn."""
    monkeypatch.setattr(campaign, "_ATTEMPTS", 1)


class _Written(Base):
    """An optimizer that is one function of a parameter, its gradient, its state and its group."""

    def __init__(self, params, defaults, rule):
        self.update = rule
        super().__init__(params, **defaults)


def adam(divisor=None, decay="added", first="plain", corrects=True, wrong=False):
    """A class of Adam. Divisor of the average of squares, its correction and eps."""

    def rule(p, g, state, group):
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        t, (beta1, beta2), lr = state["step"], group["betas"], group["lr"]
        if decay == "added":
            g = g + group["weight_decay"] * p
        elif decay == "decoupled":
            p.mul_(1 - lr * group["weight_decay"])
        else:
            p.mul_(1 - group["weight_decay"])
        correction1, correction2 = 1 - beta1**t, 1 - beta2**t
        if first == "debiased":
            state["exp_avg"].mul_(1 - beta1 ** (t - 1))
        state["exp_avg"].mul_(beta1).add_(g, alpha=1 - beta1)
        if first == "debiased":
            state["exp_avg"].div_(correction1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        if not corrects:
            correction1 = correction2 = 1.0
        m = state["exp_avg"] if first == "debiased" else state["exp_avg"] / correction1
        v = state["exp_avg_sq"]
        below = (v / correction2).sqrt() + group["eps"] if divisor is None else divisor(v, correction2, group["eps"])
        p.sub_(lr * m / below * (1.5 if wrong else 1))

    class Adam(_Written):
        def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
            super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, rule)

    return Adam


def rmsprop(params, lr=1e-2, alpha=0.99, eps=1e-8, momentum=0.0):
    """RMSprop as TensorFlow has it."""

    def rule(p, g, state, group):
        if not state:
            state["square_avg"], state["momentum_buffer"] = torch.ones_like(p), torch.zeros_like(p)
        state["square_avg"].mul_(group["alpha"]).addcmul_(g, g, value=1 - group["alpha"])
        update = group["lr"] * g / (state["square_avg"] + group["eps"]).sqrt()
        p.sub_(state["momentum_buffer"].mul_(group["momentum"]).add_(update))

    return _Written(params, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum}, rule)


def centered(params, lr=1e-2, alpha=0.99, eps=1e-8, centered=False):
    """RMSprop with eps inside the root, beside a variance where it is centered."""

    def rule(p, g, state, group):
        if not state:
            state["square_avg"], state["grad_avg"] = torch.zeros_like(p), torch.zeros_like(p)
        state["square_avg"].mul_(group["alpha"]).addcmul_(g, g, value=1 - group["alpha"])
        state["grad_avg"].mul_(group["alpha"]).add_(g, alpha=1 - group["alpha"])
        variance = state["square_avg"] - state["grad_avg"] ** 2 if group["centered"] else state["square_avg"]
        p.sub_(group["lr"] * g / (variance + group["eps"]).sqrt())

    return _Written(params, {"lr": lr, "alpha": alpha, "eps": eps, "centered": centered}, rule)


def adamax(params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8):
    """Adamax as Keras and optax have it."""

    def rule(p, g, state, group):
        beta1, beta2 = group["betas"]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(p), exp_inf=torch.zeros_like(p))
        state["step"] += 1
        state["exp_avg"].mul_(beta1).add_(g, alpha=1 - beta1)
        state["exp_inf"] = torch.maximum(beta2 * state["exp_inf"], g.abs())
        step = group["lr"] / (1 - beta1 ** state["step"])
        p.sub_(step * state["exp_avg"] / (state["exp_inf"] + group["eps"]))

    return _Written(params, {"lr": lr, "betas": betas, "eps": eps}, rule)


def sgd(start):
    """SGD with the learning rate in its momentum, or a momentum that starts at zero."""

    def rule(p, g, state, group):
        scale = group["lr"] if start == "lr" else 1.0
        if not group["momentum"]:
            p.sub_(group["lr"] * g)
            return
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        state["momentum_buffer"].mul_(group["momentum"]).add_(g, alpha=(1 - group["dampening"]) * scale)
        p.sub_(state["momentum_buffer"] if start == "lr" else group["lr"] * state["momentum_buffer"])

    def make(params, lr=1e-3, momentum=0.9, dampening=0.0):
        return _Written(params, {"lr": lr, "momentum": momentum, "dampening": dampening}, rule)

    def undamped(params, lr=1e-3, momentum=0.9):
        return _Written(params, {"lr": lr, "momentum": momentum, "dampening": 0.0}, rule)

    return undamped if start == "lr" else make


def _counting(p, g, state, group):
    if not state:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
    t, (beta1, beta2) = group.get("taken", 0) + 1, group["betas"]
    state["exp_avg"].mul_(beta1).add_(g, alpha=1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
    below = (state["exp_avg_sq"] / (1 - beta2**t)).sqrt() + group["eps"]
    p.sub_(group["lr"] / (1 - beta1**t) * state["exp_avg"] / below)


class OfTheGroup(_Written):
    """Adam whose count is the group's."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps}, _counting)

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            group["taken"] = group.get("taken", 0) + 1
        return loss


def other_names(params, learning_rate=0.01, beta1=0.8, beta2=0.99, epsilon=1e-6):
    return adam()(params, learning_rate, (beta1, beta2), epsilon)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("make", "like", "words"),
    [
        (adam(lambda v, c, eps: (v.sqrt() + eps) / math.sqrt(c)), "Adam", "eps beside the root of the average before"),
        (adam(lambda v, c, eps: (v / c + eps).sqrt()), "Adam", "eps inside the root, beside the corrected average"),
        (adam(lambda v, c, eps: (v + eps).sqrt() / math.sqrt(c)), "Adam", "eps inside the root, beside the average before"),
        (adam(decay="decoupled"), "Adam", "weight decay decoupled"),
        (adam(decay="unscaled"), "Adam", "not scaled by lr"),
        (adam(), "AdamW", "weight decay added to the gradient"),
        (adam(first="debiased"), "Adam", "an exp_avg that is kept debiased"),
        (adam(corrects=False), "Adam", "no bias correction"),
        (adam(lambda v, c, eps: (v / c + eps).sqrt(), decay="decoupled"), "Adam", ", and weight decay decoupled from the gradient, p - lr * weight_decay * p"),
        (rmsprop, "RMSprop", "eps inside the root, and averages of squares that start at 1, and lr inside the momentum"),
        (sgd("lr"), "SGD", "lr inside the momentum"),
        (sgd("zero"), "SGD", "a momentum that starts at 0"),
        (OfTheGroup, "Adam", "a step that is counted for the whole group; if it is meant, declare it: --dialect step-by-group"),
        (other_names, "Adam", "lr=0.01 (learning_rate?), betas=(0.8, 0.99) (beta1, beta2?), eps=1e-06 (epsilon?)"),
    ],
)  # fmt: skip
def test_the_convention_is_told_in_one_line(make, like, words):
    told = _told(make, like)
    assert told.startswith("another convention? Judged once more, "), told
    assert words in told


EPS_INSIDE = adam(lambda v, c, eps: (v / c + eps).sqrt())


in_each_dialect = pytest.mark.parametrize(
    ("make", "like"),
    [
        (adam(lambda v, c, eps: (v.sqrt() + eps) / math.sqrt(c)), "Adam[eps-beside-uncorrected-root]"),
        (EPS_INSIDE, "Adam[eps-inside-root]"),
        (adam(lambda v, c, eps: (v + eps).sqrt() / math.sqrt(c)), "Adam[eps-inside-uncorrected-root]"),
        (adam(decay="decoupled"), "Adam[decoupled-decay]"),
        (adam(decay="unscaled"), "Adam[unscaled-decay]"),
        (adam(), "AdamW[coupled-decay]"),
        (adam(first="debiased"), "Adam[debiased-exp-avg]"),
        (adam(corrects=False), "Adam[uncorrected-bias]"),
        (adam(lambda v, c, eps: (v / c + eps).sqrt(), decay="decoupled"), "Adam[eps-inside-root, decoupled-decay]"),
        (rmsprop, "RMSprop[eps-inside-root, squares-from-one, lr-inside-momentum]"),
        (centered, "RMSprop[eps-inside-root]"),
        (adamax, "Adamax[eps-beside-norm]"),
        (sgd("lr"), "SGD[lr-inside-momentum]"),
        (sgd("zero"), "SGD[momentum-from-zero]"),
        (OfTheGroup, "Adam[step-by-group]"),
    ],
)


@pytest.mark.sampled(3)
@in_each_dialect
def test_a_class_in_a_dialect_conforms_and_one_of_torch_does_not(make, like):
    """In a few lives; the first that deviates is the last one."""
    result = Campaign(class_subject(make, like, "tests:Class"), Settings(examples=LIVES, only=("agreement",))).run()
    assert (result.verdict, result.like) == ("pass", like), result.divergences
    assert accused(_torchs(like), like, only=("agreement",), until=("agreement",))[0] == {"agreement"}


@pytest.mark.sampled(12)
@in_each_dialect
def test_who_declares_a_dialect_is_held_to_it(make, like):
    """A class in it conforms; the reference itself does not, and that is told."""
    result = Campaign(class_subject(make, like, "tests:Class"), Settings(examples=40, only=("agreement",))).run()
    assert result.verdict == "pass", result.divergences[0].life
    assert result.like == like
    assert result.undetermined < 0.1 * result.elements
    torchs = class_subject(_torchs(like), like)
    assert Campaign(torchs, Settings(examples=LIVES, only=("agreement",))).run().verdict == "fail"


def _torchs(like):
    return getattr(torch.optim, like.partition("[")[0])


def test_one_that_is_wrong_beside_its_dialect_is_refused_and_told_the_rest():
    both = adam(lambda v, c, eps: (v / c + eps).sqrt(), decay="decoupled")
    told = _told(both, "Adam[eps-inside-root]")
    assert told.endswith("; if it is meant, declare it: --dialect decoupled-decay"), told
    wrong = adam(lambda v, c, eps: (v / c + eps).sqrt() + eps)
    assert "another convention" not in _told(wrong, "Adam[eps-inside-root]")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("make", [adam(wrong=True), adam(lambda v, c, eps: (v / c).sqrt() + 2 * eps)])
def test_of_a_wrong_class_none_is_told(make):
    assert "another convention" not in _told(make, "Adam")


def test_what_may_be_called_otherwise_is_asked():
    def wrong(params, learning_rate=0.01):
        return adam(wrong=True)(params, learning_rate)

    told = _told(wrong, "Adam")
    assert told.startswith("judged with lr=0.001, betas=(0.9, 0.999), eps=1e-08")
    assert "is it called something else there as learning_rate? Then declare it: --rename" in told


def now_and_then(decay):
    """Adam with decoupled decay; where the decay is large it is wrong in another way as well."""
    right, wrong = adam(decay=decay), adam(decay=decay, wrong=True)

    class Adam(right):
        def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
            super().__init__(params, lr, betas, eps, weight_decay)
            self.other = wrong([torch.zeros(1)]).update

        def step(self, closure=None):
            mine = self.update
            self.update = lambda p, g, s, group: (self.other if group["weight_decay"] > 2 else mine)(p, g, s, group)
            try:
                return super().step(closure)
            finally:
                self.update = mine

    return Adam


def test_of_lives_that_no_convention_accounts_for_it_is_told_how_many_they_are(monkeypatch):
    """And where they deviate all the same. That no two together account for more takes long to find out."""
    monkeypatch.setattr("stepcheck.harness.judging.dialects._TOGETHER", 1)
    subject = class_subject(now_and_then("decoupled"), "Adam", "tests:Class")
    dialects, decode = Dialects(subject), decoder(subject, ("float32", "float64"))
    for data in page(b"dialects")[:40]:
        evidence = Evidence(subject, decode(data), ("agreement",))
        dialects.keep(evidence.recording, evidence.judgement, deviates=bool(evidence.judgement.deviations))
    found = dialects.found()
    assert [d.name for d in found.chosen] == ["decoupled-decay"]
    assert 10 < found.lives < found.every
    assert 0 < len(found.missed) <= found.lives / 2
    assert set(found.missed) == {"parameter"}
    assert dialects.told() == [found.words]


def test_the_line_says_what_was_judged():
    decoupled = next(d for d in reference_dialects(SPECS["Adam"]) if d.name == "decoupled-decay")

    def line(lives, missed, every):
        return Accounting((decoupled,), lives, missed, every).words.removeprefix(
            "another convention? Judged once more, "
        )

    meant = "; if it is meant, declare it: --dialect decoupled-decay"
    agrees = f"with {decoupled.words}"
    assert line(1, (), 1) == f"the one life that deviates agrees {agrees}{meant}"
    assert line(10, (), 10) == f"of 10 lives that deviate, 10 agree {agrees}{meant}"
    assert line(60, (), 71) == f"of 60 lives that deviate (71 in all), 60 agree {agrees}{meant}"
    assert (
        line(9, ("step",), 9)
        == f"of 9 lives that deviate, 8 agree {agrees}; the other one deviates from that too, first in step{meant}"
    )
    told = line(60, ("parameter", "step", "parameter"), 60)
    assert (
        told
        == f"of 60 lives that deviate, 57 agree {agrees}; the other 3 deviate from that too, first in the parameter (2), step (1){meant}"
    )


def test_a_right_class_is_told_nothing():
    result = Campaign(class_subject(adam(), "Adam", "tests:Adam"), Settings(examples=20, only=("agreement",))).run()
    assert result.verdict == "pass"


def _told(make, like):
    result = Campaign(class_subject(make, like, "tests:Class"), Settings(examples=LIVES, only=("agreement",))).run()
    assert result.verdict == "fail"
    return result.divergences[0].life[-1]
