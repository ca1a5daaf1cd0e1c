"""What ranks do in tests of tuning: see `ranks.py`."""

import importlib
import json
import sys
from pathlib import Path

from conftest import CHECKOUT
from rank_jobs import JOBS, take_place

from loaders import LoaderConfig, Split
from train.dist import join_world


def tune(rank: int, size: int, group: Path, *, data: str, minutes: float, port: int) -> None:
    """Tune as `benchmarks/throughput.py --tune` does, and write what this rank was told."""
    sys.path.insert(0, str(CHECKOUT / "benchmarks"))
    take_place(rank, size, port)
    command, turns = (importlib.import_module(f"tuning.{name}") for name in ("command", "turns"))
    with join_world("cpu") as world:
        work = turns.Workload(Split(data, "train"), world, 16, 24)
        record = command.run(command.Request(work, LoaderConfig(), minutes))
    (group / f"record-{rank}").write_text(json.dumps(record))


JOBS.update({"tune": tune})
