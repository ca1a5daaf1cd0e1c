"""Ways to damage a prepared dataset, and `prep/verify.py` without processes to look at what it says."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prep import verify
from prep.dataset import Split


def serial(function: Callable[[Any], Any], jobs: list[Any]) -> Iterator[tuple[Any, Any]]:
    """A pool without processes."""
    yield from ((job, function(job)) for job in jobs)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    """The command in this process: its status and what it prints, the summary last."""
    status = verify.main([str(argument) for argument in arguments])
    return status, capsys.readouterr().out.splitlines()


def flip(path: Path, offset: int) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def in_image(path: Path) -> None:
    """Harm the third image of the second shard."""
    flip(path, Split(path.parent.parent, "train").column("offset")[22] + 100)


def in_padding(path: Path) -> None:
    """Harm what follows the third image of the second shard."""
    split = Split(path.parent.parent, "train")
    flip(path, split.column("offset")[22] + split.column("size")[22])


def in_label(path: Path) -> None:
    """Harm the label of the first image."""
    data = path.read_bytes()
    flip(path, data.index(b".cls\0") // 512 * 512 + 512)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swap(path: Path) -> None:
    """Exchange a shard and the one before it."""
    other, aside = path.with_name("train-000000.tar"), path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


def leave_work(path: Path) -> None:
    path.mkdir()
    (path / "train-000001.tar.partial").write_bytes(b"half")


def random_harm(path: Path, draw: random.Random) -> str:
    """Flip a bit, cut the end off, add a byte or remove the file; what was done."""
    kind = draw.choice(("flip", "flip", "flip", "cut", "lengthen", "remove"))
    data = bytearray(path.read_bytes())
    if kind == "remove":
        path.unlink()
        return kind
    at = draw.randrange(len(data)) if data else 0
    if kind == "lengthen" or not data:
        data.append(draw.randrange(256))
    elif kind == "flip":
        data[at] ^= 1 << draw.randrange(8)
    else:
        del data[at:]
    path.write_bytes(data)
    return f"{kind} at {at}"
