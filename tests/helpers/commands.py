"""The checkout, and its commands as child processes."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

# Runs the script argv[3], or the module behind "-m", as Python does, with the packages in argv[1] hidden. Writes the
# names of all modules that were imported to the file argv[2], unless it is empty.
HIDE = """
import atexit, json, os, runpy, sys

HIDDEN = frozenset(sys.argv[1].split(","))

class Hiding:
    # A finder that finds all but the hidden packages, so that they look as if they were not installed.
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name in HIDDEN else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

def report(path):
    with open(path, "w") as file:
        json.dump(sorted(sys.modules), file)

sys.meta_path[:] = map(Hiding, sys.meta_path)
if sys.argv[2]:
    atexit.register(report, os.path.abspath(sys.argv[2]))
is_module = sys.argv[3] == "-m"
del sys.argv[: 4 if is_module else 3]
if is_module:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Measured:
    """A command that has ended: its exit status, its output, its CPU seconds, and the modules that it imported."""

    status: int
    stdout: str
    stderr: str
    cpu_seconds: float
    modules: frozenset[str]


def run_command(*arguments: object, cwd: Path = CHECKOUT, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS...` as a user would; the caller checks the exit status."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, timeout=timeout, capture_output=True, text=True, check=False)


def start_command(*arguments: object, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `python ARGUMENTS...` in its own session, so that a signal to its process group reaches nothing else."""
    command, pipe = [sys.executable, *map(str, arguments)], subprocess.PIPE
    return subprocess.Popen(
        command, cwd=CHECKOUT, env=environment, start_new_session=True, stdout=pipe, stderr=pipe, text=True
    )


def assert_clean(process: subprocess.Popen[str]) -> None:
    """Wait for a command, and check that it succeeded without a word on stderr."""
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, "")


def run_hiding(packages: Collection[str], *arguments: object, cwd: Path = CHECKOUT) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS...` as on a machine that lacks some packages."""
    command = [sys.executable, "-c", HIDE, ",".join(packages), "", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def measure_hiding(packages: Collection[str], *arguments: object, cwd: Path) -> Measured:
    """Run as `run_hiding` does, and measure the process itself, without its children."""
    with tempfile.TemporaryDirectory() as temporary:
        modules, stdout, stderr = (Path(temporary) / name for name in ("modules", "stdout", "stderr"))
        command = [sys.executable, "-c", HIDE, ",".join(packages), str(modules), *map(str, arguments)]
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # or subprocess would wait for it again
        return Measured(
            process.returncode,
            stdout.read_text(),
            stderr.read_text(),
            usage.ru_utime + usage.ru_stime,
            frozenset(json.loads(modules.read_text())),
        )


def free_port() -> int:
    """Return a port of the loopback on which no process listens."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
