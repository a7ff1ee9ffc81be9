"""Signatures of every kind: subsets of the options, other names, other defaults, options refused."""

import functools
import inspect
from dataclasses import asdict, dataclass

import torch

from .base import Base, adam, newton_schulz, ratio_of, right, rmsprop, sgd
from .orders import BroadcastAdafactor, DirectionASGD, OrderedNAdam
from .precisions import ListLBFGS, WideMuon


@right("SGD")
class OnlyRate(Base):
    """Has no option but ``lr``; what it lacks has torch's default, nothing."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr=lr)

    def update(self, p, g, state, group):
        p.sub_(g, alpha=group["lr"])


@right("SGD")
class RequiredRate(Base):
    """``lr`` has no default, as in torch before 2.2."""

    def __init__(self, params, lr, momentum=0.0):
        super().__init__(params, lr=lr, momentum=momentum)

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"])


@right("SGD")
class NoRate(Base):
    """Takes parameters alone; the rate is torch's default, and stands in the group for schedules."""

    def __init__(self, params):
        super().__init__(params, lr=1e-3)

    def update(self, p, g, state, group):
        p.sub_(g, alpha=group["lr"])


@right("Adam")
class FixedAdam(Base):
    """Takes nothing but parameters and keeps no option in its groups: all are constants of the code, torch's defaults."""

    def __init__(self, params):
        super().__init__(params)

    def update(self, p, g, state, group):
        adam(p, g, state)


@right("Adam")
class RateAndBetas(Base):
    """``lr`` and ``betas``; eps is a constant."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999)):
        super().__init__(params, lr=lr, betas=betas)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"])


@right("SGD")
class PositionalOnly(Base):
    """All of its arguments are positional only."""

    def __init__(self, params, lr=1e-3, momentum=0.0, /):
        super().__init__(params, lr=lr, momentum=momentum)

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"])


@right("Adam")
class RatePositional(Base):
    """``lr`` is positional only, the others are keywords."""

    def __init__(self, params, lr=1e-3, /, *, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"])


@right("AdamW")
class KeywordsOnly(Base):
    """All but the parameters are keywords only."""

    def __init__(self, params, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"], decoupled=True)


@right("RMSprop")
class ParametersByKeyword(Base):
    """The parameters come first under another name, as in many old repositories."""

    def __init__(self, parameters, lr=1e-2, alpha=0.99, eps=1e-8):
        super().__init__(parameters, lr=lr, alpha=alpha, eps=eps)

    def update(self, p, g, state, group):
        rmsprop(p, g, state, group["lr"], group["alpha"], group["eps"])


@right("SGD")
class SwallowsModes(Base):
    """Names every option that matters and swallows what selects an implementation (foreach, fused, ...)."""

    def __init__(
        self,
        params,
        lr=1e-3,
        momentum=0.0,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
        maximize=False,
        **unused,
    ):
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
        )

    def update(self, p, g, state, group):
        sgd(
            p,
            g,
            state,
            group["lr"],
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
        )


@right("SGD")
class RefusesUnknown(Base):
    """Takes any keyword and raises TypeError for those that it does not know."""

    def __init__(self, params, lr=1e-3, **options):
        momentum = options.pop("momentum", 0.0)
        if options:
            raise TypeError(f"unexpected options: {', '.join(options)}")
        super().__init__(params, lr=lr, momentum=momentum)

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"])


@right("Adam")
class ForwardsToTorch(torch.optim.Adam):
    """Every keyword goes to torch's class."""

    def __init__(self, params, **kwargs):
        super().__init__(params, **kwargs)


@right("AdamW")
class ForwardsAll(torch.optim.AdamW):
    """Every argument, by position or name, goes to torch's class."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


@right("RMSprop")
class RateThenForwards(torch.optim.RMSprop):
    """Has its own ``lr``, with torch's default, and forwards the rest."""

    def __init__(self, params, lr=1e-2, **kwargs):
        super().__init__(params, lr, **kwargs)


@dataclass
class AdamConfig:
    """Options as a configuration file holds them."""

    lr: float = 1e-3
    betas: tuple = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


