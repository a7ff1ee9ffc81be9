"""Conventions in which implementations of one optimizer differ, as variants of its Spec.

What ``torch.optim`` does is the reference. A variant is not wrong where it is meant: its library documents it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from stepcheck.reference.conventions import (
    constant_momentum,
    coupled,
    debiased,
    decayed_after,
    decoupled,
    lr_inside,
    maximum_of_corrected,
    momentum_decaying,
    uncorrected,
)
from stepcheck.reference.dialect import Dialect
from stepcheck.reference.epsilon import (
    SQUARES,
    beside_corrected,
    beside_norm,
    beside_uncorrected,
    eps_placed,
    inside,
    inside_corrected,
    inside_uncorrected,
    inside_variance,
)
from stepcheck.reference.spec import Spec


def dialects(spec: Spec) -> Iterator[Dialect]:
    """The dialects that an optimizer may be written in, beside those that it is in."""
    if spec.elementwise and not spec.closure:
        declared = {kind for kind, _ in spec.dialects}
        yield from (d for d in _DIALECTS if d.of(spec) and d.kind not in declared)


def in_dialects(spec: Spec, names: Iterable[str]) -> Spec:
    """An optimizer in the dialects of these names, one of each kind.

    A library's name stands for all that it does otherwise.

    Raises:
        ValueError: it has no such dialect, or two are about one thing.
    """
    had = {d.name: d for d in dialects(spec)}
    chosen: dict[str, Dialect] = {}
    for name in (each for said in names for each in _LIBRARIES.get(said, {}).get(spec.name, (said,))):
        if name not in had:
            raise ValueError(
                f"{spec.name} has no dialect {name!r}; there is {', '.join([*had, *_speaking(spec)]) or 'none'}"
            )
        other = chosen.setdefault(had[name].kind, had[name])
        if other.name != name:
            raise ValueError(f"{name} and {other.name} are about one thing, {other.kind}: give one of them")
    return applied(spec, chosen.values())


def applied(spec: Spec, chosen: Iterable[Dialect]) -> Spec:
    """An optimizer in these dialects, in the order in which they work together."""
    order = {d: n for n, d in enumerate(_DIALECTS)}
    for dialect in sorted(chosen, key=lambda d: order.get(d, len(order))):
        spec = dialect.applied(spec)
    return spec


def _speaking(spec: Spec) -> list[str]:
    """The libraries that do something otherwise."""
    return [library for library, names in _LIBRARIES.items() if spec.name in names]


def title(spec: Spec) -> str:
    """The name of an optimizer, with its dialects: ``Adam[eps-inside-root]``."""
    named = ", ".join(name for _, name in spec.dialects if name)
    return f"{spec.name}[{named}]" if named else spec.name


def _has(*names: str) -> Callable[[Spec], bool]:
    """Whether an optimizer has all these options or buffers."""

    def of(spec: Spec) -> bool:
        return {*names} <= {h.name for h in spec.hyper} | {b.name for b in spec.buffers}

    return of


def _squares(spec: Spec) -> tuple[str, ...]:
    return tuple(b.name for b in spec.buffers if b.name in SQUARES)


def _decays(spec: Spec) -> bool:
    """Whether there is a decay that is scaled by lr, or could be."""
    return _has("lr", "weight_decay")(spec) and spec.name not in ("Adafactor", "Muon")


def _adds_decay(spec: Spec) -> bool:
    """Whether the decay is a part of the gradient."""
    return _has("lr", "weight_decay")(spec) and spec.name not in ("AdamW", "Adafactor", "Muon")


_ADAM = _has("betas", "eps", "step", "exp_avg", "exp_avg_sq")


def _corrects(spec: Spec) -> bool:
    """Whether eps is added to the root of a corrected average."""
    return _ADAM(spec) and spec.name != "RAdam"


#: What is applied first stands first: the decay, which some of the others see to by themselves, comes last.
_DIALECTS = (
    Dialect("eps", "eps-beside-uncorrected-root", "eps beside the root of the average before its bias is corrected", _corrects, eps_placed(beside_uncorrected)),
    Dialect("eps", "eps-beside-corrected-root", "eps beside the root of the average after its bias is corrected", lambda s: s.name == "RAdam", eps_placed(beside_corrected)),
    Dialect("eps", "eps-inside-root", "eps inside the root, beside the corrected average", _corrects, eps_placed(inside_corrected)),
    Dialect("eps", "eps-inside-uncorrected-root", "eps inside the root, beside the average before its bias is corrected", _corrects, eps_placed(inside_uncorrected)),
    Dialect("eps", "eps-inside-root", "eps inside the root", lambda s: s.name in ("Adagrad", "RAdam"), eps_placed(inside)),
    Dialect("eps", "eps-inside-root", "eps inside the root", lambda s: s.name == "RMSprop", inside_variance),
    Dialect("eps", "eps-beside-norm", "eps beside the norm, which is kept without it", lambda s: s.name == "Adamax", beside_norm),
    Dialect("schedule", "momentum-decay-of-one", "momentum that is beta1 * (1 - 0.96**t / 2)", lambda s: s.name == "NAdam", momentum_decaying(1.0)),
    Dialect("schedule", "constant-momentum", "momentum that is beta1 from the first step on", lambda s: s.name == "NAdam", constant_momentum),
    Dialect("averages", "debiased-averages", "averages that are kept debiased", _ADAM, debiased("exp_avg", "exp_avg_sq")),
    Dialect("averages", "debiased-exp-avg", "an exp_avg that is kept debiased", _ADAM, debiased("exp_avg")),
    Dialect("averages", "debiased-exp-avg-sq", "an exp_avg_sq that is kept debiased", _ADAM, debiased("exp_avg_sq")),
    Dialect("averages", "uncorrected-bias", "no bias correction", lambda s: s.name in ("Adam", "AdamW"), uncorrected),
    Dialect(
        "start", "squares-from-one", "averages of squares that start at 1", lambda s: s.name in ("RMSprop", "Adagrad", "Adadelta"),
        initial=lambda s: dict.fromkeys(_squares(s), 1.0),
    ),
    Dialect("start", "momentum-from-zero", "a momentum that starts at 0", lambda s: s.name == "SGD", initial=lambda _: {"momentum_buffer": 0.0}),
    Dialect("lr", "lr-inside-momentum", "lr inside the momentum", _has("lr", "momentum", "momentum_buffer", "weight_decay"), lr_inside),
    Dialect("maximum", "amsgrad-after-correction", "the maximum of AMSGrad taken after the bias is corrected", _has("amsgrad", "max_exp_avg_sq"), maximum_of_corrected),
    Dialect("decay", "decoupled-decay", "weight decay decoupled from the gradient, p - lr * weight_decay * p", _adds_decay, decoupled(True)),
    Dialect("decay", "unscaled-decay", "weight decay that is not scaled by lr, p - weight_decay * p", _has("weight_decay"), decoupled(False)),
    Dialect("decay", "coupled-decay", "weight decay added to the gradient", lambda s: s.name == "AdamW", coupled),
    Dialect("decay", "decay-after-step", "weight decay of what the step arrives at, p - lr * weight_decay * p", _decays, decayed_after),
    Dialect("count", "step-by-group", "a step that is counted for the whole group", _has("step"), of_group=("step",)),
)  # fmt: skip


#: Libraries that document other conventions than torch, and which, by optimizer: https://keras.io/api/optimizers/ (Keras 3; its weight decay is
#: decoupled everywhere), https://optax.readthedocs.io (its rmsprop, adagrad, radam and nadam), TensorFlow 1 (tf.compat.v1.train, training_ops.h), and
#: https://nvidia.github.io/apex/optimizers.html: FusedAdam is decoupled by default (adam_w_mode) and has one step for a group (fused_adam.py:
#: "assume same step across group"; eps stands as in torch). FusedSGD and FusedAdagrad count nothing; of the others there is no reference.
_LIBRARIES: dict[str, dict[str, tuple[str, ...]]] = {
    "apex": {
        "Adam": ("decoupled-decay", "step-by-group"),
        "AdamW": ("step-by-group",),
    },
    "keras": {
        "Adam": ("eps-beside-uncorrected-root", "decoupled-decay"),
        "AdamW": ("eps-beside-uncorrected-root",),
        "Adagrad": ("eps-inside-root", "decoupled-decay"),
        "Adadelta": ("decoupled-decay",),
        "Adamax": ("eps-beside-norm", "decoupled-decay"),
        "NAdam": ("momentum-decay-of-one", "decoupled-decay"),
        "RMSprop": ("eps-inside-root", "lr-inside-momentum", "decoupled-decay"),
        "SGD": ("lr-inside-momentum", "decoupled-decay"),
    },
    "optax": {
        "Adagrad": ("eps-inside-root",),
        "NAdam": ("constant-momentum",),
        "RAdam": ("eps-beside-corrected-root",),
        "RMSprop": ("eps-inside-root", "lr-inside-momentum"),
    },
    "tensorflow": {
        "Adam": ("eps-beside-uncorrected-root",),
        "RMSprop": ("eps-inside-root", "squares-from-one", "lr-inside-momentum"),
    },
}
