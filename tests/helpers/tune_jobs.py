"""The jobs of ranks in tests of tuning: see `ranks.py`."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

from helpers.commands import CHECKOUT
from helpers.rank_jobs import JOBS, take_place
from loaders import Loader, LoaderConfig, Split, TrainTransform, build_loader
from prep.errors import InputError
from train.dist import join_world


def tune(rank: int, size: int, group: Path, *, data: str, minutes: float, port: int) -> None:
    """Tune as `benchmarks/throughput.py --tune` does, and write this rank's result."""
    sys.path.insert(0, str(CHECKOUT / "benchmarks"))
    take_place(rank, size, port)
    command = importlib.import_module("tune")
    with join_world("cpu") as world:
        work = command.Workload(Split(data, "train"), world, 16, 24)
        record = command.run_search(work, LoaderConfig(), minutes)
    (group / f"record-{rank}").write_text(json.dumps(record))


def probe(rank: int, size: int, group: Path, *, data: str, port: int) -> None:
    """Measure another placement with a loader that the last rank cannot open, and write this rank's result."""
    sys.path.insert(0, str(CHECKOUT / "benchmarks"))
    take_place(rank, size, port)
    probes, stages = importlib.import_module("probes"), importlib.import_module("stages")
    with join_world("cpu") as world:
        split, transform = Split(data, "train"), TrainTransform(24)
        loader = build_loader(split, transform, 16, world)

        def open_other() -> Loader:
            if rank == size - 1:
                raise InputError("this GPU has no decoder")
            return build_loader(split, transform, 16, world)

        asked = stages.Setting(8, 24, "test_resnet", "none", seconds=0.02)
        found = probes.compare_placements(loader, replace(loader.config, placement="gpu"), open_other, asked)
    (group / f"found-{rank}").write_text(json.dumps(vars(found)))


JOBS.update({"tune": tune, "probe": probe})
