"""Penstock's loader with its defaults, and what `python prep/shard.py` does after opening its source.

Also what restart shards save in an epoch, and prep/stage.py without its verification.

The loader and the preparation are imported in the functions: worker processes of the preparation import this module,
and would start more slowly with torch and DALI.
"""

import runpy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from peers.job import NUM_WRITERS, SPLIT, Job, count_tars, note_first_image

if TYPE_CHECKING:
    from loaders import Split
    from loaders.plan import Plan
    from loaders.reader import Encoded

COUNTED_BATCH_SIZE, COUNTED_THREADS = 64, 2  # of `count_epoch`
# Pixels of an MCU, height and width, by the name that simplejpeg gives to the subsampling of the chroma.
MCU_SIDES = {"Gray": (8, 8), "444": (8, 8), "422": (8, 16), "440": (16, 8), "420": (16, 16), "411": (8, 32)}


def read(job: Job) -> Iterator[Any]:
    """Yield uint8 NCHW batches, channels_last."""
    import loaders.dali  # noqa: F401, PLC0415 - the backend too; the loader would import it after the clock has started
    from loaders import EvalTransform, LoaderConfig, Split, TrainTransform, build_loader  # noqa: PLC0415

    yield None
    transform = EvalTransform(job.size, job.resize) if job.evaluates else TrainTransform(job.size)
    config = LoaderConfig("dali", num_threads=job.workers)
    loader = build_loader(Split(job.data, SPLIT), transform, job.batch_size, config=config)
    while True:  # the stream of training never ends, that of evaluation does
        for batch in loader:
            yield batch.images_BCHW


def write(job: dict[str, Any]) -> Iterator[int | None]:
    """Write one split into a local folder; the worker processes start within the timed call."""
    from prep.dataset import Options  # noqa: PLC0415
    from prep.pools import local_pool  # noqa: PLC0415
    from prep.prepare import prepare_split  # noqa: PLC0415
    from prep.resolve import open_source  # noqa: PLC0415
    from prep.source import Source  # noqa: PLC0415
    from prep.store import open_store  # noqa: PLC0415

    source, options = cast(Source, TimestampedSource(open_source(job["source"]))), Options(**job["options"])
    yield None
    prepare_split(source, SPLIT, open_store(job["out"]), options, local_pool(NUM_WRITERS))
    yield None
    yield count_tars(job["out"])


@dataclass(frozen=True)
class TimestampedRows:
    """Rows of a source; the process that reads the first of them writes its timestamp."""

    rows: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        note_first_image()
        return iter(self.rows)


class TimestampedSource:
    """A source with timestamped rows; all else is passed to the given source."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def rows(self, split: str, start: int, stop: int) -> TimestampedRows:
        return TimestampedRows(self._source.rows(split, start, stop))


# What restart shards save.


def count_epoch(folder: Path, split_name: str, size: int) -> dict[str, Any]:
    """Read the training images of an epoch of restart shards as the loader does; return the shares read and decoded.

    Nothing is timed.

    Returns:
        `read_share` and `decoded_share` of the JPEGs' bytes (what is read includes SHARD.seg), and `mcu_share` of their
        MCUs, of `num_images` images; `spliced_share` of all images; `size_ratio`, the bytes of the JPEGs relative to
        those of the source; `index_bytes_per_image` of SHARD.seg.
    """
    from loaders import Split, TrainTransform, build_loader  # noqa: PLC0415
    from loaders.stats import Counters  # noqa: PLC0415
    from prep.segments import parse_records  # noqa: PLC0415

    split, counters, decoded_mcus, mcus = Split(folder, split_name), Counters(), 0, 0
    loader = build_loader(split, TrainTransform(size), min(COUNTED_BATCH_SIZE, len(split)))
    num_batches = len(split) // loader.batch_size
    with loader.open_reader(COUNTED_THREADS, 1, counters) as reader:
        for plan, encoded in reader.read(loader.plan(i * loader.batch_size) for i in range(num_batches)):
            decoded, complete = count_mcus(split, plan, encoded)
            decoded_mcus, mcus = decoded_mcus + decoded, mcus + complete
            reader.release(encoded)

    # The files with the segments.
    segments = [split.segments_path(shard).read_bytes() for shard in range(len(split.manifest.shards))]
    counts = [shard.num_images for shard in split.manifest.shards]
    records = [parse_records(content, split_name, num) for content, num in zip(segments, counts, strict=True)]
    return {
        "num_images": num_batches * loader.batch_size,
        "spliced_share": sum(int((each["interval"] > 0).sum()) for each in records) / len(split),
        "read_share": counters.read_bytes / counters.image_bytes,
        "decoded_share": counters.decode_bytes / counters.image_bytes,
        "mcu_share": decoded_mcus / mcus,
        "size_ratio": split.manifest.size_bytes / split.manifest.source_size_bytes,
        "index_bytes_per_image": sum(map(len, segments)) / len(split),
    }


def count_mcus(split: "Split", plan: "Plan", encoded: "Encoded") -> tuple[int, int]:
    """Return the MCUs of a batch's JPEGs as they are decoded, and those of the complete images."""
    import simplejpeg  # noqa: PLC0415

    decoded = complete = 0
    heights_B, widths_B = (split.column(name)[plan.rows_B].tolist() for name in ("height", "width"))
    for image, whole_height, whole_width in zip(encoded.images, heights_B, widths_B, strict=True):
        height, width, _, subsampling = simplejpeg.decode_jpeg_header(image)
        mcu_height, mcu_width = MCU_SIDES[subsampling]
        decoded += -(-int(height) // mcu_height) * -(-int(width) // mcu_width)
        complete += -(-whole_height // mcu_height) * -(-whole_width // mcu_width)
    return decoded, complete


# The download alone.


def fetch_only(stage: str) -> None:
    """Run the command `stage`, prep/stage.py, without its verification, for what a download alone costs."""
    from prep import transfer  # noqa: PLC0415

    transfer.name_if_whole = name_unseen
    runpy.run_path(stage, run_name="__main__")


def name_unseen(partial: Path, tar: Path, composite_sha256: str) -> bool:
    """Give a fetched tar its name, whatever is in it; a verifying process finds this function by its name."""
    partial.rename(tar)
    return True
