"""What this process and all that it started have used, and the whole machine, from /proc. Standard library alone."""

import os
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
COUNTED = ("Pss_Anon:", "Pss_Shmem:")  # kB: what no file holds, shared memory divided among those who share it
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def read_cpu_seconds() -> float:
    """User and system time of the whole process tree so far, ended children included."""
    stats = _read_stats()
    return sum(sum(map(int, stats[pid][11:15])) for pid in _tree(stats)) / TICKS_PER_SECOND


def read_machine_seconds() -> float:
    """Time that all processors together were busy so far, whoever kept them so; a host that takes them away too."""
    user, nice, system, _, _, irq, softirq, steal = map(int, (PROC / "stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND


def read_memory_bytes() -> int:
    """Anonymous memory and shared memory of the whole process tree; pages of files are not counted."""
    total_kib = 0
    for pid in _tree(_read_stats()):
        with suppress(OSError):  # it ended meanwhile
            for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(" ")
                total_kib += int(value.split()[0]) if name in COUNTED else 0
    return total_kib * 1024


def _read_stats() -> dict[int, list[str]]:
    """The fields of /proc/PID/stat that follow the name (which may hold blanks), of every process."""
    stats = {}
    for path in PROC.glob("[0-9]*/stat"):
        with suppress(OSError):
            stats[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
    return stats


def _tree(stats: dict[int, list[str]]) -> list[int]:
    """This process and its descendants."""
    found = [os.getpid()]
    for parent in found:
        found += [pid for pid, fields in stats.items() if int(fields[1]) == parent]
    return found
