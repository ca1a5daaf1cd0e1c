"""A process whose torchrun is gone leaves: it would go on unseen, holding its GPU, with nobody to end or restart it.

torchrun starts its processes in sessions of their own. So if it is killed by SIGKILL, or by the out-of-memory killer,
they get no signal, neither from it nor from a terminal that is closed.
"""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from prep.errors import InputError

LOOK_SECONDS = 0.5
LAUNCHERS = ("python", "torch", "accelerate")  # in the command line of torchrun, however it was started


def watch_launcher() -> None:
    """Send this process SIGTERM once the torchrun that started it has ended; do nothing without torchrun.

    SIGTERM, since what is to happen then is the same: training saves and leaves, other commands end at once. The
    parent is watched by its process id: PR_SET_PDEATHSIG also signals when only the thread that started this process
    ends.

    Raises:
        InputError: torchrun ended before this process could look.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()
    if is_orphan(parent):
        raise InputError("the torchrun that started this process has ended: start it again")
    threading.Thread(target=_watch, args=(parent,), name="penstock-launcher", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    with suppress(OSError):  # its terminal may be gone, too
        print(f"torchrun (process {parent}) has ended: so does this process", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def is_orphan(pid: int) -> bool:
    """Whether neither this process, the parent of one of torchrun's, nor a process above it can be a launcher.

    Orphans are adopted by init or a session manager. There can be scripts between torchrun and its processes
    (`--no-python`), and torchrun itself can be process 1, in a container. What cannot be read may be a launcher.
    """
    while pid > 0:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        if any(name in command for name in LAUNCHERS):
            return False
        if pid == 1:
            return True
        pid = int(fields[1])
    return False
