"""One rule per elementwise optimizer, from which its kernels are made.

A rule is two pure functions of numbers, in restricted Python: arithmetic, comparisons, ``a if c else b`` and the functions of
:data:`FUNCTIONS`; no loops, no containers, no side effects.

- ``prepare`` runs once for each parameter, in float64: from the numbers kept for the parameter (``step``) and the options of its
  group it makes the numbers after the step, and the scalars that every element needs.
- ``update`` runs for each element, in float32 for parameters of float16, bfloat16 and float32 and in float64 for float64: from
  parameter, gradient, buffers and scalars it makes the parameter and the buffers after the step.

The names of their arguments say where the values come from: a counter or a buffer has the key that it has in
``optimizer.state[p]``, an option the name that it has in the group (``beta1`` is the first of ``betas``); scalars are what
``prepare`` returns after the counters, in the order in which ``update`` takes them. ``fresh`` is 1 at the first step of a
parameter and 0 ever after; ``wide_`` and the name of a counter is 1 where that is kept in float64. A buffer that the options do without is 0, and what is returned for it is dropped.

Of parameters in float16 and bfloat16 a step can carry what rounding loses (``compensated=True``, after Kahan, *Further remarks on reducing
truncation errors*, 1965): where a rule is given what is stored, it then is given the sum of that and of what the step before lost, and a
buffer beside it keeps what this one loses. It is done for the parameter and for the averages that a step may change by less than a rounding:
those marked ``slow``.

A complex parameter is twice as many real elements. The formulas are those that the documentation of ``torch.optim`` states, and
the papers that it cites; where code and documentation of ``torch.optim`` differ, a comment says which is followed.
"""

from __future__ import annotations

import ctypes
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

#: What a rule may call, beside arithmetic. Each back end has its own of each; these are for running a rule as it stands.
FUNCTIONS: dict[str, Callable[..., float]] = {
    "sqrt": math.sqrt,
    "absolute": abs,
    # NaN if either is NaN, as torch.maximum.
    "maximum": lambda a, b: a if a > b or a != a else b,
    "minimum": lambda a, b: a if a < b or a != a else b,
    "rounded": lambda x: ctypes.c_float(x).value,  # to float32, which counters are usually kept in
}
sqrt, absolute, maximum, minimum, rounded = FUNCTIONS.values()

Options = Mapping[str, Any]
#: Options with several entries: which group option they are in, and where.
ENTRIES: dict[str, tuple[str, int]] = {
    "beta1": ("betas", 0),
    "beta2": ("betas", 1),
    "shrink": ("etas", 0),
    "grow": ("etas", 1),
    "smallest": ("step_sizes", 0),
    "largest": ("step_sizes", 1),
    "eps1": ("eps", 0),
    "eps2": ("eps", 1),
}


def option(group: Options, name: str) -> float:
    """The number that a rule reads under ``name``; of a tensor, its value. An option that the class does not have is 0."""
    key, entry = ENTRIES.get(name, (name, None))
    value = group.get(key, 0.0)
    return float(value if entry is None else value[entry])


def _zero(_: Options) -> float:
    return 0.0


def always(_: Options) -> bool:
    """Whatever the options are."""
    return True


@dataclass(frozen=True)
class Buffer:
    """A tensor of the state, of the shape and dtype of its parameter.

    Attributes:
        initial: the first value of its elements.
        present: whether these options ask for it.
        slow: an average in which a step counts for little, so that narrow formats may round its change away.
    """

    initial: Callable[[Options], float] = _zero
    present: Callable[[Options], bool] = always
    slow: bool = False


#: What keeps the lost bits of the parameter; those of a buffer stand under its name, this appended.
COMPENSATION = "compensation"
#: Formats whose bits get lost.
NARROW = ("float16", "bfloat16")


def compensates(group: Options) -> bool:
    """Whether what rounding loses is carried, in parameters of narrow formats."""
    return bool(group.get("compensated", False))


