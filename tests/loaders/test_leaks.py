"""Twenty epochs leave a process as five did: no memory, no file and no thread is left behind by any of them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.rank_jobs import USES
from helpers.ranks import Ended, Ranks

NUM_EPOCHS, NUM_SETTLED = 20, 5
# With one arena of the C library the noise over 100 epochs was 350 KiB, that of its fragments; and each pipeline that
# DALI builds leaves 2 KiB. With an arena for each thread, the default, it was 12 MB: new ones leave holes in others'.
SLACK_KIB = 512


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(MALLOC_ARENA_MAX="1") as warm:
        yield warm


@pytest.mark.parametrize("backend", ["dali", "reference"])
@pytest.mark.parametrize("use", USES)
def test_epochs_leave_nothing_behind(ranks: Ranks, digits: Path, tmp_path: Path, backend: str, use: str) -> None:
    arguments = {"root": str(digits), "backend": backend, "use": use, "num_epochs": NUM_EPOCHS}
    assert ranks.run("measure", 1, tmp_path, **arguments) == [Ended(0, "")]
    levels = json.loads((ranks.group / "levels.json").read_text())
    assert len(levels) == NUM_EPOCHS
    for name, slack in (("memory", SLACK_KIB), ("files", 0), ("threads", 0)):
        values = [level[name] for level in levels]
        assert values[-1] <= values[NUM_SETTLED - 1] + slack, f"{name}: {values}"
