"""How a process answers: a job as JSON in its first argument, a result as JSON on its last line."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from prep.errors import InputError

Job = dict[str, Any]


def answer(work: Callable[[Job], dict[str, Any]]) -> None:
    """Do the work, and say what came of it."""
    job, channel = json.loads(sys.argv[1]), take_stdout()
    try:
        result = work(job)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(result), file=channel, flush=True)


def take_stdout() -> TextIO:
    """Standard output for answers alone: what libraries print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel
