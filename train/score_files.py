"""The files of an evaluation, `train/evaluate.py --out DIR`; docs/evaluating.md says what each column means.

scores.json  the summary that is printed, too; written last: a folder that has one is whole
images.csv  per_class.csv  confusions.csv  calibration.csv
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from loaders import Split
from prep.files import write_whole
from train.outcomes import Outcomes

SCORES = "scores.json"
NUM_CONFUSIONS = 100  # of each model

ByModel = Mapping[str, Outcomes]
Line = tuple[object, ...]


def write_files(folder: Path, split: Split, outcomes: ByModel, summary: Mapping[str, Any]) -> None:
    """Write all files of an evaluation, each of them whole or not at all."""
    (folder / SCORES).unlink(missing_ok=True)  # an earlier one would belong to other tables
    tables = {
        "images.csv": _list_images(split, outcomes),
        "per_class.csv": _list_classes(split.class_names, outcomes),
        "confusions.csv": _list_confusions(split.class_names, outcomes),
        "calibration.csv": _list_bins(outcomes),
    }
    for name, lines in tables.items():
        write_whole(folder / name, _to_csv(lines))
    write_whole(folder / SCORES, (json.dumps(summary, indent=1) + "\n").encode())


def _to_csv(lines: Iterable[Line]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def _list_images(split: Split, outcomes: ByModel) -> Iterator[Line]:
    first = next(iter(outcomes.values()))
    yield "key", "label", "damaged", *_headings(outcomes, ("predicted", "confidence", "top5", "loss"))
    columns = [(o.guesses_N, o.confidences_N, o.top5_hits() * 1, o.losses_N) for o in outcomes.values()]
    keys = split.keys(np.arange(len(split)))
    yield from zip(keys, first.labels_N, first.damaged_N * 1, *chain(*columns), strict=True)


def _list_classes(names: tuple[str, ...], outcomes: ByModel) -> Iterator[Line]:
    yield "class", "name", "num_images", *_headings(outcomes, ("num_top1", "num_top5", "top1", "top5"))
    by_model = [each.class_hits(len(names)).tolist() for each in outcomes.values()]
    for number, (name, *counts) in enumerate(zip(names, *by_model, strict=True)):
        yield number, name, counts[0][0], *chain(*(_with_percent(*each) for each in counts))


def _with_percent(num_images: int, *hits: int) -> tuple[object, ...]:
    """The counts, and what they are of all images in percent; no percent where there are none."""
    return *hits, *(100 * each / num_images if num_images else "" for each in hits)


def _list_confusions(names: tuple[str, ...], outcomes: ByModel) -> Iterator[Line]:
    yield "model", "label", "label_name", "predicted", "predicted_name", "num_images"
    for model, each in outcomes.items():
        for label, guess, num_images in each.confusions(len(names), NUM_CONFUSIONS):
            yield model, label, names[label], guess, names[guess], num_images


def _list_bins(outcomes: ByModel) -> Iterator[Line]:
    yield "model", "above", "up_to", "num_images", "confidence_sum", "num_hits"
    for model, each in outcomes.items():
        for b in each.bins():
            yield model, b.low, b.high, b.num_images, b.confidence_sum, b.num_hits


def _headings(outcomes: ByModel, names: tuple[str, ...]) -> list[str]:
    return [f"{model}_{name}" for model in outcomes for name in names]
