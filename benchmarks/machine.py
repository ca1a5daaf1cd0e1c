"""What a measurement needs to know of the machine.

Cores, memory, disks, the page cache, threads, interpreters, and the GPU's counters. Functions that need psutil
import it: gpu_model.py imports this module on a bare GPU machine, which lacks it.
"""

import ctypes
import mmap
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import psutil
    import torch

# Cores and memory, within the limits of a container.
CGROUP = Path("/sys/fs/cgroup")
MEMORY_LIMITS = (CGROUP / "memory.max", CGROUP / "memory" / "memory.limit_in_bytes")  # cgroups v2, v1

# NVIDIA's library NVML.
NVML = "libnvidia-ml.so.1"
PCI_INFO_BYTES, BUS_ID_AT, BUS_ID_BYTES = 68, 36, 32  # of nvmlPciInfo_t
SM_CLOCK = 1  # NVML_CLOCK_SM
SAMPLE_SECONDS = 0.1  # between two samples of the clocks

# nvidia-smi's table of use, one line per second.
SMI, LINE_BY_LINE = "nvidia-smi", ("stdbuf", "-oL")  # lines in its buffer would be lost when it is killed
DMON = ("dmon", "--select", "u", "--delay", "1")
PERCENTAGES = ("sm", "mem", "dec", "jpg")  # multiprocessors, memory, video decoder, JPEG decoder
LONGEST_END = 10  # seconds

libc = ctypes.CDLL(None, use_errno=True)
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def count_cores() -> float:
    """Return the number of cores that this process may use; a fraction if a container has a share of their time."""
    cores, limit = len(os.sched_getaffinity(0)), CGROUP / "cpu.max"
    quota, _, period = limit.read_text().strip().partition(" ") if limit.is_file() else ("max", "", "")
    return cores if quota == "max" else min(cores, int(quota) / int(period))


def available_bytes() -> int:
    """Return the memory that the page cache could use: free or reclaimable memory, within a container's limit."""
    import psutil  # noqa: PLC0415

    limits = [path.read_text().strip() for path in MEMORY_LIMITS if path.is_file()]
    return min([psutil.virtual_memory().available, *(int(limit) for limit in limits if limit.isdecimal())])


def has_busy_threads() -> bool:
    """Return True if another thread of this process runs, waits for a core, or waits for the disk."""
    own, states = str(threading.get_native_id()), []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            if task.name != own:
                states.append((task / "stat").read_text().rpartition(") ")[2][0])
    return "R" in states or "D" in states


def list_processes(pid: int | None = None) -> "list[psutil.Process]":
    """Return a process, by default this one, and all its descendants; nothing if it has ended."""
    import psutil  # noqa: PLC0415

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def read_cpu_seconds(pid: int | None = None) -> float:
    """Return the user and system time of a process tree so far, including descendants that have ended."""
    import psutil  # noqa: PLC0415

    seconds = 0.0
    for process in list_processes(pid):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def _read_own_cpu_seconds() -> float | None:
    """Return the CPU time of this process tree; None without psutil, which a bare GPU machine may lack."""
    with suppress(ImportError):
        return read_cpu_seconds()
    return None


# The page cache, so that a cold read is verified.


def drop_from_cache(paths: Iterable[Path]) -> None:
    """Ask the kernel to drop files from the page cache; it keeps what others have mapped, and everything on tmpfs."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def share_resident(paths: Iterable[Path]) -> float:
    """Return the share of the files' pages that is in memory, by mincore(2), which does not read them.

    For files that the caller may not write, the kernel answers 1. So reading them is never called cold by mistake.
    """
    num_resident = num_pages = 0
    for path in paths:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if not size_bytes:
                continue
            # One byte per page; its lowest bit is 1 if the page is in memory.
            resident = np.zeros(-(-size_bytes // mmap.PAGESIZE), np.uint8)
            with mmap.mmap(file.fileno(), size_bytes, prot=mmap.PROT_READ) as mapped:
                start = np.frombuffer(mapped, np.uint8).ctypes.data  # no reference, so the mapping can be closed
                if libc.mincore(start, size_bytes, resident.ctypes.data):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        num_resident += int((resident & 1).sum())
        num_pages += len(resident)
    return num_resident / num_pages if num_pages else 0.0


# A GPU's place and clocks. NVML numbers GPUs in another way than CUDA, so a GPU is found by its UUID.


class Gpu(NamedTuple):
    """A GPU in NVML: the library and its handle."""

    nvml: Any
    handle: ctypes.c_void_p


class Sample(NamedTuple):
    """One reading of a GPU's clocks."""

    reasons: int  # for lower clocks, as bits
    megahertz: int
    most_megahertz: int


def open_gpu(device: "torch.device") -> Gpu | None:
    """Return the GPU of a CUDA device; None for another device, or if NVML does not know it."""
    if device.type != "cuda":
        return None

    import torch  # noqa: PLC0415  (commands that do not train answer --help without it)

    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    try:
        return find_gpu(ctypes.CDLL(NVML), f"GPU-{uuid}")
    except OSError:
        return None


