"""How each case of the GPU suite answers: a job as JSON in its first argument, a result as JSON on its last line."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from prep.dataset import InputError

Job = dict[str, Any]


def answer(work: Callable[[Job], dict[str, Any]]) -> None:
    """Do the work; standard output is for the result alone, so what libraries print goes to standard error."""
    job = json.loads(sys.argv[1])
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        result = work(job)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(result), file=channel, flush=True)
