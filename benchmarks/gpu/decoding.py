# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# (DALI builds its operators at run time; its stubs do not know them)
"""`python -m gpu.decoding JOB`: images/s of decoding alone, from memory: no reading, no resize, no training thread.

This is what the whole loader is held against. The windows are the plan's own, the decoder's options the loader's.
"""

import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np
import torch
from gpu.answer import Job, answer
from gpu.usage import Usage
from nvidia.dali import Pipeline, fn, pipeline_def, types
from record import summarize

from loaders import Loader, LoaderConfig, Split, TrainTransform, World, build_loader
from loaders.config import default_num_threads
from loaders.dali_graph import NVJPEG_PADDING_BYTES
from loaders.reader import Reader
from loaders.stats import Counters
from train.dist import join_world

MOST_BATCHES = 8  # different ones, in memory
Arrays = list[Any]  # encoded images, anchors and shapes of the windows, of one batch


def measure(job: Job) -> dict[str, Any]:
    """The rate in each repetition, and how busy the machine was."""
    with join_world(job["device"]) as world:
        config = LoaderConfig(**job["loader"])
        split = Split(job["data"], job["split"])
        loader = build_loader(split, TrainTransform(job["size"]), job["batch_size"], world, config=config)
        pipeline = build_pipeline(loader, cycle(list(load_batches(loader))))
        num_batches = warm_up(pipeline, job["seconds"], world)
        with Usage() as usage:
            seconds = [run(pipeline, num_batches, world) for _ in range(job["repetitions"])]
    rates = [num_batches * job["batch_size"] / each for each in seconds]
    return {"images_per_second": summarize(rates), "usage": usage.figures}


def load_batches(loader: Loader) -> Iterator[Arrays]:
    """The first batches of the stream; nothing releases their buffers, so they stay as they are."""
    num_batches = max(1, min(MOST_BATCHES, len(loader.split) // loader.batch_size))
    plans = (loader.plan(i * loader.batch_size) for i in range(num_batches))
    with Reader(loader.split, 1, 1, Counters()) as reader:
        for plan, encoded in reader.read(plans):
            windows_B4 = plan.windows_B4
            anchors_B2, shapes_B2 = (np.ascontiguousarray(part) for part in (windows_B4[:, :2], windows_B4[:, 2:]))
            yield [encoded.images, anchors_B2, shapes_B2]


def build_pipeline(loader: Loader, batches: Iterator[Arrays]) -> Pipeline:
    """Decodes for ever; the outputs are windows of different sizes."""
    on_gpu = loader.world.device.type == "cuda"

    @pipeline_def(
        batch_size=loader.batch_size,
        num_threads=loader.config.num_threads or default_num_threads(loader.world),
        device_id=loader.world.device.index if on_gpu else None,
        prefetch_queue_depth=loader.config.batches_ahead,
        exec_dynamic=True,
    )
    def graph() -> Any:
        kinds = [types.UINT8, types.INT64, types.INT64]
        encoded, anchors, shapes = fn.external_source(
            source=lambda: next(batches), num_outputs=3, batch=True, no_copy=True, dtype=kinds, ndim=1
        )
        options = {"output_type": types.RGB, "adjust_orientation": False, **_device_options(loader)}
        if loader.config.decode == "roi":
            return fn.decoders.image_slice(encoded, anchors, shapes, axis_names="HW", **options)
        return fn.slice(fn.decoders.image(encoded, **options), anchors, shapes, axis_names="HW")

    pipeline = graph()
    pipeline.build()
    return pipeline


def _device_options(loader: Loader) -> dict[str, Any]:
    if loader.world.device.type != "cuda":
        return {"device": "cpu"}
    return {
        "device": "mixed",
        "hw_decoder_load": loader.config.hw_decoder_load,
        "preallocate_width_hint": int(loader.widths.max()),
        "preallocate_height_hint": int(loader.heights.max()),
        "device_memory_padding": NVJPEG_PADDING_BYTES,
        "host_memory_padding": NVJPEG_PADDING_BYTES,
    }


def warm_up(pipeline: Pipeline, seconds: float, world: World) -> int:
    """Run until rates are steady; the batches that take about `seconds`."""
    num_batches, spent = 2, 0.0
    while spent < seconds / 2:
        num_batches *= 2
        spent = run(pipeline, num_batches, world)
    return max(1, round(num_batches * seconds / spent))


def run(pipeline: Pipeline, num_batches: int, world: World) -> float:
    """Seconds that so many batches take, the last one decoded."""
    started = time.perf_counter()
    for _ in range(num_batches):
        pipeline.run()
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return time.perf_counter() - started


if __name__ == "__main__":
    answer(measure)
