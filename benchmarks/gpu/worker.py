"""`python -m gpu.worker [MODULE ...]`: run cases one after another in one process that has imported the modules.

A request is a line of JSON on standard input, {"work": "module:function", "job": {...}}. Answers are lines of JSON on
standard output:

    {"ready": true}                           the imports are done, or the last case's memory is released; a crash
                                              before it is not attributed to the next case
    {"part": {...}}                           figures of a running case that must not be lost
    {"result": {...}} or {"failed": "..."}    the end of a case

Everything that libraries print goes to standard error.
"""

import ctypes
import faulthandler
import gc
import importlib
import json
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from answer import Job, take_stdout

from prep.errors import InputError

Report = Callable[[dict[str, Any]], None]  # called with the figures that a case has so far
Work = Callable[[Job, Report], dict[str, Any]]

STACKS_SIGNAL = signal.SIGUSR1  # makes the process write the stacks of all threads to standard error
PR_SET_PDEATHSIG = 1  # of prctl(2)


def main() -> int:
    """Answer requests until the input ends. Return the exit status: 1 after an unexpected exception, else 0."""
    # Crashes and hangs leave stacks in the log.
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL)
    # If the suite is killed, this worker must not keep measuring next to those of the next call.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the core of a crash would be tens of gigabytes
    channel = take_stdout()

    def tell(**message: Any) -> None:
        print(json.dumps(message), file=channel, flush=True)

    # Import the modules; an error is ignored, because the cases that need a missing package report it themselves.
    for name in sys.argv[1:]:
        with suppress(Exception):
            importlib.import_module(name)
    tell(ready=True)

    # Run one case per line.
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = find_work(request["work"])(request["job"], lambda part: tell(part=part))
        except InputError as error:
            tell(failed=str(error))
        except Exception as error:
            # After a failed CUDA call, later calls in this process may fail too: exit, the suite starts a new process.
            traceback.print_exc()
            tell(failed=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            return 1
        else:
            tell(result=result)
        release_memory()
        tell(ready=True)
    return 0


def find_work(name: str) -> Work:
    """Import and return the function with the name `module:function`."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def release_memory() -> None:
    """Release the last case's memory, and reset the peak for the next case."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    sys.exit(main())
