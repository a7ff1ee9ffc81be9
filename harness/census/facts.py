"""What the error budgets take from the census: how the kernels of an optimizer divide, take roots and powers, and flush."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace

from stepcheck.fast.cuda import runtime
from stepcheck.harness.census import flow, ptx
from stepcheck.harness.census.kernels import kernels_of
from stepcheck.harness.play.profiles import Profile, fast_profile

#: Roundings that an instruction costs, by the largest errors that the PTX ISA states (floating point instructions); an error of one ulp is
#: two roundings, a relative one of 2^-23 is two of float32. A reciprocal makes a quotient with one product more.
DIVISION = {
    "div.rn.f32": 1.0,
    "div.rn.f64": 1.0,
    "div.full.f32": 4.0,
    "div.approx.f32": 4.0,
    "rcp.rn.f32": 2.0,
    "rcp.rn.f64": 2.0,
    "rcp.approx.f32": 3.0,
}
SQUARE_ROOT = {"sqrt.rn.f32": 1.0, "sqrt.rn.f64": 1.0, "sqrt.approx.f32": 2.0}


@functools.cache
def cuda_profile(name: str, capability: int) -> Profile:
    """How ``stepcheck.fast.<name>`` computes on a GPU of a compute capability (``90`` is 9.0), as its kernels were counted.

    Raises:
        ValueError: they have an instruction whose accuracy is not known here.
    """
    operations: Counter[str] = Counter()
    powers = False
    for kernel in {k.source: k for k in kernels_of(name)}.values():
        found = flow.totals(ptx.all_instructions(runtime.compiled(kernel.source, capability).asm["ptx"]))
        if kernel.model.powers:
            powers = True
            # The approximations within libdevice's pow are part of its own error.
            found = {op: n for op, n in found.items() if op in DIVISION or op in SQUARE_ROOT}
        operations.update(found)
    return profile_of(fast_profile(name, "cuda"), dict(operations), f"sm_{capability}", powers=powers)


def profile_of(profile: Profile, operations: dict[str, int], where: str, *, powers: bool) -> Profile:
    """A profile with the facts that follow from instructions of PTX and how many there are of each.

    Args:
        where: for whom they were compiled.
        powers: whether libdevice's pow is called.
    """
    found = ptx.divisions(operations)
    # How subnormal numbers are taken is a fact of its own.
    variants = {op.replace(".ftz", "") for op in found}
    unknown = variants - DIVISION.keys() - SQUARE_ROOT.keys()
    if unknown:
        raise ValueError(f"it is not known how accurate {', '.join(sorted(unknown))} is")
    flushed = ptx.flushed(operations)
    told = ", ".join(f"{n} {op}" for op, n in sorted(found.items())) or "no division"
    reason = f"{profile.reason}; its CUDA kernels were counted for {where}: {told}, {flushed} that flush"
    return replace(
        profile,
        reason=reason + (f"; pow is libdevice's, {runtime.POWER_ULPS} ulps" if powers else ""),
        division=max([profile.division, *(DIVISION[op] for op in variants & DIVISION.keys())]),
        square_root=max([profile.square_root, *(SQUARE_ROOT[op] for op in variants & SQUARE_ROOT.keys())]),
        power=2.0 * runtime.POWER_ULPS if powers else profile.power,
        flush_to_zero=bool(flushed),
    )
