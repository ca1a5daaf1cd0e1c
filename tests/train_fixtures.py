"""What the tests of training's interruptions share, for the whole session: warm processes and undisturbed runs."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from ranks import Ranks
from train_runs import Run, finish


@pytest.fixture(scope="session")
def trainers() -> Iterator[Ranks]:
    """Forks processes that train."""
    with Ranks("train_jobs") as warm:
        yield warm


@pytest.fixture(scope="session")
def calm(trainers: Ranks, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Run]:
    """A run of so many processes that was left alone."""

    @cache
    def train(size: int) -> Run:
        run = Run(digits, tmp_path_factory.mktemp(f"calm-{size}") / "run")
        finish(trainers, run, size)
        return run

    return train
