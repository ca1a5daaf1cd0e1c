"""Predict many picture files in their order: threads decode, the model predicts batches.

Between `serve/picture_files.py` and `serve/classify.py`. At most a fixed number of pictures is in memory at any time,
whatever the number of files. B pictures per batch, K outputs.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from prep.errors import InputError
from serve.artifact import Served
from serve.class_names import look_up_words
from serve.pictures import read_picture
from serve.predict import BATCH_SIZE, map_ahead, predict_probabilities
from serve.preprocess import Preprocessing, show_crop, to_tensor

NUM_TOP = 5  # classes per picture


@dataclass(frozen=True)
class Opened:
    """A file that was read: the square that the network sees, or the reason why it could not be read."""

    path: Path
    size_bytes: int = 0
    crop: Image.Image | None = None
    image_CHW: torch.Tensor | None = None
    error: str = ""


@dataclass(frozen=True)
class Answer:
    """The prediction for a file: (output, probability) of the most probable classes, or the error."""

    path: Path
    size_bytes: int
    top: tuple[tuple[int, float], ...] = ()
    crop: Image.Image | None = None
    error: str = ""


def name_classes(served: Served) -> tuple[str, ...]:
    """Return the names of a model's outputs in words, or `output 12` if it has no names."""
    if served.class_names is None:
        return tuple(f"output {number}" for number in range(served.num_classes))
    return tuple(map(look_up_words, served.class_names))


def classify_files(served: Served, paths: Iterable[Path], num_workers: int) -> Iterator[Answer]:
    """Yield the prediction for each file, in order.

    Args:
        num_workers: threads that read and decode; Pillow decodes without the interpreter's lock.
    """
    num_ahead = BATCH_SIZE + 2 * num_workers
    opened = map_ahead(lambda path: open_file(path, served.preprocessing), paths, num_workers, num_ahead)
    with closing(opened):  # after an error, files that wait are not opened
        while batch := list(islice(opened, BATCH_SIZE)):
            yield from _predict_batch(served, batch)


def open_file(path: Path, preprocessing: Preprocessing) -> Opened:
    """Read a file, upright as the app shows it; the result holds the reason if it cannot be read."""
    content = b""
    try:
        if not path.is_file():  # opening a pipe would wait for a writer
            raise InputError("it is not a file")
        content = path.read_bytes()
        crop = show_crop(read_picture(content, upright=True), preprocessing)
    except InputError as error:
        return Opened(path, len(content), error=str(error))
    except OSError as error:
        return Opened(path, error=f"it cannot be read: {(error.strerror or str(error)).lower()}")
    return Opened(path, len(content), crop, to_tensor(crop, preprocessing))


def _predict_batch(served: Served, batch: list[Opened]) -> Iterator[Answer]:
    tensors = [each.image_CHW for each in batch if each.image_CHW is not None]
    tops: Iterator[tuple[tuple[int, float], ...]] = iter(())
    if tensors:
        probabilities_BK = predict_probabilities(served, torch.stack(tensors))
        best = probabilities_BK.topk(min(NUM_TOP, served.num_classes))
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        tops = (tuple(zip(outputs, shares, strict=True)) for outputs, shares in rows)
    for each in batch:
        top = () if each.image_CHW is None else next(tops)
        yield Answer(each.path, each.size_bytes, top, each.crop, each.error)
