"""Which elements of a tensor are looked at in a step, and copies of them.

Elements are drawn by a generator of the harness's own, of a seed, the step and the parameter: the random state of torch, NumPy and Python stays as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stepcheck.harness.life.memory import Raw, SparseRaw, copy
from stepcheck.harness.life.values import splitmix64

Places = npt.NDArray[np.int64]
#: Makes one seed of three numbers: primes, so that neither steps nor parameters repeat each other's draws soon.
_OF_STEP, _OF_PARAMETER = 1_000_003, 7_919
_BFLOAT16_BITS = 16


def places(elements: int, most: int, seed: int, step: int, parameter: int) -> Places:
    """The elements of a tensor that are looked at in a step, in order, each once.

    The first and the last always; of the others one in each of ``most - 2`` strata of equal length, another one in each step.

    Args:
        elements: how many the tensor has.
        most: how many are looked at; all, where there are no more.
    """
    if elements <= most:
        return np.arange(elements)
    strata = most - 2
    edges = np.arange(strata + 1, dtype=np.int64) * elements // strata
    words = splitmix64(seed + step * _OF_STEP + parameter * _OF_PARAMETER, strata)
    inside = edges[:-1] + (words % np.diff(edges).astype(np.uint64)).astype(np.int64)
    return np.unique(np.concatenate([[0], inside, [elements - 1]]))


def taken(tensor: torch.Tensor, at: Places) -> Raw:
    """Copies of these elements, counted row-major, as a flat array; bfloat16, which NumPy lacks, as float32."""
    detached = tensor.detach()
    if not (detached.is_cpu and detached.is_contiguous()):
        return copy(torch.take(detached.resolve_conj(), torch.from_numpy(at).to(detached.device)))
    if detached.dtype is torch.bfloat16:
        bits = detached.view(torch.int16).numpy().reshape(-1)[at].view(np.uint16).astype(np.uint32)
        return (bits << _BFLOAT16_BITS).view(np.float32)
    plain: Raw = detached.resolve_conj().numpy().reshape(-1)[at]
    return plain


def taken_sparse(gradient: torch.Tensor, at: Places) -> SparseRaw:
    """The entries of a sparse gradient that name these elements, each as often as it is named; elements are counted among those in ``at``."""
    dimensions = gradient.sparse_dim()
    inner = int(np.prod(gradient.shape[dimensions:], dtype=np.int64))
    rows = np.ravel_multi_index(tuple(gradient._indices().cpu().numpy()), tuple(gradient.shape[:dimensions]))  # noqa: SLF001 - an uncoalesced tensor has no other way
    named = np.flatnonzero(np.isin(rows, at // inner))
    elements = (rows[named, None] * inner + np.arange(inner)).reshape(-1)
    values = copy(gradient._values()[torch.from_numpy(named).to(gradient.device)]).reshape(-1)  # noqa: SLF001 - as above
    wanted = np.isin(elements, at)
    return SparseRaw(np.searchsorted(at, elements[wanted]), values[wanted])


def named_places(gradient: torch.Tensor, most: int) -> Places:
    """Elements that a sparse gradient names: the first of some of its entries, spread over all of them."""
    dimensions = gradient.sparse_dim()
    inner = int(np.prod(gradient.shape[dimensions:], dtype=np.int64))
    rows = np.ravel_multi_index(tuple(gradient._indices().cpu().numpy()), tuple(gradient.shape[:dimensions]))  # noqa: SLF001 - an uncoalesced tensor has no other way
    chosen = rows[:: max(1, len(rows) // most)]
    return np.unique(np.concatenate([chosen * inner, chosen * inner + inner - 1]).astype(np.int64))


def same(a: Any, b: Any) -> bool:
    """Whether two copies hold the same numbers to the last bit, but for the payload of a NaN."""
    x, y = np.asarray(a), np.asarray(b)
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    return x.tobytes() == y.tobytes() or bool(
        np.all((x == y) & (np.signbit(x.real) == np.signbit(y.real)) | (np.isnan(x) & np.isnan(y)))
    )
