"""Cores and memory that this process may use on its machine, with the limits of containers."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMORY_LIMITS = (CGROUP / "memory.max", CGROUP / "memory" / "memory.limit_in_bytes")  # cgroups v2, v1


def count_cores() -> float:
    """Return the number of cores that this process may use; a fraction if a container has a share of their time."""
    cores, limit = len(os.sched_getaffinity(0)), CGROUP / "cpu.max"
    quota, _, period = limit.read_text().strip().partition(" ") if limit.is_file() else ("max", "", "")
    return cores if quota == "max" else min(cores, int(quota) / int(period))


def available_bytes() -> int:
    """Return the memory that the page cache could use: free or reclaimable memory, within a container's limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    limits = [path.read_text().strip() for path in MEMORY_LIMITS if path.is_file()]
    return min([kib * 1024, *(int(limit) for limit in limits if limit.isdecimal())])