@dataclass(frozen=True, eq=False)
class Rule:
    """What one step of one optimizer does to one parameter.

    Attributes:
        name: of the rule; with a dtype and the buffers present it names a kernel.
        prepare: ``(counters..., options...) -> (counters..., scalars...)``.
        update: ``(p, g, buffers..., scalars...) -> (p, buffers...)``.
        counters: keys of the state that hold one number for the parameter, with its first value.
        buffers: keys of the state that hold a tensor.
        sparse: what a sparse gradient means: ``"lazy"``, the elements that it names are stepped; ``"only"``, and no other gradient
            is taken; empty, it is refused.
        dense_alone: why these options refuse sparse gradients, or nothing.
        adds: where sparse gradients are taken, entries of one element may be applied one after the other: what their sum does is the sum of
            what they do.
        whole: the counters are Python's whole numbers in the state, as those of ``torch.optim.SparseAdam``; tensors otherwise.
    """

    name: str
    prepare: Callable[..., tuple[float, ...]]
    update: Callable[..., tuple[float, ...]]
    counters: Mapping[str, Callable[[Options], float]] = field(default_factory=dict)
    buffers: Mapping[str, Buffer] = field(default_factory=dict)
    sparse: str = ""
    dense_alone: Callable[[Options], str] = lambda _: ""
    adds: bool = False
    whole: bool = False

    @cached_property
    def options(self) -> tuple[str, ...]:
        """What ``prepare`` is given after the counters, in order."""
        return tuple(inspect.signature(self.prepare).parameters)[len(self.counters) :]

    @cached_property
    def wide(self) -> tuple[str, ...]:
        """Of ``options``, those that say of a counter that it is kept in float64, and not in float32: ``wide_`` and its name."""
        return tuple(name for name in self.options if name.startswith("wide_"))

    @cached_property
    def of_group(self) -> tuple[str, ...]:
        """Of ``options``, those that are read of a group; the others belong to a parameter."""
        return tuple(name for name in self.options if name != "fresh" and name not in self.wide)

    @cached_property
    def scalars(self) -> tuple[str, ...]:
        """What ``update`` is given beside what is in memory, in order."""
        return tuple(inspect.signature(self.update).parameters)[2 + len(self.buffers) :]

    @cached_property
    def carried(self) -> dict[str, str]:
        """The buffers that keep lost bits, each with the stream that loses them."""
        slow = (name for name, buffer in self.buffers.items() if buffer.slow)
        return {COMPENSATION: "p", **{f"{name}_{COMPENSATION}": name for name in slow}}

    def present(self, group: Options) -> tuple[str, ...]:
        """The buffers that a parameter with these options has; what keeps lost bits, if it is of a narrow format."""
        own = tuple(name for name, buffer in self.buffers.items() if buffer.present(group))
        return own + self.keeping(own) if compensates(group) else own

    def keeping(self, own: tuple[str, ...]) -> tuple[str, ...]:
        """What keeps the lost bits of the parameter, and of those of these buffers that lose any."""
        return tuple(name for name, stream in self.carried.items() if stream in ("p", *own))

    def streams(self, present: tuple[str, ...], dtype: str) -> tuple[str, ...]:
        """Of these buffers, those of a parameter that is stored in a real format."""
        if dtype in NARROW or COMPENSATION not in present:
            return present
        return tuple(name for name in present if name not in self.carried)

    def initial(self, name: str, group: Options) -> float:
        """The first value of a buffer."""
        return 0.0 if name in self.carried else self.buffers[name].initial(group)


_STEP: dict[str, Callable[[Options], float]] = {"step": _zero}


# --- SGD: Sutskever et al., 2013, as torch.optim.SGD states it. The first step sets the buffer to the gradient, undampened.


def _prepare_sgd(lr, momentum, dampening, weight_decay, nesterov, maximize, fresh):
    weight = 1.0 if fresh != 0 else 1.0 - dampening
    return 1.0 - 2.0 * maximize, weight_decay, momentum, weight, nesterov, lr, fresh


def _sgd(p, g, momentum_buffer, sign, weight_decay, momentum, weight, nesterov, lr, fresh):
    g = sign * g
    g = g + weight_decay * p if weight_decay != 0 else g
    momentum_buffer = g if fresh != 0 else momentum * momentum_buffer + weight * g
    ahead = g + momentum * momentum_buffer if nesterov != 0 else momentum_buffer
    return p - lr * (ahead if momentum != 0 else g), momentum_buffer


def _sgd_dense_alone(group: Options) -> str:
    if group["weight_decay"] != 0:
        return "weight_decay reads every element"
    return "momentum moves every element" if group["momentum"] != 0 else ""


SGD = Rule(
    "sgd",
    _prepare_sgd,
    _sgd,
    buffers={"momentum_buffer": Buffer(present=lambda group: group["momentum"] != 0)},
    sparse="lazy",
    dense_alone=_sgd_dense_alone,
    adds=True,
)


