"""Fixtures for the tests of training: a warm process that forks ranks, and runs without interruption."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.ranks import Ranks
from helpers.sharing import build_once
from helpers.train_runs import Run, finish

if TYPE_CHECKING:
    from helpers.mirror_runs import Bucket
    from helpers.swift_server import SwiftServer


@pytest.fixture(scope="session")
def trainers() -> Iterator[Ranks]:
    """A second warm process, which has also imported `train`."""
    # Commands import these when they use them; here each is imported once, and not again in each forked process.
    with Ranks("helpers.train_jobs", "train.fit", "train.evaluate", "timm", "torch.utils.tensorboard") as warm:
        yield warm


@pytest.fixture(scope="session")
def ranks(trainers: Ranks) -> Ranks:
    """The same process: `train` need not be imported twice."""
    return trainers


@pytest.fixture(scope="session")
def calm(trainers: Ranks, digits: Path, shared_folder: Path) -> Callable[[int], Run]:
    """Return a function from the number of processes to a run that nothing interrupted."""

    @cache
    def train(size: int) -> Run:
        folder = build_once(shared_folder, f"calm-{size}", lambda out: finish(trainers, Run(digits, out / "run"), size))
        return Run(digits, folder / "run")

    return train


@pytest.fixture
def bucket(server: "SwiftServer", monkeypatch: pytest.MonkeyPatch) -> "Bucket":
    """An empty bucket for mirrors of runs; this process can use it too."""
    from helpers.mirror_runs import BUCKET, Bucket  # noqa: PLC0415

    settings = {**server.environment(), "AWS_SESSION_TOKEN": "planted-secret-of-the-session"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    server.make_bucket(BUCKET)
    server.empty_bucket(BUCKET)
    return Bucket(server, settings)
