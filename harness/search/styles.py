"""Draw styles: how lives are drawn for each kind of subject. One is chosen for a subject, and says what it draws differently."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from stepcheck.harness.life.events import FORMS, WAYS, Option
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.search.contents import GRADIENT_KINDS, MATRICES, PARAMETER_KINDS, SHAPES, Kind
from stepcheck.harness.search.options import MAX_ITERS, TOLERANCES, OptionSets, few_iterations
from stepcheck.reference.spec import Spec

Shapes = Sequence[tuple[int, ...]]

#: How a step is made, by a closure's result and by gradient scaling: most are made plainly.
_MANNERS: tuple[tuple[str, str], ...] = (
    ("", ""), ("", ""), ("", ""), ("", ""), ("", ""), ("", ""), ("", ""), ("", ""), ("", ""), ("", ""), ("", "step"),
    ("float", ""), ("tensor", ""), ("none", ""), ("backward", ""), ("", "unscale"),
    ("zero", ""), ("negative", ""), ("nan", ""),
)  # fmt: skip
PLAINLY: tuple[tuple[str, str], ...] = (("", ""),)
_SMALL_GROUPS: tuple[tuple[int, ...], ...] = ((1,), (1,), (2,), (1, 1), (2,), (1, 1))


@dataclass(frozen=True)
class Style:
    """What is drawn for optimizers that work element by element; what a subject does not take is left out of it later.

    Attributes:
        sizes: the shapes of parameters.
        shapes: which of them, and how often, of those that an optimizer takes.
        values: the values of an option, from those of its kind.
        later: those that it is set to between steps.
        options: sets of options, from those that are drawn for all.
        worlds: what a life is made of, by the names of ``tables``; where sparse gradients are taken as well, ``sparse_worlds``.
        groups: how many parameters each group has at first.
        one_dtype: all parameters of a life have the same one.
        lengths: how many events a life has. A few are longer: there are rules that change after some steps.
        forms, ways: how parameters are given to a constructor, and how state goes from one optimizer to the next.
        onward: round trips may lead into other modes and carry other dictionaries.
        between: what alone may stand between steps; all of it, where that is ``None``.
        eventful: in half the lives something happens between any two steps.
        ending: the last events let each check look at something.
        manners: how steps are made.
        objective: steps evaluate an objective, and are not assigned gradients.
        spoils: some lives end with malformed state.
    """

    sizes: Shapes = SHAPES
    shapes: Callable[[Shapes], Shapes] = list
    parameter_kinds: tuple[Kind, ...] = PARAMETER_KINDS
    gradient_kinds: tuple[Kind, ...] = GRADIENT_KINDS
    values: Callable[[str, Sequence[Option]], Sequence[Option]] = lambda _, values: values
    later: Callable[[str, Sequence[Option]], Sequence[Option]] = lambda _, values: values
    options: Callable[[Spec, OptionSets, Mapping[str, Sequence[Option]]], OptionSets] = lambda _, sets, __: sets
    worlds: tuple[str, ...] = ("plain", "plain", "strided")
    sparse_worlds: tuple[str, ...] = ("plain", "sparse", "strided")
    groups: tuple[tuple[int, ...], ...] = (*_SMALL_GROUPS, (3,), (2, 1), (1, 1, 1), (4,), (1, 2, 1))
    one_dtype: bool = False
    lengths: tuple[int, ...] = (5, 6, 7, 8, 5, 6, 7, 12)
    forms: tuple[str, ...] = ("list",) * 4 + FORMS
    ways: tuple[str, ...] = (*WAYS[:1], *WAYS)
    onward: bool = True
    between: tuple[str, ...] | None = None
    eventful: bool = True
    ending: bool = False
    manners: tuple[tuple[str, str], ...] = _MANNERS
    objective: bool = False
    spoils: bool = True


# Matrices: elements depend on each other.


def _more_that_are_finite(
    parameters: tuple[Kind, ...], gradients: tuple[Kind, ...]
) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    """One infinity spoils all elements here, and for good: such tensors are rarer."""
    return (
        (*parameters, *(k for k in parameters * 3 if k.scale != "wide")),
        (*gradients, *(k for k in gradients * 5 if k.scale not in ("wide", "tiny"))),
    )


_PARAMETERS, _GRADIENTS = _more_that_are_finite(PARAMETER_KINDS, GRADIENT_KINDS)


def _small_more_often(shapes: Shapes) -> Shapes:
    return [*shapes, *[s for s in shapes if 0 not in s and min(s) < 10 and math.prod(s) < 100] * 3]


def _few_products(spec: Spec, sets: OptionSets, available: Mapping[str, Sequence[Option]]) -> OptionSets:
    """Rounding in the products outgrows what can be judged with their number: half the lives have few."""
    if "ns_steps" not in available:
        return sets
    few = [o | {"ns_steps": 1 + n % 3} for n, (o, _) in enumerate(sets)]
    return [(f, spec.hyper_values(f)) if n % 2 else sets[n] for n, f in enumerate(few)]


# Line searches: the state of a closure's iterations is seen between steps alone.


def _deciding(name: str, values: Sequence[Option]) -> Sequence[Option]:
    return (values[0], *TOLERANCES[name]) if name in TOLERANCES else values


def _few_iterations(spec: Spec, sets: OptionSets, available: Mapping[str, Sequence[Option]]) -> OptionSets:
    """Most steps take few iterations."""
    return [few_iterations(spec, n, o, available) for n, o in enumerate(sets)]


ELEMENT_BY_ELEMENT = Style()
MATRIX_BY_MATRIX = replace(
    ELEMENT_BY_ELEMENT, sizes=(*SHAPES, *MATRICES), parameter_kinds=_PARAMETERS, gradient_kinds=_GRADIENTS
)
#: Matrix products, that implementations carry out in a narrow format.
BY_PRODUCTS = replace(
    MATRIX_BY_MATRIX,
    shapes=_small_more_often,
    # Beside what rounding in the products may cost, a parameter shows its decay where it is large.
    parameter_kinds=(*_PARAMETERS, *(Kind("log", "large"),) * (len(_PARAMETERS) // 6)),
    # Singular values within a factor of ten or so of each other.
    gradient_kinds=(*_GRADIENTS, *(Kind("log", "even"), Kind("quarters", "unit")) * (len(_GRADIENTS) // 2)),
    options=_few_products,
)
BY_LINE_SEARCH = replace(
    MATRIX_BY_MATRIX,
    shapes=lambda shapes: [
        s for s in shapes if math.prod(s) < 100
    ],  # sources of error are told apart, for each element
    values=_deciding,
    later=lambda name, values: MAX_ITERS[:4] if name == "max_iter" else values,
    options=_few_iterations,
    groups=((1,), (1,), (2,), (3,)),
    one_dtype=True,  # as one vector of all parameters has
    # A step alone is not often one that shows something, and there is little else in a life.
    lengths=tuple(2 * n for n in ELEMENT_BY_ELEMENT.lengths),
    manners=PLAINLY,
    objective=True,
    spoils=False,
)


#: Of a class of which nobody says what it computes: numbers of ordinary size, with which any can do what it is meant to.
BY_NO_REFERENCE = replace(
    MATRIX_BY_MATRIX,
    parameter_kinds=tuple(k for k in PARAMETER_KINDS if k.scale in ("unit", "zero")),
    gradient_kinds=tuple(k for k in GRADIENT_KINDS if k.scale in ("unit", "eps")),
)


def _costly(style: Style) -> Style:
    """What takes so long that few lives are played: a new layout, or a gradient more or less, is compiled anew."""
    worlds = ("plain",) * 7 + ("strided",)
    return replace(
        style,
        worlds=worlds,
        sparse_worlds=worlds,
        groups=((1,), (2,), (1, 1)),
        lengths=(3, 4),
        forms=("list",),
        ways=WAYS[:1],
        onward=False,
        between=("zero_grad", "set_lr", "reload"),
        eventful=False,
        ending=True,
        manners=PLAINLY,
        spoils=False,
    )


def style_of(subject: Subject) -> Style:
    """The style in which lives are drawn for a subject."""
    spec = subject.spec
    if spec.closure:
        style = BY_LINE_SEARCH
    elif spec.products:
        style = BY_PRODUCTS
    elif not subject.referenced:
        style = BY_NO_REFERENCE
    else:
        style = ELEMENT_BY_ELEMENT if spec.elementwise else MATRIX_BY_MATRIX
    return _costly(style) if subject.cost > 9 else style
