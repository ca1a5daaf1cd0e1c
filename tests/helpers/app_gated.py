"""`python tests/helpers/app_gated.py --artifact DIR [--api] --examples FOLDER`: the app with a gate before the network.

Pictures wait while FOLDER/closed exists. FOLDER/entered gets a letter for each picture whose turn comes, and a dot when
its turn ends.
"""

import sys
import time
from pathlib import Path
from typing import Any

from serve.app import run, server, worker

NUM_WAITING = 12
FOLDER = Path(sys.argv[-1])


def note(letter: str) -> None:
    with (FOLDER / "entered").open("a") as file:
        file.write(letter)


class NotedLock(worker.FairLock):
    def __enter__(self) -> None:
        super().__enter__()
        note("x")
        while (FOLDER / "closed").exists():
            time.sleep(0.02)

    def __exit__(self, *error: Any) -> None:
        note(".")
        super().__exit__(*error)


if __name__ == "__main__":
    server.MAX_WAITING = NUM_WAITING
    worker.ONE_AT_A_TIME = NotedLock()
    run(Path(sys.argv[2]), FOLDER, device="cpu", api="--api" in sys.argv)