@right("Adam")
def adam_of_config(params, config=None):
    """The options come in a dataclass, whose defaults are torch's."""
    return torch.optim.Adam(params, **asdict(config or AdamConfig()))


@right("SGD")
def sgd_of_options(params, options=None):
    """The options come in a dictionary that may be missing."""
    return torch.optim.SGD(params, **(options or {}))


right("SGD", name="partial_sgd")(functools.partial(torch.optim.SGD, foreach=False))
right("AdamW", name="partial_adamw_rate")(functools.partial(torch.optim.AdamW, lr=5e-3))
right("RMSprop", name="partial_of_own")(functools.partial(ParametersByKeyword, alpha=0.9))


@right("Adagrad")
def adagrad_fixed(params, lr=1e-2):
    """Torch's class, with all options but ``lr`` fixed at their defaults."""
    return torch.optim.Adagrad(params, lr=lr, lr_decay=0, weight_decay=0, initial_accumulator_value=0, eps=1e-10)


@right("Adadelta")
def adadelta_fixed(params, lr=1.0, rho=0.9):
    """Torch's class, eps and weight decay fixed at their defaults."""
    return torch.optim.Adadelta(params, lr=lr, rho=rho, eps=1e-6, weight_decay=0)


@right("Rprop")
def rprop_fixed(params, lr=1e-2, etas=(0.5, 1.2)):
    """Torch's class, its sizes of steps fixed at their defaults."""
    return torch.optim.Rprop(params, lr=lr, etas=etas, step_sizes=(1e-6, 50))


@right("ASGD")
def asgd_fixed(params, lr=1e-2, *, lambd=1e-4):
    """A class of more options by a factory with a keyword."""
    return DirectionASGD(params, lr=lr, lambd=lambd, alpha=0.75, t0=1e6)


@right("NAdam")
def nadam_by_kwargs(params, **kwargs):
    """Forwards whatever it is given."""
    return OrderedNAdam(params, **kwargs)


@right("RAdam")
def radam_by_lambda(params, lr=1e-3, betas=(0.9, 0.999), decay=0.0):
    """One option has another name, and torch's default."""
    return torch.optim.RAdam(params, lr=lr, betas=betas, weight_decay=decay)


@right("Adamax")
def adamax_by_position(params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8):
    """Hands its options on by position."""
    return torch.optim.Adamax(params, lr, betas, eps)


@right("Muon", costly=True)
def muon_by_kwargs(params, lr=1e-3, **kwargs):
    """A class of many options, keywords forwarded."""
    return WideMuon(params, lr=lr, **kwargs)


@right("Adafactor", costly=True)
def adafactor_rate(params, lr=1e-2):
    """A class of many options, with one."""
    return BroadcastAdafactor(params, lr=lr)


@right("LBFGS", costly=True)
def lbfgs_short(params, lr=1, max_iter=20, history_size=100):
    """A class of more options, tolerances fixed at their defaults."""
    return ListLBFGS(
        params, lr=lr, max_iter=max_iter, history_size=history_size, tolerance_grad=1e-7, tolerance_change=1e-9
    )


@right("Adam", named=False)
class Renamed(Base):
    """Names of another framework in its signature, torch's in its groups, and torch's defaults."""

    def __init__(self, params, learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8):
        super().__init__(params, lr=learning_rate, betas=(beta1, beta2), eps=epsilon)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"])


@right("AdamW", named=False)
class RenamedThroughout(Base):
    """Names of another framework in signature and groups: no torch schedule finds its rate."""

    def __init__(self, params, learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, wd=1e-2):
        super().__init__(params, learning_rate=learning_rate, beta1=beta1, beta2=beta2, epsilon=epsilon, wd=wd)

    def update(self, p, g, state, group):
        betas = group["beta1"], group["beta2"]
        adam(p, g, state, group["learning_rate"], betas, group["epsilon"], group["wd"], decoupled=True)


