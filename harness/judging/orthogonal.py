r"""Judge one step of Muon on one matrix: what comes before the matrix products, the products, what comes after.

Before and after, every operation is elementwise and has its budget in :class:`~stepcheck.harness.numbers.bounded.Bounded`. The
products are carried out in a format P, of which an iteration amplifies the roundings so much that elementwise budgets
would outgrow the result. Of a narrow P (bfloat16) three comparisons of the parameter share the work, each sound alone; of a
wide one (binary32, binary64) only the last is left, and is sharp. Where P is not known, binary32 is asked first, and
bfloat16 if that does not agree.

*After the products.* The orthogonalized matrix O has numbers of P as elements. What the parameter lost, over the
adjusted learning rate, must be such a number. A wrong learning rate or decay shows here, whatever the products were; a
wrong sign does not.

*Rounded once.* Where P is so much coarser than the format that products are accumulated in, rounding absorbs what the
order of summation leaves open: nearly every element has one outcome, and the few within reach of a tie have two. The
iteration is followed through all of them; O is then known exactly, and the parameter is compared element by element. It
takes a subject that rounds each product to P once, at its end (``torch.addmm`` with both addends in it), which is a
fact of its profile.

*Normwise.* Without that fact: the Frobenius distance of O from the exact iteration, against a bound of what rounding
can do. Normalization is elementwise and followed as above. From there on let :math:`X_j` be the subject's matrices, f
one exact iteration and :math:`\delta_j \ge \lVert X_j - f(X_{j-1}) \rVert_F` what rounding adds in iteration j
(:func:`_local_error`). Telescoping, with :math:`f^{(i)}` for i iterations,

.. math::
    \lVert X_k - f^{(k)}(Y_0) \rVert_F \le C_0 \lVert X_0 - Y_0 \rVert_F + \sum_j C_j \delta_j,

where :math:`C_j` is the Lipschitz constant of :math:`f^{(k-j)}` on the ball of radius :math:`e_j` around :math:`Y_j =
f^{(j)}(Y_0)`, and :math:`e_j` is this same bound with j for k. Balls are convex, so that the constant is the largest
norm of the Fréchet derivative in them, and no matrix in one has a singular value further than :math:`e_j` from those
of :math:`Y_j` (Weyl): nothing is neglected as being of second order. f acts on singular values by an odd polynomial
F. In the bases of singular vectors, its derivative multiplies the symmetric part of each pair of elements (i, j), (j,
i) by :math:`(F(s_i) - F(s_j)) / (s_i - s_j)`, which is a value of F' between the two; the skew part by :math:`(F(s_i)
+ F(s_j)) / (s_i + s_j)`, which lies between :math:`F(s_i) / s_i` and :math:`F(s_j) / s_j`; and what is outside the
shorter side's bases by :math:`F(s_i) / s_i` (Noferini, *A formula for the Fréchet derivative of a generalized matrix
function*, SIAM J. Matrix Anal. Appl. 38, 2017). So its norm is at most the maximum of abs(F') and abs(F(s) / s) from
the smallest to the largest singular value in reach, which interval arithmetic on small cells bounds
(:class:`_Reach`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepcheck.harness.numbers.bounded import Bounded
from stepcheck.harness.numbers.comparison import Array, Comparison, ratios
from stepcheck.harness.numbers.formats import (
    BFLOAT16,
    BINARY32,
    BINARY64,
    REFERENCE_ROUNDOFF,
    SCALARS64,
    Arithmetic,
    Format,
)
from stepcheck.harness.numbers.options import bounded_option
from stepcheck.reference import muon
from stepcheck.reference.spec import PARAMETER

Indices = npt.NDArray[np.int_]

BUFFER = "momentum_buffer"
AFTER_PRODUCTS = f"{PARAMETER} (after the products)"
ROUNDED_ONCE = f"{PARAMETER} (products, rounded once)"
NORMWISE = f"{PARAMETER} (products, normwise)"

#: A budget beyond this share of the norm of O says nothing.
_SHARE = 0.25
#: How many matrices are followed where elements are near a tie.
_MOST_OUTCOMES = 128
#: Cells between the smallest and the largest singular value, in geometric progression.
_CELLS = 256
#: Covers the float64 evaluation of norms and singular values.
_SLACK = 1 + 1e-9


def judge_step(
    arithmetic: Arithmetic,
    hyper: SimpleNamespace,
    p: Array,
    g: Array,
    before: Mapping[str, Array | None],
    p_after: Array,
    after: Mapping[str, Array],
    products: Format | None = BFLOAT16,
    *,
    held: Arithmetic = SCALARS64,
    rounded_once: bool = False,
    element: Format | None = None,
) -> list[Comparison]:
    """What the reference says of one step of one matrix.

    Args:
        arithmetic: that of the parameter's dtype, outside the products.
        hyper: the hyperparameters, plain numbers.
        p: the parameter before the step; it and all others two-dimensional and of one shape.
        g: its gradient.
        before: the state before the step; ``None`` or nothing for a buffer that does not exist yet.
        p_after: the parameter after the step.
        after: the state after the step.
        products: the format of the products' operands and results, or a narrower one than they have; ``None`` where it is
            not known.
        held: the arithmetic of the hyperparameters.
        rounded_once: a product, addend included, is rounded to that format once; it is then compared exactly too.
        element: the format that parameter and state are stored in, where ``arithmetic`` has a wider one.

    Returns:
        ``momentum_buffer``, if ``after`` has it, and comparisons of the parameter: after the products (if narrow), rounded once (if so), and
        normwise, which is one number. Undetermined elements have an infinite error. An empty matrix has none.
    """
    if not p.size:
        return []
    with np.errstate(all="ignore"):
        scalars = _scalars(hyper, held)
        gradient = Bounded(g, 0.0, arithmetic)
        buffer, comparisons = _averaged(gradient, before.get(BUFFER), after.get(BUFFER), scalars, element)
        x = _direction(gradient, buffer, scalars)

        def judged_in(products: Format) -> list[Comparison]:
            step = _Step(scalars, arithmetic, products, p, p_after, element)
            normalized = _normalized(x, float(hyper.eps), products)
            found = []
            if _is_narrow(products):
                found.append(step.after_products())
                if rounded_once:
                    found.append(step.rounded_once(_follow(normalized, hyper, products)))
            return [*found, step.normwise(normalized, hyper, rounded_once=rounded_once)]

        if products is not None:
            return comparisons + judged_in(products)
        wide = judged_in(BINARY32)
        if all(map(_agrees, wide)) and all(map(_is_determined, wide)):
            return comparisons + wide
        narrow = judged_in(BFLOAT16)
        # What neither rejects is best told by bfloat16, which has more to say of the learning rate.
        return comparisons + (narrow if all(map(_agrees, narrow)) or not all(map(_agrees, wide)) else wide)


def _averaged(
    gradient: Bounded, buffered: Array | None, held: Array | None, scalars: SimpleNamespace, element: Format | None
) -> tuple[Bounded, list[Comparison]]:
    """The momentum buffer that the direction starts from: what the subject holds, if that is right."""
    arithmetic = gradient.arithmetic
    start = Bounded(np.zeros(gradient.shape) if buffered is None else buffered, 0.0, arithmetic)
    buffer = _stored(_whole(muon.average(gradient, start, scalars)), element)
    if held is None:
        return buffer, []
    comparison = Comparison(BUFFER, held.reshape(-1), _flat(buffer), gradient.shape)
    known = (ratios(held, buffer) <= 1) & np.isfinite(buffer.error)
    buffer = Bounded(np.where(known, held, buffer.value), np.where(known, 0.0, buffer.error), arithmetic)
    return buffer, [comparison]


def _agrees(c: Comparison) -> bool:
    return bool(np.all(ratios(c.actual, c.predicted) <= 1))


def _is_determined(c: Comparison) -> bool:
    return bool(np.all(np.isfinite(c.predicted.error)))


def _direction(g: Bounded, buffer: Bounded, scalars: SimpleNamespace) -> Bounded:
    """What is orthogonalized. A narrow format rounds one wider operation: nearly every element has one outcome."""
    arithmetic = g.arithmetic
    known = arithmetic.entry is None and not arithmetic.orders & {"written", "naive_lerp"}
    if arithmetic.inner is None or not scalars.nesterov or not known:
        return _whole(muon.direction(g, buffer, scalars))
    wide = arithmetic.within
    x = _whole(
        muon.direction(Bounded(g.value, 0.0, wide), Bounded(buffer.value, buffer.error, wide), scalars),
    )
    rounded = _rounding(x.value, np.asarray(x.error), arithmetic.format)
    return Bounded(rounded.value, rounded.error, arithmetic)


def _scalars(hyper: SimpleNamespace, held: Arithmetic) -> SimpleNamespace:
    tensors = getattr(hyper, "tensors", ())
    return SimpleNamespace(
        **{
            name: bounded_option(value, held, tensor=name in tensors) if isinstance(value, float) else value
            for name, value in vars(hyper).items()
        }
    )


def _whole(x: Bounded) -> Bounded:
    return Bounded(x.value, np.broadcast_to(x.error, x.shape), x.arithmetic)


def _stored(x: Bounded, element: Format | None) -> Bounded:
    if element is None:
        return x
    stored = x.store(element)
    return Bounded(stored.value, stored.error, x.arithmetic)


def _flat(x: Bounded) -> Bounded:
    return Bounded(x.value.reshape(-1), np.broadcast_to(x.error, x.shape).reshape(-1), x.arithmetic)


class _Step:
    """The parameter of one step, which the products reached through one subtraction."""

    def __init__(
        self,
        scalars: SimpleNamespace,
        arithmetic: Arithmetic,
        products: Format,
        p: Array,
        p_after: Array,
        element: Format | None,
    ) -> None:
        self.element = element
        self.scalars, self.arithmetic, self.products = scalars, arithmetic, products
        self.p, self.p_after = p, p_after
        self.lr = float(muon.adjusted_lr(p.shape, scalars).value)
        # What O must have been, with the error of everything after the products.
        self.without = _whole(muon.apply(Bounded(p, 0.0, arithmetic), np.zeros(p.shape), scalars)).value
        self.o = (self.without - p_after) / self.lr
        # The budget of the last rounding hardly depends on O, but it does; and only of O = 0 is there none: a small one may round to it.
        rounded = np.where(self.o == 0, products.unit_roundoff, self.o)
        self.o_error = _whole(self.apply(rounded)).error / self.lr * (1 + 4 * arithmetic.unit)
        self.o_error = self.o_error + 4 * REFERENCE_ROUNDOFF * np.abs(self.o)  # of its own evaluation
        self.o_error = np.where(np.isfinite(self.o) & (self.lr > 0), self.o_error, np.inf)

    def apply(self, o: Array) -> Bounded:
        # Its elements are numbers of the products' format, so they enter without rounding.
        p = _whole(muon.apply(Bounded(self.p, 0.0, self.arithmetic), Bounded(o, 0.0, self.arithmetic), self.scalars))
        return _stored(p, self.element)

    def after_products(self) -> Comparison:
        predicted = self.apply(_round_to(self.products, self.o))
        # No two numbers of the format in reach.
        alone = 2 * self.o_error < _spacing(self.products, np.maximum(np.abs(self.o) - self.o_error, 0.0))
        error = np.where(alone, predicted.error, np.inf)
        return self._compare(AFTER_PRODUCTS, Bounded(predicted.value, error, self.arithmetic))

    def rounded_once(self, outcomes: Array) -> Comparison:
        if not len(outcomes):
            anything = Bounded(np.zeros(self.p.shape), np.inf, self.arithmetic)
            return self._compare(ROUNDED_ONCE, anything)
        nearest = min(map(self.apply, outcomes), key=lambda x: float(np.max(ratios(self.p_after, x))))
        return self._compare(ROUNDED_ONCE, nearest)

    def _compare(self, name: str, predicted: Bounded) -> Comparison:
        return Comparison(name, self.p_after.reshape(-1), _flat(predicted), self.p.shape)

    def normwise(self, start: _Rounded, hyper: SimpleNamespace, *, rounded_once: bool) -> Comparison:
        distance, budget, center = 0.0, math.inf, None
        recovered = float(np.linalg.norm(self.o_error))
        if math.isfinite(recovered) and np.all(np.isfinite(start.value)) and np.all(np.isfinite(start.error)):
            exact = muon.iterate(start.value, hyper.ns_coefficients, hyper.ns_steps)
            bound = recovered + _bound(start, hyper, self.products, rounded_once=rounded_once)
            if bound <= _SHARE * float(np.linalg.norm(exact)):
                # In the units of the parameter, which is what can be read.
                distance, budget = self.lr * float(np.linalg.norm(self.o - exact)), self.lr * bound
                center = (self.without - self.lr * exact).reshape(-1)
        predicted = Bounded(np.zeros(1), np.array([budget]), SCALARS64)
        return Comparison(NORMWISE, np.array([distance]), predicted, (), center=center)


# Rounding to a format: of a number that is known to lie in an interval.


def _is_narrow(products: Format) -> bool:
    """Whether products are accumulated in a wider format, so that numbers of this one are few enough to be told apart."""
    return products.unit_roundoff > BINARY32.unit_roundoff


def _accumulator(products: Format) -> Format:
    return BINARY64 if products is BINARY64 else BINARY32


def _roundoff(of: Format) -> float:
    """The unit roundoff, with that of the reference where it computes in the same format."""
    return of.unit_roundoff + (REFERENCE_ROUNDOFF if of is BINARY64 else 0.0)


def _tiny(products: Format) -> float:
    """Results below it may be flushed to zero, operands as well."""
    return 2.0 * 2.0 ** _accumulator(products).min_exponent


@dataclass(frozen=True)
class _Rounded:
    """A matrix of numbers of a narrow format: what rounding gives, and the least and the largest that it may give."""

    value: Array
    low: Array
    high: Array

    @property
    def settled(self) -> Array:
        nan = np.isnan(self.value) & np.isnan(self.low) & np.isnan(self.high)
        settled: Array = (self.low == self.high) | nan
        return settled

    @property
    def error(self) -> Array:
        """How far from ``value`` the number may be; infinite where that is not known."""
        error = np.maximum(self.high - self.value, self.value - self.low)
        result: Array = np.where(self.settled, 0.0, np.where(np.isnan(error), np.inf, error))
        return result


def _unknown(shape: tuple[int, ...]) -> _Rounded:
    return _Rounded(np.zeros(shape), np.full(shape, -np.inf), np.full(shape, np.inf))


def _spacing(to: Format, x: Array) -> Array:
    """The distance between the numbers of a format at ``x``."""
    _, exponent = np.frexp(x)
    exponent = np.where(x == 0, to.min_exponent, exponent)
    spacing: Array = np.ldexp(1.0, np.maximum(exponent, to.min_exponent + 1) - to.significand_bits)
    return spacing


def _round_to(to: Format, x: Array) -> Array:
    spacing = _spacing(to, x)
    rounded = np.where(np.isfinite(x), np.rint(x / spacing) * spacing, x)
    result: Array = np.where(np.abs(rounded) > to.largest, np.copysign(np.inf, rounded), rounded)
    return result


def _rounding(x: Array, radius: Array, to: Format) -> _Rounded:
    """``x`` rounded, where what the subject rounds is no further from it than ``radius``; if wide, perhaps not rounded."""
    if not _is_narrow(to):
        radius = radius + _roundoff(to) * (np.abs(x) + radius) + _tiny(to) * ((x != 0) | (radius != 0))
    radius = np.where(np.isfinite(x), radius, np.where(radius == 0, 0.0, np.nan))
    if not _is_narrow(to):
        return _Rounded(x, x - radius, x + radius)
    z, low, high = (_round_to(to, y) for y in (x, x - radius, x + radius))
    # What is subnormal may be flushed to zero.
    flushed = (np.abs(x) - radius < _tiny(to)) & (np.abs(x) + radius > 0)
    return _Rounded(z, np.where(flushed, np.minimum(low, 0.0), low), np.where(flushed, np.maximum(high, 0.0), high))


def _normalized(x: Bounded, eps: float, products: Format) -> _Rounded:
    """The matrix that the iteration starts from: cast, and divided by its norm, each rounded to ``products``."""
    narrow, u, tiny = _is_narrow(products), _roundoff(_accumulator(products)), _tiny(products)
    error: Array = np.asarray(x.error)
    if not narrow and x.arithmetic.format.unit_roundoff >= products.unit_roundoff:
        # Nothing is cast. What is not finite has no interval.
        error = np.where(np.isfinite(x.value), error, np.where(error == 0, 0.0, np.nan))
        cast = _Rounded(x.value, x.value - error, x.value + error)
    else:
        # float64 may be cast by way of float32.
        twice = u * np.abs(x.value) if narrow and x.arithmetic.format is BINARY64 else 0.0
        cast = _rounding(x.value, error + twice, products)
    value, error = cast.value, cast.error
    if np.any(np.isnan(value) & cast.settled):
        return _Rounded(*(np.full(value.shape, np.nan) for _ in range(3)))  # one NaN makes the norm NaN
    largest = np.abs(value) + error
    squares = float(np.sum(largest**2))
    if not squares * (1 + 2 * value.size * u) < _accumulator(products).largest:
        return _unknown(value.shape)  # the norm may overflow where the recurrence has a number
    doubt = 2 * value.size * u * squares + value.size * tiny * bool(np.any(largest > 0))
    norm, apart = float(np.linalg.norm(value)), float(np.linalg.norm(error))
    low, high = (math.sqrt(max(max(norm + s * apart, 0.0) ** 2 + s * doubt, 0.0)) * (1 + 4 * s * u) for s in (-1, 1))
    low, high = (max(n, eps * (1 + s * u)) for s, n in ((-1, low), (1, high)))
    if narrow:
        low, high = (float(_round_to(products, np.asarray(n))) for n in (low, high))
    elif low < tiny:
        low = 0.0  # it may be flushed
    if low == 0:
        # eps is 0: of the zero matrix, 0 / 0.
        return _Rounded(*(value / 0.0 for _ in range(3))) if high == 0 else _unknown(value.shape)
    ends = [end / n for end in (cast.low, cast.high) for n in (low, high)]
    least, most = np.minimum.reduce(ends), np.maximum.reduce(ends)
    # The quotient may be a product with the reciprocal.
    return _rounding((least + most) / 2, (most - least) / 2 + 4 * u * np.maximum(np.abs(least), np.abs(most)), products)


# The products, each rounded once.


class _TooManyError(Exception):
    """More outcomes than can be followed."""


def _follow(start: _Rounded, hyper: SimpleNamespace, products: Format) -> Array:
    """All matrices that the iteration may end with, stacked; none where there are too many."""
    a, b, c = hyper.ns_coefficients
    if np.all(np.isnan(start.value)) and np.all(start.settled):
        return start.value[None]
    tall = start.value.shape[0] > start.value.shape[1]
    try:
        x, _ = _each(start, np.zeros(1, int), products)
        x = np.swapaxes(x, 1, 2) if tall else x
        for _ in range(hyper.ns_steps):
            # Every outcome of a product goes with the x that it came from.
            gram, of = _each(_product(x, np.swapaxes(x, 1, 2), None, 0.0, 1.0, products), np.arange(len(x)), products)
            polynomial, of = _each(_product(gram, gram, gram, b, c, products), of, products)
            x, _ = _each(_product(polynomial, x[of], x[of], a, 1.0, products), of, products)
    except _TooManyError:
        return np.zeros((0, *start.value.shape))
    return np.swapaxes(x, 1, 2) if tall else x


def _product(x: Array, y: Array, addend: Array | None, beta: float, alpha: float, products: Format) -> _Rounded:
    """``beta addend + alpha x y``, its terms added in any order in binary32, rounded to ``products``."""
    z, size = alpha * (x @ y), abs(alpha) * (np.abs(x) @ np.abs(y))
    terms, u, tiny = (
        x.shape[-1],
        BINARY32.unit_roundoff * (1 + 1e-3),
        _tiny(products),
    )  # with the higher powers: Higham, section 3.1
    radius: Array
    if addend is None:
        # A product of two elements is exact. So is a sum of multiples of one number while binary32 has the digits.
        unit = (
            np.min(_last_bit(products, x), axis=-1)[..., None] * np.min(_last_bit(products, y), axis=-2)[..., None, :]
        )
        exact = (size <= 2.0**BINARY32.significand_bits * unit) & (unit > tiny)
        radius = np.where(exact, 0.0, (terms - 1) * u * size + terms * tiny * (size > 0))
    else:
        # The scalar is rounded, so is a product with it; of alpha, perhaps before that with the other element.
        kept = abs(beta) * np.abs(addend)
        radius = u * ((terms + (0 if alpha == 1 else 3)) * size + (terms + 2) * kept)
        z, size = beta * addend + z, kept + size
        radius = radius + (terms + 2) * tiny * (size > 0)
    return _rounding(z, np.where(size < BINARY32.largest, radius, np.nan), products)


def _last_bit(of: Format, x: Array) -> Array:
    """A power of two that each element is a multiple of."""
    bit: Array = np.where(x == 0, np.inf, _spacing(of, x))
    return bit


def _each(stack: _Rounded, of: Indices, to: Format) -> tuple[Array, Indices]:
    """The matrices of a stack, open elements taken in all ways; with the entry of ``of`` for each.

    Raises:
        _TooManyError: these are too many.
    """
    value = stack.value if stack.value.ndim == 3 else stack.value[None]
    low, high, settled = (x.reshape(value.shape) for x in (stack.low, stack.high, stack.settled))
    matrices: list[Array] = []
    parents: list[int] = []
    for n in range(len(value)):
        open_ = tuple(np.argwhere(~settled[n]).T)
        ends = np.stack([low[n][open_], high[n][open_]])
        nearer = np.where(ends[0] * ends[1] > 0, np.min(np.abs(ends), axis=0), 0.0)
        neighbours = ends[1] - ends[0] <= _spacing(to, nearer)
        if not np.all(neighbours) or ends.shape[1] > 30 or len(matrices) + 2 ** ends.shape[1] > _MOST_OUTCOMES:
            raise _TooManyError
        for chosen in itertools.product(*ends.T):
            matrix = value[n].copy()
            matrix[open_] = chosen
            matrices.append(matrix)
            parents.append(of[n])
    return np.stack(matrices), np.array(parents)


# What rounding can do at most, as a Frobenius norm.


class _Reach:
    """The singular values that matrices near one may have, in small cells, and what a function of them does to
    distances.

    Args:
        low: the smallest of them.
        high: the largest of them.
    """

    def __init__(self, low: float, high: float) -> None:
        edges = np.geomspace(max(low, high * 1e-4, 1e-300), max(high, 1e-300), _CELLS + 1)
        edges[0] = low
        self.low, self.high = edges[:-1], edges[1:]
        self.slope = self.ratio = np.ones(_CELLS)

    def through(self, a: float, b: float, c: float) -> None:
        """Apply one iteration."""
        low, high = self.low, self.high
        across = (low <= 0) & (high >= 0)
        squares = low * low, high * high
        least, most = np.where(across, 0.0, np.minimum(*squares)), np.maximum(*squares)
        self.slope = self.slope * _largest(a, 3 * b, 5 * c, least, most)
        self.ratio = self.ratio * _largest(a, b, c, least, most)
        ends = [_quintic(s, a, b, c) for s in (low, high)]
        for turn in _turns(a, b, c):
            for s in (-turn, turn):
                ends.append(np.where((low < s) & (s < high), _quintic(np.asarray(s), a, b, c), ends[0]))
        self.low, self.high = np.minimum.reduce(ends), np.maximum.reduce(ends)

    @property
    def lipschitz(self) -> float:
        """By how much all that was applied can stretch a distance."""
        return float(max(np.max(self.slope), np.max(self.ratio))) * _SLACK


def _quintic(s: Array, a: float, b: float, c: float) -> Array:
    t = s * s
    return s * (a + t * (b + t * c))


def _turns(a: float, b: float, c: float) -> list[float]:
    """The positive numbers at which the slope of the quintic is 0."""
    roots: Any = np.roots([5 * c, 3 * b, a])
    return [math.sqrt(r.real) for r in roots if abs(r.imag) < 1e-9 * abs(r) and r.real > 0]


def _largest(a: float, b: float, c: float, least: Array, most: Array) -> Array:
    """The largest abs(a + b t + c t t) for t from ``least`` to ``most``."""
    largest = np.maximum(np.abs(a + least * (b + least * c)), np.abs(a + most * (b + most * c)))
    if c != 0:
        vertex = -b / (2 * c)
        inside = (least < vertex) & (vertex < most)
        largest = np.where(inside, np.maximum(largest, abs(a - b * b / (4 * c))), largest)
    return largest


def _bound(start: _Rounded, hyper: SimpleNamespace, products: Format, *, rounded_once: bool) -> float:
    """How far the iteration may end from where it ends without rounding, if it starts from ``start``."""
    values = np.asarray(np.linalg.svd(start.value, compute_uv=False), np.float64)
    local = float(np.linalg.norm(start.error))
    radius, reaches = local, list[tuple[_Reach, float]]()
    for _ in range(hyper.ns_steps):
        slack = radius + 1e-12 * float(values.max())
        reaches.append((_Reach(max(float(values.min()) - slack, 0.0), float(values.max()) + slack), local))
        local = _local_error(values, slack, max(start.value.shape), hyper.ns_coefficients, products, rounded_once)
        values = np.abs(_quintic(values, *hyper.ns_coefficients))
        radius = local
        for reach, error in reaches:
            reach.through(*hyper.ns_coefficients)
            radius += reach.lipschitz * error if error else 0.0
        if not math.isfinite(radius):
            return math.inf
    return float(radius * _SLACK)


def _local_error(
    s: Array,
    radius: float,
    columns: int,
    coefficients: tuple[float, float, float],
    products: Format,
    rounded_once: bool,
) -> float:
    """What rounding adds in one iteration on a matrix within ``radius`` of one with the singular values ``s``.

    The intermediate matrices are functions of singular values no further than ``radius`` from ``s``. ``rounded_once``
    leaves the final rounding of each product; else scalar multiples, of a factor or of a product, are rounded too.
    """
    a, b, c = coefficients
    u = _roundoff(products)
    more = 0.0 if rounded_once else u
    least, most = np.maximum(s - radius, 0.0) ** 2, (s + radius) ** 2
    two, x = math.sqrt(float(most.max())), float(np.linalg.norm(s)) + radius  # the 2-norm and the Frobenius norm

    def sums(terms: int) -> float:
        return float((terms + 4) * _roundoff(_accumulator(products)) * (1 + 1e-3))

    # gram = x x^T
    gram = float(np.linalg.norm(s**2)) + radius * (2 * two)
    e1 = sums(columns) * x * x * (1 + u) + u * gram
    gram += e1
    # polynomial = b gram + c gram gram, whose derivative in the direction E has the elements (b + c (l_i + l_j)) E_ij
    square = float(np.linalg.norm(most**2)) + (2 * two * two + e1) * e1
    bent = (
        float(np.max(_largest(b, 2 * c, 0.0, np.asarray(least.min()), np.asarray(most.max())))) * e1 + abs(c) * e1 * e1
    )
    polynomial = float(np.linalg.norm(_largest(0.0, b, c, least, most))) + bent
    e2 = sums(len(s)) * (abs(c) * gram * gram + abs(b) * gram) * (1 + u)
    e2 += u * polynomial + more * (abs(b) * gram + abs(c) * (square + gram * (two * two + e1)))
    polynomial += e2
    # a x + polynomial x
    inherited = (bent + e2) * two
    result = float(np.linalg.norm(_largest(a, b, c, least, most) * np.sqrt(most))) + inherited
    e3 = sums(len(s)) * (polynomial * x + abs(a) * x) * (1 + u)
    e3 += u * result + more * (
        abs(a) * x + float(np.linalg.norm(_largest(0.0, b, c, least, most) * np.sqrt(most))) + inherited
    )
    flushed = len(s) * columns * (1 + abs(a) + abs(b) + abs(c)) * (1 + two) * _tiny(products) * columns
    return float((inherited + e3 + flushed) * (1 + more) * _SLACK)  # second order, as each error is of what was rounded
