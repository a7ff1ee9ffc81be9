"""Known of gradients that are views, complex or sparse."""

from __future__ import annotations

from stepcheck.harness.known.entry import TAKE_COMPLEX, Kind
from stepcheck.harness.known.seen import Seen
from stepcheck.harness.life.values import is_complex
from stepcheck.reference.spec import PARAMETER

KIND = Kind()


def _given_conjugated(seen: Seen) -> bool:
    gradients = map(seen.gradient, range(len(seen.trace.parameters)))
    return any(g is not None and g.layout == "conjugated" for g in gradients)


@KIND.enter(
    "conjugated-gradient-viewed-as-real",
    "torch.view_as_real refuses a gradient with the conjugate bit",
    TAKE_COMPLEX,
    "completes",
)
def views_a_conjugate_as_real(seen: Seen) -> bool:
    told = "view_as_real doesn't work on unresolved conjugated tensors"
    return told in seen.message and _given_conjugated(seen)


@KIND.enter(
    "conjugated-gradient-foreach",
    "a foreach operation in place on a list of gradients with the conjugate bit has no fallback",
    "SGD " + TAKE_COMPLEX,
    "completes",
    "foreach",
)
def has_no_fallback_for_conjugates(seen: Seen) -> bool:
    return "fallback doesn't currently support mutable" in seen.message and _given_conjugated(seen)


@KIND.enter(
    "sparse-added-at-twice-the-offset",
    "a coalesced sparse tensor added to a dense one-dimensional view counts the view's offset twice",
    "SGD Adagrad SparseAdam",
    "agreement memory-beside",
)
def adds_at_twice_the_offset(seen: Seen) -> bool:
    gradients, p = [seen.gradient(seen.index)], seen.parameter
    if not seen.field:  # what was written beside it, another may have written that stands in the same memory
        root = seen.index if p.within is None else p.within
        gradients += [seen.gradient(i) for i, q in enumerate(seen.trace.parameters) if root in (i, q.within)]
    # A parameter that is no view has no offset; the states, which the optimizer makes itself, are none.
    viewed = p.layout != "contiguous" and len(p.shape) == 1
    sparse = any(g is not None and g.sparse is not None for g in gradients)
    return viewed and sparse and seen.field in ("", PARAMETER)


@KIND.enter(
    "adagrad-squares-sparse-complex-whole",
    "the square of a complex sparse gradient is that of the complex number, of a dense one those of its parts",
    "Adagrad",
    "agreement",
)
def squares_sparse_complex_whole(seen: Seen) -> bool:
    gradient = seen.gradient(seen.index)
    sparse = gradient is not None and gradient.sparse is not None
    return sparse and is_complex(seen.dtype) and seen.field in ("sum", PARAMETER)