@right("SGD")
class RenamedMomentum(Base):
    """``mu`` and ``wd``, beside ``lr``."""

    def __init__(self, params, lr=1e-3, mu=0.0, wd=0.0):
        super().__init__(params, lr=lr, mu=mu, wd=wd)

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["mu"], 0.0, group["wd"])


@right("RMSprop")
class OtherDefaults(Base):
    """Its defaults are those of TensorFlow, which differ from torch's, and stand in its signature."""

    def __init__(self, params, lr=1e-3, alpha=0.9, eps=1e-7):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps)

    def update(self, p, g, state, group):
        rmsprop(p, g, state, group["lr"], group["alpha"], group["eps"])


@right("Adam")
class OtherDefaultRate(Base):
    """Its default rate is 1e-2, its betas those of BERT."""

    def __init__(self, params, lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"])


@right("SGD")
class MomentumByDefault(Base):
    """Momentum and Nesterov are on by default."""

    def __init__(self, params, lr=0.1, momentum=0.9, weight_decay=0.0, nesterov=True):
        if nesterov and momentum <= 0:
            raise ValueError("Nesterov momentum requires a momentum")
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"], 0.0, group["weight_decay"], group["nesterov"])


@right("SGD")
class DerivedDefault(Base):
    """``None`` stands for a default that is made in the constructor, and is torch's."""

    def __init__(self, params, lr=None, momentum=None):
        super().__init__(params, lr=1e-3 if lr is None else lr, momentum=0.0 if momentum is None else momentum)

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"])


@right("Adam")
class PairOfEps(Base):
    """``eps`` is a pair, outside and inside the root, and nothing else is taken; the default computes torch's."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=(1e-8, 0.0)):
        outside, inside = eps
        super().__init__(params, lr=lr, betas=betas, eps=(outside, inside))

    def update(self, p, g, state, group):
        beta1, beta2 = group["betas"]
        outside, inside = group["eps"]
        t = state["step"] = int(state.get("step", 0)) + 1
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        m = state["exp_avg"].mul_(beta1).add_(g, alpha=1 - beta1)
        v = state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        hat = v / (1 - beta2**t)
        hat = hat + inside if inside else hat
        p.addcdiv_(m, hat.sqrt().add_(outside), value=-group["lr"] / (1 - beta1**t))


@right("Adam")
class NumberOrPairOfEps(PairOfEps):
    """``eps`` may be a pair or a number, and is kept as it was given."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        Base.__init__(self, params, lr=lr, betas=betas, eps=eps)

    def update(self, p, g, state, group):
        pair = group["eps"] if isinstance(group["eps"], tuple) else (group["eps"], 0.0)
        super().update(p, g, state, {**group, "eps": pair})


@right("SGD")
class DampeningFlag(Base):
    """``dampening`` is a flag, that makes an average of the momentum; numbers are refused with TypeError."""

    def __init__(self, params, lr=1e-3, momentum=0.0, dampening=False):
        if not isinstance(dampening, bool):
            raise TypeError("dampening is a flag")
        super().__init__(params, lr=lr, momentum=momentum, dampening=dampening)

    def update(self, p, g, state, group):
        damped = group["momentum"] if group["dampening"] else 0.0
        sgd(p, g, state, group["lr"], group["momentum"], damped)


@right("SGD")
class AssertsOptions(Base):
    """What it does not do is refused by ``assert``."""

    def __init__(self, params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
        assert not nesterov, "no Nesterov"
        assert dampening == 0, "no dampening"
        super().__init__(params, lr=lr, momentum=momentum, dampening=0.0, weight_decay=weight_decay, nesterov=False)

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"], 0.0, group["weight_decay"])


@right("Adam")
class NotImplementedOptions(Base):
    """amsgrad, maximize and tensors as rates are refused with NotImplementedError."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False, *, maximize=False):
        if amsgrad or maximize or isinstance(lr, torch.Tensor):
            raise NotImplementedError("amsgrad, maximize and tensors are not done")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=False, maximize=False)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"])


@right("RMSprop")
class ValueErrorOptions(Base):
    """centered and momentum are refused with ValueError."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False):
        if momentum or centered:
            raise ValueError("neither momentum nor centered")
        super().__init__(
            params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered
        )

    def update(self, p, g, state, group):
        rmsprop(p, g, state, group["lr"], group["alpha"], group["eps"], group["weight_decay"])


@right("AdamW")
class TypeErrorOptions(Base):
    """Numbers of another type than ``float`` are refused with TypeError, integers too."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        for value in (lr, *betas, eps, weight_decay):
            if type(value) is not float:
                raise TypeError("options are floats")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"], decoupled=True)


@right("Adam")
class NarrowDomain(Base):
    """Its domains are narrower than torch's: betas above 0, a rate of at most 1, eps above 0."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        if not 0 < lr <= 1:
            raise ValueError(f"lr {lr}")
        if not all(0 < b < 1 for b in betas):
            raise ValueError(f"betas {betas}")
        if eps <= 0:
            raise ValueError(f"eps {eps}")
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"])


class _Called:
    """An object that makes optimizers when it is called."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, params, lr=1e-3, weight_decay=1e-2):
        return self.kind(params, lr=lr, weight_decay=weight_decay)


right("AdamW", name="called_object")(_Called(torch.optim.AdamW))


@right("SGD")
class ByNew(Base):
    """A class method makes it as well; the signature is read from ``__signature__``, which it sets itself."""

    def __init__(self, *args, **kwargs):
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        options = dict(bound.arguments)
        super().__init__(options.pop("params"), **options)

    __signature__ = inspect.Signature(
        [
            inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            inspect.Parameter("lr", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=1e-3),
            inspect.Parameter("weight_decay", inspect.Parameter.KEYWORD_ONLY, default=0.0),
        ]
    )

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], weight_decay=group["weight_decay"])


@right("Muon", costly=True)
class ShortMuon(Base):
    """``lr``, ``momentum`` and ``weight_decay``; the constants of the iteration stand in the code."""

    def __init__(self, params, lr=1e-3, momentum=0.95, *, weight_decay=0.1):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        lr, mu = group["lr"], group["momentum"]
        buffer = state.setdefault("momentum_buffer", torch.zeros_like(p))
        buffer.mul_(mu).add_(g, alpha=1 - mu)
        direction = newton_schulz(g * (1 - mu) + buffer * mu)
        p.mul_(1 - lr * group["weight_decay"]).sub_(direction.to(p.dtype), alpha=lr * ratio_of(p.shape))


@right("Adam")
class ManyBetas(Base):
    """``betas`` may be a list and is kept as a tuple."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), *, eps=1e-8, amsgrad: bool = False):
        if amsgrad:
            raise NotImplementedError
        super().__init__(params, lr=lr, betas=tuple(betas), eps=eps, amsgrad=amsgrad)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"])


@right("AdamW")
def by_recipe(model_parameters, lr: float = 1e-3, weight_decay: float = 0.01, **_):
    """A recipe's factory: swallows what other recipes take, and names what it uses itself."""
    return torch.optim.AdamW(model_parameters, lr=lr, weight_decay=weight_decay)


@right("Adam")
class DropsKeywords(Base):
    """It takes any keyword, and knows what to do with two; a decay of zero is in its groups."""

    def __init__(self, params, lr=1e-3, **kwargs):
        known = {"betas": kwargs.get("betas", (0.9, 0.999)), "eps": kwargs.get("eps", 1e-8)}
        super().__init__(params, lr=lr, weight_decay=0.0, **known)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"])


@right("Adam")
class ForgetsItsMode(Base):
    """It steps in training mode alone, which a copy has lost, as torch copies no attribute."""

    training = False

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def train(self):
        self.training = True

    def eval(self):
        self.training = False

    def step(self, closure=None):
        if not self.training:
            raise RuntimeError("call train() first")
        return super().step(closure)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"])


@right("Adafactor")
class StepsAsTorch(torch.optim.Adafactor):
    """What torch's class does wrong is torch's."""


@right("Adagrad")
class BuiltAsTorch(torch.optim.Adagrad):
    """The same, and the constructor is handed keywords."""

    def __init__(self, params, **kwargs):
        super().__init__(params, **kwargs)
