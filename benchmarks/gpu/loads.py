"""Compare the bits that one plan gives: twice on an idle device, then while the device is busy with other work.

The hardware JPEG decoder of some GPUs is known to start before earlier work of its stream has ended. A test on an idle
GPU cannot see that, and training never leaves the GPU idle. So while the plan is decoded again, matrix products run on
two other streams. Each batch is used late and then dropped at once, so that its memory is soon overwritten.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from types import TracebackType
from typing import Any

import torch
from answer import Job
from gpu.worker import Report

from loaders import LoaderConfig, Split, TrainTransform, World, build_loader
from train.dist import join_world

NUM_BATCHES = 12
SIDES = {"cuda": 8192, "cpu": 512}  # of the matrices: one product takes 2 ms on a GPU
PRODUCTS = 4  # queued at once
NUM_STREAMS = 2


class Busy:
    """Keep a device busy with matrix products. Use as a context manager."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.ended = device, threading.Event()
        self.num_products = 0
        side = SIDES[device.type]
        kind = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.matrix = torch.randn(side, side, device=device, dtype=kind)
        num_threads = NUM_STREAMS if device.type == "cuda" else len(os.sched_getaffinity(0))
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(num_threads)]

    def __enter__(self) -> "Busy":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def _work(self) -> None:
        if self.device.type == "cpu":
            self._multiply(None)
            return
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            self._multiply(stream)

    def _multiply(self, stream: torch.cuda.Stream | None) -> None:
        product = torch.empty_like(self.matrix)
        while not self.ended.is_set():
            for _ in range(PRODUCTS):
                torch.mm(self.matrix, self.matrix, out=product)
            self.num_products += PRODUCTS
            if stream:
                stream.synchronize()


def compare_under_load(job: Job, report: Report) -> dict[str, Any]:
    """Return whether the bits are equal, idle and under load, with the number of different values and the largest."""
    with join_world(job["device"]) as world:
        # Twice on the idle device: a difference here is not due to the load.
        first = [images_BCHW.clone() for images_BCHW in decode(job, world)]
        result = {"num_batches": len(first), "idle": count_differences(first, decode(job, world))}
        report(result)

        # A third time, while the device is busy.
        with Busy(world.device) as busy:
            result["under_load"] = count_differences(first, decode(job, world, busy.matrix))
        result["num_products"] = busy.num_products
        result |= {f"is_same_{name}": not result[name]["num_values"] for name in ("idle", "under_load")}
    return result


def decode(job: Job, world: World, delay: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
    """Yield the images of the stream's first batches, from a new pipeline.

    Args:
        job: names the split and the loader's settings.
        world: of one process.
        delay: on a GPU, a matrix whose square is computed before each batch is used, so that the use comes late.
    """
    split, config = Split(job["data"], job["split"]), LoaderConfig(**job["loader"])
    loader = build_loader(split, TrainTransform(job["size"]), job["batch_size"], world, config=config)
    with closing(iter(loader)) as batches:  # pyright: ignore[reportArgumentType]  (a generator)
        for batch in islice(batches, NUM_BATCHES):
            if delay is not None and delay.is_cuda:
                torch.mm(delay, delay)
            yield batch.images_BCHW


def count_differences(first: list[torch.Tensor], again: Iterator[torch.Tensor]) -> dict[str, int]:
    """Return how many values differ, and the largest difference; the device is synchronized once, at the end."""
    device = first[0].device
    num_values, largest = torch.zeros((), dtype=torch.int64, device=device), torch.zeros((), device=device)
    for images_BCHW, other_BCHW in zip(first, again, strict=True):
        apart_BCHW = (images_BCHW.int() - other_BCHW.int()).abs()
        num_values += (apart_BCHW > 0).sum()
        largest = torch.maximum(largest, apart_BCHW.amax())
        del other_BCHW  # dropped at once
    return {"num_values": int(num_values), "largest": int(largest)}
