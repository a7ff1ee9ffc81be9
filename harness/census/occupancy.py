"""How many warps of a kernel a multiprocessor holds at a time."""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
#: Registers of a multiprocessor, and in what portions a warp is given them (CUDA C++ programming guide, technical specifications by compute
#: capability; the portion is that of NVIDIA's occupancy calculator, cuda_occupancy.h).
REGISTERS, PORTION = 65_536, 256
#: Shared memory that the system takes for itself of each block (CUDA C++ programming guide, from compute capability 8.0 on).
RESERVED = 1_024


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor has room for: warps, blocks, bytes of shared memory."""

    warps: int
    blocks: int
    shared: int


#: By compute capability, as 10 times major plus minor (CUDA C++ programming guide, technical specifications by compute capability).
LIMITS = {
    80: Limits(64, 32, 164 * 1024),
    86: Limits(48, 16, 100 * 1024),
    87: Limits(48, 16, 164 * 1024),
    89: Limits(48, 24, 100 * 1024),
    90: Limits(64, 32, 228 * 1024),
    100: Limits(64, 32, 228 * 1024),
    120: Limits(48, 24, 100 * 1024),
}


def resident_warps(capability: int, registers: int, shared: int, warps: int) -> int:
    """Warps that are resident at a time.

    Args:
        registers: of a thread.
        shared: bytes of a block.
        warps: of a block.
    """
    limits = LIMITS[capability]
    of_warp = -(-registers * WARP // PORTION) * PORTION
    # A multiprocessor has four schedulers, each with a quarter of the registers.
    by_registers = 4 * (REGISTERS // 4 // of_warp) // warps
    by_shared = limits.shared // (shared + RESERVED)
    return min(limits.warps // warps, limits.blocks, by_registers, by_shared) * warps


def occupancy(capability: int, registers: int, shared: int, warps: int) -> float:
    """The same, as a share of what a multiprocessor can hold."""
    return resident_warps(capability, registers, shared, warps) / LIMITS[capability].warps
