"""NUMA distance: a process that runs on the cores of one socket, with its GPU connected to another one."""

import os
from pathlib import Path

from signs.nvml import Gpu, read_address
from signs.sign import DISTANCE, Sign

SYS = Path("/sys")


def find_distance(gpu: Gpu | None) -> Sign | None:
    """Return the sign for this process and its GPU; None without a GPU, or if the machine has one node."""
    address = read_address(gpu) if gpu else None
    return judge_distance(SYS, address, os.sched_getaffinity(0)) if address else None


def judge_distance(sys: Path, address: str, cores: set[int]) -> Sign | None:
    """Return the sign; None if the machine has one node, or the kernel does not know the GPU's.

    Args:
        sys: the folder /sys.
        address: the GPU's PCI address, such as 0000:17:00.0.
        cores: numbers of the cores that the process may use.
    """
    file = sys / "bus" / "pci" / "devices" / address / "numa_node"
    nodes = {
        int(path.parent.name.removeprefix("node")): parse_cores(path.read_text())
        for path in (sys / "devices" / "system" / "node").glob("node[0-9]*/cpulist")
    }
    node = int(file.read_text()) if file.is_file() else -1
    if len(nodes) < 2 or node not in nodes:
        return None
    near = len(cores & nodes[node])
    says = f"The GPU belongs to NUMA node {node}, as do {near} of the {len(cores)} cores that this process may use"
    if near < len(cores):
        says += f". Not measured here: numactl --cpunodebind={node} --membind={node} for each process"
    share = 1 - near / len(cores)
    return Sign(DISTANCE, near < len(cores), share, f"{says}.", {"node": node, "near": near, "cores": len(cores)})


def parse_cores(text: str) -> set[int]:
    """Return the numbers in a list of the kernel, such as 0-3,8."""
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return {core for low, _, high in ranges for core in range(int(low), int(high or low) + 1)}
