"""The process that fetches a dataset's shards into the cache while training reads: `prep/stage.py`.

It is a process and not a thread, so that it does not compete with training for Python's interpreter. It ends with the
process that started it, however that ends. What it has fetched stays, and the next one continues.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import prep.staging
from prep.errors import warn

CONNECTIONS = 32  # of the process that fills the cache; the reader of single images has its own
STAGE = Path(prep.staging.__file__).with_name("stage.py")
# Run a command that the kernel kills when the thread that started it ends (PR_SET_PDEATHSIG).
DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Filler:
    """Runs `prep/stage.py` for some splits of a dataset, once."""

    def __init__(self, url: str, cache: Path, splits: Sequence[str]) -> None:
        self.url, self.cache, self.splits = url, cache, splits
        self.has_begun = self.is_stopped = False
        self.lock = threading.Lock()
        self.order = ""
        self.process: subprocess.Popen[str] | None = None
        # The thread lives as long as the process, which would otherwise be killed too early.
        self.thread = threading.Thread(target=self._run, name="penstock-filler", daemon=True)

    def start(self, order: Iterable[str]) -> None:
        """Start to fetch; do nothing if that has begun.

        Args:
            order: SPLIT/SHARD of those to fetch first; the others follow.
        """
        with self.lock:
            if not self.has_begun and not self.is_stopped:
                self.has_begun = True
                self.order = "".join(f"{name}\n" for name in order)
                self.thread.start()

    def stop(self) -> None:
        """End the process, and wait until it has ended."""
        with self.lock:
            self.is_stopped = True
            if self.process is not None:
                self.process.kill()
        if self.has_begun:
            self.thread.join()

    def _run(self) -> None:
        """Run the command: the body of the thread."""
        with self.lock:
            if self.is_stopped:
                return
            self.process = process = self._start_process()
        with process:
            self._pass_on(process)

    def _pass_on(self, process: subprocess.Popen[str]) -> None:
        """Give the process its order; report its warnings, but not its progress, which training shows."""
        assert process.stdin is not None and process.stderr is not None
        with suppress(BrokenPipeError), process.stdin:  # of a command that has ended: its last line says why
            process.stdin.write(self.order)
        last = ""
        for line in process.stderr:
            last = line.strip() or last
            if line.startswith("warning: "):
                warn(f"cache: {last.removeprefix('warning: ')}")
        if process.wait() and not self.is_stopped:
            cause = last.removeprefix("error: ") or f"prep/stage.py ended with status {process.returncode}"
            warn(f"the cache is not complete ({cause}); what is missing is read from {self.url}")

    def _start_process(self) -> subprocess.Popen[str]:
        command = [
            *(sys.executable, "-c", DIE_WITH_PARENT, str(os.getpid()), sys.executable, str(STAGE), self.url),
            *("--to", str(self.cache), "--connections", str(CONNECTIONS), "--order", "/dev/stdin", "--wait"),
            *("--split", *self.splits),
        ]
        # Not the rank: a command prints its error only if it is rank 0. Its own session: Ctrl-C is for training alone.
        environment = {name: value for name, value in os.environ.items() if name != "RANK"}
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            text=True,
            errors="replace",
        )
