"""A run from shards with restart markers ends in the same bits as one from the original files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.datasets import prepare_folder
from helpers.ranks import Ranks
from helpers.restarts import needs_transcoder
from helpers.train_runs import Run, assert_same_end, finish

from loaders import Split, TrainTransform, build_loader
from prep.dataset import Options


@needs_transcoder
@pytest.mark.parametrize("size", [2])
def test_a_run_ends_in_the_same_bits(
    trainers: Ranks, calm: Callable[[int], Run], digits_source: Path, tmp_path: Path, size: int
) -> None:
    for split in ("train", "validation"):
        prepare_folder(digits_source, split, tmp_path / "restarts", Options(images_per_shard=300, restarts=True))
    run = Run(tmp_path / "restarts", tmp_path / "run")
    finish(trainers, run, size)
    assert_same_end(run, calm(size))

    # The images of this dataset are really spliced.
    loader = build_loader(Split(run.data, "train"), TrainTransform(16), 48)
    next(iter(loader))
    assert 0 < loader.stats().decode_bytes < loader.stats().image_bytes
