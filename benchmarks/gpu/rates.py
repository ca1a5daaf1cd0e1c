"""Images/s of decoding alone, of the loader, the model, or both, and how busy the machine was.

The stages are those of benchmarks/throughput.py. Decoding alone reads encoded batches from memory; loader and training
read the photographs from the page cache through the real reader. The model alone gets the batch of the synthetic
backend, so that it needs neither DALI nor decoding.
"""

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu.cases import ROWS, Figures, Job
from gpu.pixels import open_loader
from machine import Usage
from record import GIB, summarize
from stages import Decoding, Feed, Feeding, Held, Setting, Stepping, build_step, hold_batches
from timing import Stage, Window, measure_window, read_clock

from loaders import Loader
from loaders.splice import find_spans, splice_jpeg
from prep.segments import lengths_of, parse_records
from train.dist import join_world

SYNTHETIC = {"backend": "synthetic"}


def measure_decoding(job: Job) -> Figures:
    """Yield the decoding rate. Windows, sizes and the decoder's options are the loader's."""
    with join_world(job["device"]) as world:
        loader = open_loader(job, job["loader"], world)
        held = hold_batches(loader)
        if job.get("splice") == ROWS:
            held = splice_rows(loader, held)
        with Decoding(loader, held) as stage:
            _, figures = measure_windows(stage, job)
        yield figures | loader.placement.to_dict()


def measure_rates(job: Job) -> Figures:
    """Yield the figures of the job's mode: loader, model or train."""
    with join_world(job["device"]) as world:
        loader = open_loader(job, SYNTHETIC if job["mode"] == "model" else job["loader"], world)
        with Feed(loader) as feed:
            stage = Feeding(feed) if job["mode"] == "loader" else Stepping(feed, build_step(read_setting(job), loader))
            yield measure_stage(stage, job)


def measure_compiled(job: Job) -> Figures:
    """Yield the figures of the model alone and of training; both use one training step, which is compiled once."""
    torch.compiler.reset()  # forget what an earlier mode has compiled
    with join_world(job["device"]) as world:
        loader, synthetic = open_loader(job, job["loader"], world), open_loader(job, SYNTHETIC, world)
        step = build_step(read_setting(job), loader)
        result: dict[str, Any] = {}
        for name, each in {"model": synthetic, "train": loader}.items():
            with Feed(each) as feed:
                result[name] = measure_stage(Stepping(feed, step), job)
            yield dict(result)


def read_setting(job: Job) -> Setting:
    """Return the settings of the training step."""
    names = ("size", "model", "amp", "compile", "fused", "graph")
    return Setting(**{name: job[name] for name in names}, run_dir=Path(job["work"]))


def measure_stage(stage: Feeding, job: Job) -> dict[str, Any]:
    """Return the figures of a stage that takes batches from a loader."""
    # In the first batch queues fill, kernels load and the model is compiled.
    started = time.perf_counter()
    stage.take()
    first_seconds = read_clock(stage.world) - started

    # Waiting is measured by the loader; on a GPU it is the time on the device.
    windows, figures = measure_windows(stage, job)
    waited = sum(window.spent["wait"] * stage.num_steps / 1000 for window in windows)
    return {
        "data_wait_percent": 100 * waited / sum(window.seconds for window in windows),
        "milliseconds_a_batch": {
            name: statistics.mean(window.spent[name] for window in windows) for name in windows[0].spent
        },
        "first_batch_seconds": first_seconds,
        **figures,
        **stage.feed.loader.placement.to_dict(),
    }


def measure_windows(stage: Stage, job: Job) -> tuple[list[Window], dict[str, Any]]:
    """Measure windows of about `seconds`, after a warm-up of the same length.

    Returns:
        The windows, and the rate, how busy the machine was, and memory of the GPU in GiB: torch's peak since its last
        reset, and what all processes use now, which includes DALI's pools.
    """
    stage.calibrate(job["seconds"])
    with Usage() as usage:
        windows = [measure_window(stage) for _ in range(job["repetitions"])]
    peak = used = None
    if stage.world.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(stage.world.device)
        peak, used = torch.cuda.max_memory_allocated(stage.world.device) / GIB, (total - free) / GIB
    rates = summarize([window.num_images / window.seconds for window in windows])
    return windows, {
        "images_per_second": rates,
        "usage": usage.figures,
        "gpu_memory_gib": peak,
        "gpu_used_gib": used,
    }


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
