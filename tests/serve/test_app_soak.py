"""The app's memory stays the same over many answers, and pictures do not stay on its disk.

`make soak` asks for 2,000 answers.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from helpers.app_visitors import PATIENCE, Server, Visitor, encode, read_guesses
from PIL import Image

NUM_ANSWERS = int(os.environ.get("PENSTOCK_SOAK_ANSWERS", "30"))
NUM_WARM = min(200, NUM_ANSWERS // 3)  # answers before the memory is read first
GROWTH_MB = 50  # at most, from there to the last answer


def wait_until(is_true: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE / 0.1)):
        if is_true():
            return
        time.sleep(0.1)
    raise TimeoutError


def test_memory_stays_the_same_and_pictures_are_deleted(server: Server) -> None:
    pictures = [encode(Image.effect_noise((400 + number, 300), 60), "JPEG") for number in range(10)]
    paths, resident_mb = [], []
    for number in range(NUM_ANSWERS):
        visitor = Visitor(server.url)  # a new session for each choice, as in the page
        paths.append(Path(visitor.upload(pictures[number % 10])))
        visitor.join({"upload": str(paths[-1])}).raise_for_status()
        (finished,) = visitor.listen()
        assert len(read_guesses(finished["output"]["data"][0])) == 5
        if number >= NUM_WARM:
            resident_mb.append(server.resident_mb())
        if (number + 1) % 100 == 0:
            print(f"{number + 1} answers: {server.resident_mb():.0f} MB", flush=True)
    assert resident_mb[-1] - resident_mb[0] < GROWTH_MB

    # Make the pictures old, so that the cleaner's next pass takes them.
    for path in paths:
        if path.exists():
            os.utime(path, (0, 0))
    wait_until(lambda: not any(path.exists() for path in paths))
