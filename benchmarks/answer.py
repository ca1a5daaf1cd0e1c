"""Worker protocol: a job as JSON in the first argument, its result as JSON on the last line of standard output."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from prep.errors import InputError

Job = dict[str, Any]


def run_job(work: Callable[[Job], dict[str, Any]]) -> None:
    """Run `work` on this process's job and print its result; exit with status 1 and one line on an InputError."""
    job, channel = json.loads(sys.argv[1]), take_stdout()
    try:
        result = work(job)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(result), file=channel, flush=True)


def take_stdout() -> TextIO:
    """Return a stream to standard output for results alone; what libraries print goes to standard error instead."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel
