"""`python tests/app_gated.py --artifact DIR --examples FOLDER`: the app, answering nobody until FOLDER/gate exists.

FOLDER/entered gets a letter for each picture that comes to the network, and a dot for each that leaves it.
"""

import sys
import time
from pathlib import Path
from typing import Any

from serve import app
from serve.app_answer import answer

NUM_WAITING = 3
FOLDER = Path(sys.argv[-1])


def note(letter: str) -> None:
    with (FOLDER / "entered").open("a") as file:
        file.write(letter)


def wait_and_answer(*arguments: Any) -> Any:
    note("x")
    while not (FOLDER / "gate").exists():
        time.sleep(0.02)
    found = answer(*arguments)
    note(".")
    return found


if __name__ == "__main__":
    app.MAX_WAITING = NUM_WAITING
    app.answer = wait_and_answer
    app.main()
