"""What a benchmark has to know of the machine: its processor, its last-level cache, its free memory."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch

MIB = 1 << 20
#: Of a processor that does not say how large its last-level cache is.
USUAL_CACHE = 32 * MIB
_UNITS = {"K": 1 << 10, "M": MIB, "G": 1 << 30}


@functools.cache
def cache_bytes(device: str = "cpu") -> int:
    """The last-level cache, all of its parts together."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    levels: dict[int, dict[str, int]] = {}
    for entry in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        try:
            level, size, cpus = ((entry / name).read_text().strip() for name in ("level", "size", "shared_cpu_list"))
            levels.setdefault(int(level), {})[cpus] = int(size[:-1]) * _UNITS[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return sum(levels[max(levels)].values()) if levels else USUAL_CACHE


def free_memory(device: str = "cpu") -> int | None:
    """Bytes that may be allocated, where the system says."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    told = _table("/proc/meminfo").get("MemAvailable")
    return int(told.split()[0]) << 10 if told else None


def processor(device: str = "cpu") -> str:
    """The name of what computes."""
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    return _table("/proc/cpuinfo").get("model name", platform.machine())


def gpu() -> dict[str, object]:
    """What is to be said of the GPU beside its name."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "cuda": torch.version.cuda,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_bytes": properties.total_memory,
    }


def _table(path: str) -> dict[str, str]:
    """The lines ``key: value`` of a file of the kernel's, the first of each key."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":")[::2] for line in reversed(lines))
    return {key.strip(): value.strip() for key, value in pairs}
