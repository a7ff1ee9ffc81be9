"""What any other grouping of the same operations may cost.

An implementation of which nothing is known may evaluate a formula in any algebraically equal order: add its terms in another
order, multiply out a bracket, take a common factor out, or apply the factors of a scalar one by one. Running error analysis
bounds the order that is written. Here each number carries, beside its value, what it would be fully expanded: a sum of terms, each
a product. However the terms are grouped, a term meets a rounding for each factor of it and for each addition that it takes part in,
and a sum of n terms has n - 1 additions. So an operation costs, instead of u times its result,

====================  ==========================================================  ======================
operation             size of its terms, s, and their number, n                     cost, in u
====================  ==========================================================  ======================
``a + b``, ``a - b``  sa + sb, na + nb                                            sa nb + sb na [1]_ [2]_
``a * b``             sa sb, na nb                                                s (1 + (na - 1) (nb - 1))
``a / b``             sa / abs(b), na                                             s, times division
scalar c enters       abs(c), 1                                                   c [3]_
====================  ==========================================================  ======================

.. [1] abs(a + b) where both are single terms: two numbers can be added in one order only.
.. [2] Three times that where both have a tensor in common, which may be taken out of the bracket: a scalar formed there is rounded when it
   enters, and multiplied.
.. [3] And 3 abs(c) for each product or quotient of scalars that c is made of: applied one by one, each enters and is rounded once or twice.

The parts of a term may be multiplied in any order as well: ``lr (wd p)`` leaves a format that ``(lr wd) p`` stays in. So each number carries
the largest product of some of the factors of its terms, and where that leaves the format, the result is undetermined.

Near zero each product of two numbers loses up to half the smallest number, eta, and whatever is multiplied by the result afterwards multiplies that
as well: ``lr (wd p)`` loses ``(1 + lr) eta``, and ``wd (lr p)`` ``(1 + wd) eta``. So a product of n terms of at most m factors costs
``n (1 + (m - 2) x) eta``, where x is the largest product of some of the factors of one of them, if the smallest such product is below the normal numbers.

All other operations make a single term of their result. What cannot be had by grouping alone, such as ``a + w (x - a)`` for ``(1 - w) a + w x``,
where a term is added and taken away again, is in the list of orders (``stepcheck.reference.arithmetic``).

Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., sections 3.1 and 4.2, has the two bounds that this is made of.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

Float = Any  # a float64 array or a Python float
_NUMBERS = itertools.count()
#: Roundings that a scalar costs each term when it is taken out or applied by itself: its own, and those of a product or a quotient.
_BY_ITSELF = 3


@dataclass(frozen=True, slots=True)
class Terms:
    """A number fully expanded.

    Attributes:
        size: the sum of the absolute values of its terms, elementwise.
        partial: no product of some of the factors of a term, and no sum of such, is larger, elementwise.
        count: how many terms they are.
        tensors: numbers of the tensors that they are made of.
        factors: of a scalar, the products and quotients that it is made of.
        lift: no product of some of the factors of one term is larger, elementwise.
        drop: no such product is smaller, but for zero; at most 1.
        length: how many factors a term has at most.
    """

    size: Float
    partial: Float
    count: int = 1
    tensors: frozenset[int] = frozenset()
    factors: int = 0
    lift: Float = 0.0
    drop: Float = 1.0
    length: int = 1

    def underflows(self, smallest: float) -> Float:
        """How many times half the smallest number products may lose, beyond once, in a format with this smallest normal one."""
        return np.where(self.drop < smallest, self.count * (1.0 + (self.length - 2) * self.lift) - 1.0, 0.0)


def tensor(value: Float) -> Terms:
    """A number that was there before."""
    size = np.abs(value)
    return Terms(size, size, tensors=frozenset((next(_NUMBERS),)), lift=size, drop=_drop(size))


def _drop(size: Float) -> Float:
    """Of one factor. A product with zero loses nothing."""
    return np.where(size == 0.0, 1.0, np.minimum(size, 1.0))


def scalar(value: Float, made: Terms | None = None) -> Terms:
    """A number that is the same for all elements, by itself or as what it is made of."""
    size = np.abs(value)
    if made is None:
        return Terms(size, size, lift=size, drop=_drop(size))
    lift, drop = np.maximum(made.lift, size), np.minimum(made.drop, _drop(size))
    return Terms(size, made.partial, factors=made.factors, lift=lift, drop=drop, length=1 + made.factors)


def added(a: Terms, b: Terms, z: Float) -> tuple[Terms, Float]:
    """The terms of a sum or difference ``z``, and what it costs."""
    lift, drop, length = np.maximum(a.lift, b.lift), np.minimum(a.drop, b.drop), max(a.length, b.length)
    terms = Terms(
        a.size + b.size, a.partial + b.partial, a.count + b.count, a.tensors | b.tensors,
        lift=lift, drop=drop, length=length,
    )  # fmt: skip
    if not a.tensors.isdisjoint(b.tensors):
        return terms, _BY_ITSELF * (a.size * b.count + b.size * a.count)
    return terms, np.abs(z) if terms.count == 2 else a.size * b.count + b.size * a.count


def multiplied(a: Terms, b: Terms) -> tuple[Terms, Float]:
    """The terms of a product, and what it costs."""
    size = a.size * b.size
    partial = np.maximum(np.maximum(a.partial, b.partial), a.partial * b.partial)
    lift = np.maximum(np.maximum(a.lift, b.lift), a.lift * b.lift)
    drop, factors = a.drop * b.drop, a.factors + b.factors + 1
    terms = Terms(size, partial, a.count * b.count, a.tensors | b.tensors, factors, lift, drop, a.length + b.length)
    return terms, size * (1 + (a.count - 1) * (b.count - 1))


def divided(a: Terms, b: Terms, divisor: Float) -> tuple[Terms, Float]:
    """The terms of a quotient, and what it costs, in roundings of a division."""
    size, partial = a.size / divisor, np.maximum(a.partial, a.partial / divisor)
    reciprocal = 1.0 / divisor
    lift = np.maximum(np.maximum(a.lift, reciprocal), a.lift / divisor)
    drop = a.drop * np.minimum(1.0, reciprocal)
    terms = Terms(size, partial, a.count, a.tensors | b.tensors, a.factors + b.factors + 1, lift, drop, a.length + 1)
    return terms, size


def either(*several: Terms) -> Terms:
    """The terms of a number that is one of several."""
    size, partial = several[0].size, several[0].partial
    for terms in several[1:]:
        size, partial = np.maximum(size, terms.size), np.maximum(partial, terms.partial)
    tensors = frozenset().union(*(terms.tensors for terms in several))
    lift, drop = several[0].lift, several[0].drop
    for terms in several[1:]:
        lift, drop = np.maximum(lift, terms.lift), np.minimum(drop, terms.drop)
    count, factors, length = (max(getattr(t, name) for t in several) for name in ("count", "factors", "length"))
    return Terms(size, partial, count, tensors, factors, lift, drop, length)


def entering(scalar: Terms | None, value: Float, unit: float) -> Float:
    """What it may cost beside its own rounding that a scalar meets elements: its factors may meet them one by one."""
    return 0.0 if scalar is None or not scalar.factors else (_BY_ITSELF * scalar.factors * unit) * np.abs(value)