def find_gpu(nvml: Any, uuid: str) -> Gpu | None:
    """Return the GPU with a UUID; None if there is none."""
    handle = ctypes.c_void_p()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)):
        return None
    return Gpu(nvml, handle)


def read_address(gpu: Gpu) -> str | None:
    """Return the GPU's PCI address as the kernel writes it, such as 0000:17:00.0; None if it is not known."""
    info = ctypes.create_string_buffer(PCI_INFO_BYTES)
    if gpu.nvml.nvmlDeviceGetPciInfo_v3(gpu.handle, info):
        return None
    # NVML's address has eight digits before the first colon, the kernel's four.
    address = info.raw[BUS_ID_AT : BUS_ID_AT + BUS_ID_BYTES].split(b"\0")[0].decode().lower()
    domain, _, rest = address.partition(":")
    return f"{int(domain, 16):04x}:{rest}" if rest else None


def read_sample(gpu: Gpu) -> Sample | None:
    """Read the clocks and the reasons for their change; None if the driver does not report them."""
    nvml, handle = gpu
    # The function's name until driver 535 was ...ThrottleReasons.
    name = "nvmlDeviceGetCurrentClocks{}Reasons"
    find = getattr(nvml, name.format("Event"), None) or getattr(nvml, name.format("Throttle"), None)
    reasons, now, most = ctypes.c_ulonglong(), ctypes.c_uint(), ctypes.c_uint()
    if find is None or find(handle, ctypes.byref(reasons)):
        return None
    if nvml.nvmlDeviceGetClockInfo(handle, SM_CLOCK, ctypes.byref(now)):
        return None
    if nvml.nvmlDeviceGetMaxClockInfo(handle, SM_CLOCK, ctypes.byref(most)):
        return None
    return Sample(reasons.value, now.value, most.value)


class ClockSampler:
    """Samples a GPU's clocks during a `with` block; `samples` stays empty without a GPU."""

    def __init__(self, gpu: Gpu | None) -> None:
        self.gpu, self.samples, self.ended = gpu, list[Sample](), threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "ClockSampler":
        if self.gpu:
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        if self.gpu:
            self.thread.join()

    def _sample(self) -> None:
        assert self.gpu
        while not self.ended.wait(SAMPLE_SECONDS):
            if sample := read_sample(self.gpu):
                self.samples.append(sample)


# How busy the machine is.


class Usage:
    """Measures during a `with` block how busy the GPU is, with `nvidia-smi dmon`, and how many cores this process uses.

    The results are in `figures` afterwards, without what cannot be read here.
    """

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    def __enter__(self) -> "Usage":
        self.output = tempfile.TemporaryFile("w+")
        self.watcher = None
        if shutil.which(SMI):
            words = [*LINE_BY_LINE, SMI, *DMON] if shutil.which(LINE_BY_LINE[0]) else [SMI, *DMON]
            self.watcher = subprocess.Popen(words, stdout=self.output, stderr=subprocess.DEVNULL)
        self.started, self.cpu_seconds = time.perf_counter(), _read_own_cpu_seconds()
        return self

    def __exit__(self, *error: object) -> None:
        seconds = time.perf_counter() - self.started
        cpu_seconds = _read_own_cpu_seconds()
        if self.cpu_seconds is not None and cpu_seconds is not None:
            self.figures["cpu_cores"] = (cpu_seconds - self.cpu_seconds) / seconds
        with self.output:
            if self.watcher:
                self.watcher.kill()
                self.watcher.wait(LONGEST_END)
                self.output.seek(0)
                self.figures |= parse_dmon(self.output.read())


def parse_dmon(text: str) -> dict[str, float]:
    """Return the mean percentages in dmon's table, by name; its columns differ from one driver to another."""
    lines = [line.split() for line in text.splitlines()]
    names = next((line[1:] for line in lines if line[:2] == ["#", "gpu"]), [])
    rows = [line for line in lines if line and line[0] != "#" and len(line) == len(names)]
    found = {}
    for name in PERCENTAGES:
        values = [float(row[names.index(name)]) for row in rows if name in names and row[names.index(name)].isdigit()]
        if values:
            found[f"{name}_percent"] = statistics.mean(values)
    return found


# Cores, files and interpreters, for races.


def busy_core_seconds() -> float:
    """Return the busy time of all cores so far, by any process; includes time that the host took away (steal)."""
    import psutil  # noqa: PLC0415

    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq + times.steal


def read_into_page_cache(folder: Path) -> None:
    """Read all files of a folder into the page cache."""
    buffer = bytearray(1 << 22)
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def count_bytes(folder: Path) -> int:
    """Return the total size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def describe_filesystem(folder: Path) -> str:
    """Return the type of the file system that a folder is on, such as "ext4"."""
    import psutil  # noqa: PLC0415

    # Of all mount points above the folder, the longest path is the one that it is on.
    partitions = [(each.mountpoint, each.fstype) for each in psutil.disk_partitions(all=True)]
    above = [(len(point), kind) for point, kind in partitions if folder.resolve().is_relative_to(point)]
    return max(above)[1] if above else "unknown"


def has_module(python: str, module: str) -> bool:
    """Return True if an interpreter exists and can import a module."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
