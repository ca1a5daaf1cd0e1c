"""Measure how busy the machine is while a case is timed: the GPU with `nvidia-smi dmon`, the CPU from /proc."""

import shutil
import statistics
import subprocess
import tempfile
import time
from types import TracebackType

from feeding.meters import read_cpu_seconds

SMI, LINE_BY_LINE = "nvidia-smi", ("stdbuf", "-oL")  # lines in its buffer would be lost when it is killed
DMON = ("dmon", "--select", "u", "--delay", "1")
PERCENTAGES = ("sm", "mem", "dec", "jpg")  # multiprocessors, memory, video decoder, JPEG decoder
LONGEST_END = 10  # seconds


class Usage:
    """Measures during a `with` block; the results are in `figures` afterwards."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    def __enter__(self) -> "Usage":
        self.output = tempfile.TemporaryFile("w+")
        self.watcher = None
        if shutil.which(SMI):
            words = [*LINE_BY_LINE, SMI, *DMON] if shutil.which(LINE_BY_LINE[0]) else [SMI, *DMON]
            self.watcher = subprocess.Popen(words, stdout=self.output, stderr=subprocess.DEVNULL)
        self.started, self.cpu_seconds = time.perf_counter(), read_cpu_seconds()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        seconds = time.perf_counter() - self.started
        self.figures["cpu_cores"] = (read_cpu_seconds() - self.cpu_seconds) / seconds
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
        place = names.index(name) if name in names else None
        values = [] if place is None else [float(row[place]) for row in rows if row[place].isdigit()]
        if values:
            found[f"{name}_percent"] = statistics.mean(values)
    return found