# --- ASGD: Polyak and Juditsky, 1992, with the schedule of Xu, 2011. A step uses the eta and mu that the one before left.


def _prepare_asgd(step, eta, mu, lr, lambd, alpha, t0, weight_decay, maximize):
    after = step + 1.0
    next_eta = lr / (1.0 + lambd * lr * after) ** alpha
    next_mu = 1.0 / maximum(1.0, after - t0)
    return after, next_eta, next_mu, 1.0 - 2.0 * maximize, weight_decay, 1.0 - lambd * eta, eta, 1.0 - mu, mu


def _asgd(p, g, ax, sign, weight_decay, decay, eta, keep, mu):
    g = sign * g
    g = g + weight_decay * p if weight_decay != 0 else g
    p = decay * p - eta * g
    return p, keep * ax + mu * p


ASGD = Rule(
    "asgd",
    _prepare_asgd,
    _asgd,
    counters={**_STEP, "eta": lambda group: option(group, "lr"), "mu": lambda _: 1.0},
    buffers={"ax": Buffer(slow=True)},
)


# --- Adadelta: Zeiler, 2012, algorithm 1; eps stands inside both roots.


def _prepare_adadelta(step, lr, rho, eps, weight_decay, maximize):
    return step + 1.0, 1.0 - 2.0 * maximize, weight_decay, rho, 1.0 - rho, eps, lr


def _adadelta(p, g, square_avg, acc_delta, sign, weight_decay, rho, weight, eps, lr):
    g = sign * g
    g = g + weight_decay * p if weight_decay != 0 else g
    square_avg = rho * square_avg + weight * g * g
    delta = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * g
    return p - lr * delta, square_avg, rho * acc_delta + weight * delta * delta


ADADELTA = Rule(
    "adadelta",
    _prepare_adadelta,
    _adadelta,
    counters=_STEP,
    buffers={"square_avg": Buffer(slow=True), "acc_delta": Buffer(slow=True)},
)


# --- Adagrad: Duchi, Hazan, Singer, 2011; eps stands outside the root.


def _prepare_adagrad(step, lr, lr_decay, weight_decay, eps, maximize):
    return step + 1.0, 1.0 - 2.0 * maximize, weight_decay, eps, lr / (1.0 + step * lr_decay)


def _adagrad(p, g, sum, sign, weight_decay, eps, lr):  # noqa: A002 - the key that torch gives the buffer
    g = sign * g
    g = g + weight_decay * p if weight_decay != 0 else g
    sum = sum + g * g  # noqa: A001
    return p - lr * g / (sqrt(sum) + eps), sum


ADAGRAD = Rule(
    "adagrad",
    _prepare_adagrad,
    _adagrad,
    counters=_STEP,
    buffers={"sum": Buffer(initial=lambda group: option(group, "initial_accumulator_value"), slow=True)},
    sparse="lazy",
    dense_alone=lambda group: "weight_decay reads every element" if group["weight_decay"] != 0 else "",
)


# --- Adam and AdamW: Kingma and Ba, 2015, algorithm 1; Loshchilov and Hutter, 2019; AMSGrad of Reddi et al., 2018, its maximum
# taken before the bias correction.


def _prepare_adam(step, lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay, amsgrad, maximize):
    after = step + 1.0
    coupled = 0.0 if decoupled_weight_decay != 0 else weight_decay
    decay = 1.0 - lr * weight_decay if decoupled_weight_decay != 0 else 1.0
    correction = sqrt(1.0 - beta2**after)
    step_size = lr / (1.0 - beta1**after)
    return (
        after,
        1.0 - 2.0 * maximize,
        coupled,
        decay,
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        eps,
        amsgrad,
        step_size,
        correction,
    )


def _adam(
    p, g, exp_avg, exp_avg_sq, max_exp_avg_sq,
    sign, weight_decay, decay, beta1, weight1, beta2, weight2, eps, amsgrad, step_size, correction,
):  # fmt: skip
    g = sign * g
    g = g + weight_decay * p if weight_decay != 0 else g
    exp_avg = beta1 * exp_avg + weight1 * g
    exp_avg_sq = beta2 * exp_avg_sq + weight2 * g * g
    max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq)
    root = sqrt(max_exp_avg_sq if amsgrad != 0 else exp_avg_sq)
    p = decay * p - step_size * exp_avg / (root / correction + eps)
    return p, exp_avg, exp_avg_sq, max_exp_avg_sq


