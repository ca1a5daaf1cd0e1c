"""`python worker_main.py ENTRY JOB`: the child side of the worker protocol (the parent side is worker.py).

ENTRY is `module:function`, JOB is JSON. `function(job)` is a generator. Each request of the parent is one line of JSON
on standard input; the generator receives it as the value of its `yield` (the first request only starts it). Each value
that the generator yields is written as one line of JSON on the stream of answers:

    {"answer": VALUE}      the generator waits for the next request
    {"progress": VALUE}    from `yield Progress(VALUE)`: the generator continues at once
    {"error": TEXT}        it raised an exception; the process ends with status 1

Everything that libraries print goes to standard error. When standard input ends, the generator is closed; a process
that is still computing then is killed with its process group. This file uses the standard library alone, because peers
run in their own environments.
"""

import importlib
import inspect
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TextIO

Answers = Generator[Any, Any, None]
# After the input was closed this process has some time to end by itself, so that it frees its shared memory: as much as
# the parent gives it (LONGEST_END_SECONDS in worker.py), or less if the parent has ended.
END_SECONDS, ORPHANS_END_SECONDS = 10.0, 3.0
ERROR_START, ERROR_END = 100, 300  # characters that are kept of a long exception


class Progress(dict):
    """A value that the parent sees while an answer is still being computed."""

    def __init__(self, value: Any) -> None:
        super().__init__(progress=value)


def main() -> int:
    """Answer requests until standard input ends. Return the exit status: 1 after an exception, else 0."""
    entry, job, channel = sys.argv[1], json.loads(sys.argv[2]), take_stdout()
    sys.modules["worker_main"] = sys.modules["__main__"]  # so that entries yield this module's Progress
    threading.Thread(target=end_without_input, args=(os.getppid(),), daemon=True).start()
    try:
        answers: Answers = load_entry(entry)(job)
        for line in sys.stdin:
            answer_request(answers, json.loads(line), channel)
        answers.close()
    except Exception as error:
        if not is_input_error(error):
            traceback.print_exc()
        write_line(channel, {"error": describe_error(error)})
        return 1
    return 0


def answer_request(answers: Answers, request: Any, channel: TextIO) -> None:
    """Continue the generator with a request; write what it yields until that is an answer."""
    try:
        value = next(answers) if inspect.getgeneratorstate(answers) == inspect.GEN_CREATED else answers.send(request)
        while isinstance(value, Progress):
            write_line(channel, value)
            value = next(answers)
    except StopIteration:
        raise RuntimeError("it was asked for more answers than it gives") from None
    write_line(channel, {"answer": value})


def is_input_error(error: Exception) -> bool:
    """Check whether an error is a prep.errors.InputError, which a peer's environment cannot import."""
    return any(kind.__name__ == "InputError" for kind in type(error).__mro__)


def describe_error(error: Exception) -> str:
    """Return an exception as one line: a user's mistake whole, others with their class, and without a long middle.

    The reason may be at the start, as in CUDA's errors, which end with advice, or at the end, as in an exception of a
    process of torch's DataLoader, whose text is a traceback.
    """
    text = " ".join(str(error).split())
    if is_input_error(error):
        return text
    if len(text) > ERROR_START + ERROR_END:
        text = f"{text[:ERROR_START]} … {text[-ERROR_END:]}"
    return f"{type(error).__name__}: {text}"


def end_without_input(parent: int) -> None:
    """Wait until standard input is closed; kill this process group if this process does not end by itself then.

    The main thread reads the input only between answers, so it alone would continue to compute after the parent, the
    process `parent`, was killed or its terminal was closed.
    """
    closed = select.poll()
    closed.register(0, 0)  # no event but the end of the other side
    closed.poll()
    since = time.monotonic()
    while time.monotonic() - since < (END_SECONDS if os.getppid() == parent else ORPHANS_END_SECONDS):
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def load_entry(entry: str) -> Any:
    """Import and return `module:function`; the module imports all that its function needs."""
    module, _, function = entry.partition(":")
    return getattr(importlib.import_module(module), function)


def take_stdout() -> TextIO:
    """Return a stream to standard output for answers alone; what libraries print goes to standard error instead."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def write_line(channel: TextIO, message: dict[str, Any]) -> None:
    """Write one line of JSON."""
    print(json.dumps(message), file=channel, flush=True)


def describe_versions(packages: list[str]) -> dict[str, str]:
    """Return the versions of this interpreter and of those packages that it has."""
    versions = {"python": sys.version.split()[0]}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    sys.exit(main())
