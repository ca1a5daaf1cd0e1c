"""webdataset: its WebLoader over our shards, its ShardWriter, and a pool of Pillow processes that feeds the latter."""

import io
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from peers.job import NUM_WRITERS, SPLIT, Job, count_tars, note_first_image
from PIL import Image

SHUFFLED = 1000  # samples in the shuffle buffer, as in its documentation
TASKS_PER_CHUNK = 16
Task = tuple[str, bytes, int, dict[str, Any]]  # key, image, label, options


def read(job: Job) -> Iterator[Any]:
    """Yield uint8 NCHW batches as its documentation does: shards drawn endlessly, shuffled and batched in workers."""
    from peers.torchvision_peer import build_decoder  # noqa: PLC0415
    from webdataset.compat import WebDataset, WebLoader  # noqa: PLC0415 - the writers do not need torch

    yield None
    samples = WebDataset(job.shards, resampled=True, shardshuffle=False).shuffle(SHUFFLED)
    decoded = samples.to_tuple("jpg", "cls").map_tuple(build_decoder(job), int)
    batches = decoded.batched(job.batch_size, partial=False)
    for images, _ in WebLoader(batches, batch_size=None, num_workers=job.workers, persistent_workers=True):
        yield images


def write_with_shard_writer(job: dict[str, Any]) -> Iterator[int | None]:
    """Write the encoded images with webdataset's ShardWriter."""
    rows = open_rows(job)
    yield None
    with open_writer(job) as writer:
        note_first_image()
        for number, item in enumerate(rows):
            writer.write({"__key__": f"{number:08d}", "jpg": bytes(item.data), "cls": item.label})
    yield None
    yield count_tars(job["out"])


def write_with_pillow(job: dict[str, Any]) -> Iterator[int | None]:
    """Make the images smaller in a pool of Pillow processes; the parent reads them and writes the results."""
    with multiprocessing.Pool(NUM_WRITERS) as pool:
        # Make sure that all worker processes have started before the clock does.
        pool.map(time.sleep, [0.1] * NUM_WRITERS, chunksize=1)
        rows = open_rows(job)
        yield None
        tasks = ((f"{n:08d}", bytes(item.data), item.label, job["options"]) for n, item in enumerate(rows))
        with open_writer(job) as writer:
            note_first_image()
            for key, jpeg, label in pool.imap(shrink, tasks, TASKS_PER_CHUNK):
                writer.write({"__key__": key, "jpg": jpeg, "cls": label})
        yield None
        pool.close()
        pool.join()
    yield count_tars(job["out"])


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


def open_rows(job: dict[str, Any]) -> Iterable[Any]:
    """Open the source, and import what writes; return all rows of the source."""
    import webdataset.writer  # noqa: F401, PLC0415 - none of these is needed by the reader

    import prep.dataset  # noqa: F401, PLC0415
    from prep.resolve import open_source  # noqa: PLC0415

    source = open_source(job["source"])
    return source.rows(SPLIT, 0, source.num_rows[SPLIT])


def open_writer(job: dict[str, Any]) -> Any:
    """Return a ShardWriter with as many images per shard as ours; its folder is made within the measured time."""
    from webdataset.writer import ShardWriter  # noqa: PLC0415

    from prep.dataset import Options  # noqa: PLC0415

    Path(job["out"]).mkdir()
    pattern = str(Path(job["out"], f"{SPLIT}-%06d.tar"))
    return ShardWriter(pattern, maxcount=Options.images_per_shard, maxsize=1e12, verbose=0)