ADAM = Rule(
    "adam",
    _prepare_adam,
    _adam,
    counters=_STEP,
    buffers={
        "exp_avg": Buffer(),
        "exp_avg_sq": Buffer(slow=True),
        "max_exp_avg_sq": Buffer(present=lambda group: bool(group["amsgrad"])),
    },
)


# --- Adamax: Kingma and Ba, 2015, algorithm 2; eps is added to |g|, inside the maximum.


def _prepare_adamax(step, lr, beta1, beta2, eps, weight_decay, maximize):
    after = step + 1.0
    return after, 1.0 - 2.0 * maximize, weight_decay, beta1, 1.0 - beta1, beta2, eps, lr / (1.0 - beta1**after)


def _adamax(p, g, exp_avg, exp_inf, sign, weight_decay, beta1, weight1, beta2, eps, step_size):
    g = sign * g
    g = g + weight_decay * p if weight_decay != 0 else g
    exp_avg = beta1 * exp_avg + weight1 * g
    exp_inf = maximum(beta2 * exp_inf, absolute(g) + eps)
    return p - step_size * exp_avg / exp_inf, exp_avg, exp_inf


ADAMAX = Rule(
    "adamax", _prepare_adamax, _adamax, counters=_STEP, buffers={"exp_avg": Buffer(), "exp_inf": Buffer(slow=True)}
)


# --- NAdam: Dozat, 2016; the schedule of the momentum enters its bias correction alone.


def _prepare_nadam(
    step,
    mu_product,
    lr,
    beta1,
    beta2,
    eps,
    weight_decay,
    momentum_decay,
    decoupled_weight_decay,
    maximize,
    wide_mu_product,
):
    after = step + 1.0
    coupled = 0.0 if decoupled_weight_decay != 0 else weight_decay
    decay = 1.0 - lr * weight_decay if decoupled_weight_decay != 0 else 1.0
    mu = beta1 * (1.0 - 0.5 * 0.96 ** (after * momentum_decay))
    mu_next = beta1 * (1.0 - 0.5 * 0.96 ** ((after + 1.0) * momentum_decay))
    product = mu_product * mu if wide_mu_product != 0 else rounded(mu_product * mu)
    of_gradient = lr * (1.0 - mu) / (1.0 - product)
    of_average = lr * mu_next / (1.0 - product * mu_next)
    return (
        after, product, 1.0 - 2.0 * maximize, coupled, decay, beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps,
        of_gradient, of_average, sqrt(1.0 - beta2**after),
    )  # fmt: skip


def _nadam(
    p, g, exp_avg, exp_avg_sq,
    sign, weight_decay, decay, beta1, weight1, beta2, weight2, eps, of_gradient, of_average, correction,
):  # fmt: skip
    g = sign * g
    g = g + weight_decay * p if weight_decay != 0 else g
    exp_avg = beta1 * exp_avg + weight1 * g
    exp_avg_sq = beta2 * exp_avg_sq + weight2 * g * g
    denom = sqrt(exp_avg_sq) / correction + eps
    p = decay * p - of_gradient * g / denom - of_average * exp_avg / denom
    return p, exp_avg, exp_avg_sq


NADAM = Rule(
    "nadam",
    _prepare_nadam,
    _nadam,
    counters={**_STEP, "mu_product": lambda _: 1.0},
    buffers={"exp_avg": Buffer(), "exp_avg_sq": Buffer(slow=True)},
)


# --- RAdam: Liu et al., 2020; rectified from rho > 5 on, as in the authors' program; eps is added before the bias correction.


def _prepare_radam(step, lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay, maximize):
    after = step + 1.0
    coupled = 0.0 if decoupled_weight_decay != 0 else weight_decay
    decay = 1.0 - lr * weight_decay if decoupled_weight_decay != 0 else 1.0
    correction = 1.0 - beta2**after
    rho_inf = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_inf - 2.0 * after * beta2**after / correction
    rectified = 1.0 if rho > 5.0 else 0.0
    rho = rho if rho > 5.0 else 6.0
    ratio = sqrt((rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)) * sqrt(correction)
    step_size = lr / (1.0 - beta1**after)
    scale = ratio * step_size if rectified != 0 else step_size
    return after, 1.0 - 2.0 * maximize, coupled, decay, beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps, rectified, scale


