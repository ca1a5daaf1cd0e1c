"""CPU time and memory of this process and its child processes, and CPU time of the machine, from /proc.

Uses the standard library only, since it runs under every peer's interpreter.
"""

import os
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
COUNTED = ("Pss_Anon:", "Pss_Shmem:")  # kB not backed by files; shared memory is divided among its users
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def read_cpu_seconds() -> float:
    """Return the user and system time of the process tree so far, including children that have ended."""
    stats = _read_stats()
    return sum(sum(map(int, stats[pid][11:15])) for pid in _tree(stats)) / TICKS_PER_SECOND


def read_machine_seconds() -> float:
    """Return the busy time of all cores so far, by any process; includes time that the host took away (steal)."""
    user, nice, system, _, _, irq, softirq, steal = map(int, (PROC / "stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND


def read_memory_bytes() -> int:
    """Return the anonymous and shared memory of the process tree; pages of files are not counted."""
    total_kib = 0
    for pid in _tree(_read_stats()):
        with suppress(OSError):  # the process has ended
            for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(" ")
                total_kib += int(value.split()[0]) if name in COUNTED else 0
    return total_kib * 1024


def _read_stats() -> dict[int, list[str]]:
    """Return for each process the fields of /proc/PID/stat that follow its name."""
    stats = {}
    for path in PROC.glob("[0-9]*/stat"):
        with suppress(OSError):
            stats[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
    return stats


def _tree(stats: dict[int, list[str]]) -> list[int]:
    """Return the ids of this process and its descendants."""
    found = [os.getpid()]
    for parent in found:
        found += [pid for pid, fields in stats.items() if int(fields[1]) == parent]
    return found
