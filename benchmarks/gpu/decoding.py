"""Images/s of decoding alone, from encoded batches in memory to pixels: no reading, no training thread.

The rate of the complete loader is compared with this one. Windows, sizes and the decoder's options are the loader's.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from answer import Job
from gpu.memory import describe_memory
from gpu.usage import Usage
from gpu.worker import Report
from record import summarize
from stages.decoding import Decoding, Held, hold_batches
from stages.stage import measure_window

from loaders import Loader, LoaderConfig, Split, TrainTransform, build_loader
from loaders.splice import find_spans, splice_jpeg
from prep.errors import InputError
from prep.segments import lengths_of, parse_records
from train.dist import join_world

ROWS = "rows"  # in place of a value of the loader's `splice`: complete rows of segments, which the loader does not do


def measure_decoding(job: Job, report: Report) -> dict[str, Any]:
    """Measure the decoding rate; return every repetition, how busy the machine was, and the GPU's memory."""
    with join_world(job["device"]) as world:
        split, config = Split(job["data"], job["split"]), LoaderConfig(**job["loader"])
        loader = build_loader(split, TrainTransform(job["size"]), job["batch_size"], world, config=config)
        check_splicing(job, loader)
        held = hold_batches(loader)
        if job.get("splice") == ROWS:
            held = splice_rows(loader, held)
        with Decoding(loader, held) as stage:
            stage.calibrate(job["seconds"])
            with Usage() as usage:
                windows = [measure_window(stage) for _ in range(job["repetitions"])]
            memory = describe_memory(world.device)
    return {
        "images_per_second": summarize([window.num_images / window.seconds for window in windows]),
        "usage": usage.figures,
        **memory,
        **loader.placement.to_dict(),
    }


def check_splicing(job: Job, loader: Loader) -> None:
    """Check that a loader splices if its case is about spliced images.

    Raises:
        InputError: it would read complete images.
    """
    if job.get("splice") == "auto" and loader.whole is None:
        raise InputError("images are not spliced here: build loaders/_read.c (docs/benchmarks.md, Unpack)")


def splice_rows(loader: Loader, held: Held) -> Held:
    """Return batches of complete images, of a split with segments, cut to the rows that hold the windows."""
    # The segments of all images.
    split = loader.split
    contents = [split.segments_path(shard).read_bytes() for shard in range(len(split.manifest.shards))]
    counts = [shard.num_images for shard in split.manifest.shards]
    records_N = np.concatenate(
        [parse_records(each, split.place, count) for each, count in zip(contents, counts, strict=True)]
    )
    shards_N = split.column("shard")

    spliced = []
    for plan, encoded in held:
        # Windows as wide as their images need every column.
        records_B, heights_B, widths_B = (each[plan.rows_B] for each in (records_N, loader.heights, loader.widths))
        wide_B4 = plan.windows_B4.copy()
        wide_B4[:, 1], wide_B4[:, 3] = 0, widths_B
        spans = find_spans(records_B, heights_B.astype(np.int64), widths_B.astype(np.int64), wide_B4, plan.damaged_B)
        images = []
        for i, row in enumerate(plan.rows_B):
            lengths = lengths_of(contents[shards_N[row]], records_B[i])
            jpeg = splice_jpeg(encoded.images[i], records_B[i], lengths, spans, i)
            images.append(np.frombuffer(jpeg, np.uint8))

        # The windows keep their columns.
        windows_B4 = plan.windows_B4.copy()
        windows_B4[:, 0] = spans.windows_B4[:, 0]
        spliced.append((replace(plan, windows_B4=windows_B4), replace(encoded, images=images)))
    return spliced