def _radam(
    p, g, exp_avg, exp_avg_sq,
    sign, weight_decay, decay, beta1, weight1, beta2, weight2, eps, rectified, scale,
):  # fmt: skip
    g = sign * g
    g = g + weight_decay * p if weight_decay != 0 else g
    exp_avg = beta1 * exp_avg + weight1 * g
    exp_avg_sq = beta2 * exp_avg_sq + weight2 * g * g
    denom = sqrt(exp_avg_sq) + eps if rectified != 0 else 1.0
    return decay * p - scale * exp_avg / denom, exp_avg, exp_avg_sq


RADAM = Rule(
    "radam", _prepare_radam, _radam, counters=_STEP, buffers={"exp_avg": Buffer(), "exp_avg_sq": Buffer(slow=True)}
)


# --- RMSprop: Hinton's lecture, centered as in Graves, 2013; eps stands outside the root.


def _prepare_rmsprop(step, lr, alpha, eps, weight_decay, momentum, centered, maximize):
    return step + 1.0, 1.0 - 2.0 * maximize, weight_decay, alpha, 1.0 - alpha, eps, momentum, centered, lr


def _rmsprop(
    p, g, square_avg, grad_avg, momentum_buffer, sign, weight_decay, alpha, weight, eps, momentum, centered, lr
):
    g = sign * g
    g = g + weight_decay * p if weight_decay != 0 else g
    square_avg = alpha * square_avg + weight * g * g
    grad_avg = alpha * grad_avg + weight * g
    variance = square_avg - grad_avg * grad_avg if centered != 0 else square_avg
    denom = sqrt(variance) + eps
    momentum_buffer = momentum * momentum_buffer + g / denom
    return p - lr * momentum_buffer, square_avg, grad_avg, momentum_buffer


RMSPROP = Rule(
    "rmsprop",
    _prepare_rmsprop,
    _rmsprop,
    counters=_STEP,
    buffers={
        "square_avg": Buffer(slow=True),
        "grad_avg": Buffer(present=lambda group: bool(group["centered"]), slow=True),
        "momentum_buffer": Buffer(present=lambda group: group["momentum"] != 0),
    },
)


# --- Rprop: iRprop- of Igel and Hüsken, 2000. What has no sign, NaN, is taken as 0.


def _prepare_rprop(step, shrink, grow, smallest, largest, maximize):
    return step + 1.0, 1.0 - 2.0 * maximize, shrink, grow, smallest, largest


def _rprop(p, g, prev, step_size, sign, shrink, grow, smallest, largest):
    g = sign * g
    product = g * prev
    factor = grow if product > 0 else 1.0
    factor = shrink if product < 0 else factor
    step_size = minimum(maximum(step_size * factor, smallest), largest)
    g = 0.0 if product < 0 else g
    move = step_size if g > 0 else 0.0
    move = -step_size if g < 0 else move
    return p - move, g, step_size


RPROP = Rule(
    "rprop",
    _prepare_rprop,
    _rprop,
    counters=_STEP,
    buffers={"prev": Buffer(), "step_size": Buffer(initial=lambda group: option(group, "lr"))},
)


# --- SparseAdam: Kingma and Ba, 2015, the variant at the end of section 2: eps is added before the bias correction.


def _prepare_sparse_adam(step, lr, beta1, beta2, eps, maximize):
    after = step + 1.0
    step_size = lr * sqrt(1.0 - beta2**after) / (1.0 - beta1**after)
    return after, 1.0 - 2.0 * maximize, beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps, step_size


def _sparse_adam(p, g, exp_avg, exp_avg_sq, sign, beta1, weight1, beta2, weight2, eps, step_size):
    g = sign * g
    exp_avg = beta1 * exp_avg + weight1 * g
    exp_avg_sq = beta2 * exp_avg_sq + weight2 * g * g
    return p - step_size * exp_avg / (sqrt(exp_avg_sq) + eps), exp_avg, exp_avg_sq


SPARSE_ADAM = Rule(
    "sparse_adam",
    _prepare_sparse_adam,
    _sparse_adam,
    counters=_STEP,
    buffers={"exp_avg": Buffer(), "exp_avg_sq": Buffer(slow=True)},
    sparse="only",
    whole=True,
)
