"""A job of `ranks.py`: train on restart shards that are being damaged, and write down what was seen."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from helpers.rank_jobs import JOBS, harm_in_place
from loaders import LoaderConfig, Split, TrainTransform, build_loader
from prep.errors import InputError

SEEN = "seen.jsonl"
BATCH_SIZE = 8
TRANSFORM = TrainTransform(size=32)


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect the warnings of the loader."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    log, listener = logging.getLogger("penstock"), Listener()
    log.addHandler(listener)
    try:
        yield found
    finally:
        log.removeHandler(listener)


def see_damaged(rank: int, size: int, group: Path, *, root: str, trials: list[dict[str, Any]]) -> None:
    """Train for an epoch on a copy of a split for each trial, damaged; add a line to SEEN before and after it.

    Args:
        root: of a dataset with the split `train`.
        trials: each with `seed`, `file` ("": nothing is damaged), `moment` (the batch before which it happens; -1:
            before the split is opened), and `loader`: fields of LoaderConfig.
    """
    assert (rank, size) == (0, 1)
    torch.set_num_threads(1)
    with (group / SEEN).open("a", buffering=1) as log:
        for trial in trials:
            log.write(json.dumps({"begins": trial}) + "\n")
            copy = group / f"data-{trial['seed']}"
            shutil.copytree(root, copy)
            log.write(json.dumps({"trial": trial, **_train(copy, trial)}) + "\n")
            shutil.rmtree(copy)


def _train(root: Path, trial: dict[str, Any]) -> dict[str, Any]:
    """Return the harm, a digest of each image's pixels by place, the warnings, and the error line or None."""
    harmed, digests, error = root / "train" / trial["file"], {}, None
    done = harm_in_place(harmed, trial["seed"]) if trial["file"] and trial["moment"] < 0 else ""
    with listening() as warnings:
        try:
            loader = build_loader(
                Split(root, "train"), TRANSFORM, BATCH_SIZE, config=LoaderConfig(num_threads=2, **trial["loader"])
            )
            for number, batch in enumerate(islice(loader, len(loader))):
                for i, image_CHW in enumerate(batch.images_BCHW.contiguous()):
                    digests[batch.position + i] = hashlib.sha256(image_CHW.numpy().tobytes()).hexdigest()
                if trial["file"] and number == trial["moment"]:
                    done = harm_in_place(harmed, trial["seed"])
        except InputError as found:
            error = str(found)
    return {"harm": done, "digests": digests, "warnings": warnings, "error": error}


JOBS["see-damaged"] = see_damaged
