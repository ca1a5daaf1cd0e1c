"""`python tests/helpers/app_gated.py --artifact DIR --examples FOLDER`: the app; it waits for FOLDER/gate.

FOLDER/entered gets a letter for each picture that comes to the network, and a dot for each that leaves it.
"""

import sys
import time
from pathlib import Path
from typing import Any

from serve.app import run, server
from serve.app.answer import answer_photo

NUM_WAITING = 3
FOLDER = Path(sys.argv[-1])


def note(letter: str) -> None:
    with (FOLDER / "entered").open("a") as file:
        file.write(letter)


def wait_and_answer(*arguments: Any) -> Any:
    note("x")
    while not (FOLDER / "gate").exists():
        time.sleep(0.02)
    found = answer_photo(*arguments)
    note(".")
    return found


if __name__ == "__main__":
    server.MAX_WAITING = NUM_WAITING
    server.answer_photo = wait_and_answer
    run(Path(sys.argv[2]), FOLDER)
