"""Peers that run in our own environment and read our sources: webdataset's ShardWriter and a Pillow pool."""

import io
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from marks import note_first_image
from noted import TimestampedRows
from PIL import Image
from webdataset.writer import ShardWriter

from prep.dataset import Options
from prep.resolve import open_source

NUM_WORKERS = 2
SPLIT = "train"
TASKS_PER_CHUNK = 16
Task = tuple[str, bytes, int, dict[str, Any]]  # key, image, label, options


def shard_writer(job: dict[str, Any]) -> Iterator[None]:
    """Write the encoded images with webdataset's ShardWriter."""
    rows = open_rows(job)
    yield
    with open_writer(job) as writer:
        for number, item in enumerate(rows):
            writer.write({"__key__": f"{number:08d}", "jpg": bytes(item.data), "cls": item.label})
    yield


def pillow(job: dict[str, Any]) -> Iterator[None]:
    """Make the images smaller in a pool of Pillow processes; the parent reads them and writes the results."""
    with multiprocessing.Pool(NUM_WORKERS) as pool:
        # Make sure that all worker processes have started before the clock does.
        pool.map(time.sleep, [0.1] * NUM_WORKERS, chunksize=1)
        rows = open_rows(job)
        yield
        tasks = ((f"{n:08d}", bytes(item.data), item.label, job["options"]) for n, item in enumerate(rows))
        with open_writer(job) as writer:
            for key, jpeg, label in pool.imap(shrink, tasks, TASKS_PER_CHUNK):
                writer.write({"__key__": key, "jpg": jpeg, "cls": label})
        yield
        pool.close()
        pool.join()


def shrink(task: Task) -> tuple[str, bytes, int]:
    """Return the image, scaled down to the requested side if it is larger, and encoded again."""
    key, data, label, options = task
    note_first_image()
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if (scale := find_scale(image.size, options)) < 1:
        width, height = (round(side * scale) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=options["quality"])
    return key, encoded.getvalue(), label


def find_scale(size: tuple[int, int], options: dict[str, Any]) -> float:
    """Return the factor from the image's long (max_side) or short side (short_side) to the requested length."""
    if "max_side" in options:
        return options["max_side"] / max(size)
    return options["short_side"] / min(size)


def open_writer(job: dict[str, Any]) -> ShardWriter:
    """Return a ShardWriter with as many images per shard as ours."""
    Path(job["out"]).mkdir()
    pattern = str(Path(job["out"], f"{SPLIT}-%06d.tar"))
    return ShardWriter(pattern, maxcount=Options.images_per_shard, maxsize=1e12, verbose=0)


def open_rows(job: dict[str, Any]) -> TimestampedRows:
    """Return all rows of the source."""
    source = open_source(job["source"])
    return TimestampedRows(source.rows(SPLIT, 0, source.num_rows[SPLIT]))
