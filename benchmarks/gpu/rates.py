"""`python -m gpu.rates JOB`: images/s of the loader, the model or both, with any settings of loader and compilation.

The method is that of benchmarks/throughput.py.
"""

import copy
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from gpu.answer import Job, answer
from gpu.usage import Usage
from pace import SPENT, Take, read_clock, repeat, warm_up
from record import summarize
from throughput import TOTAL_IMAGES

from loaders import Batch, Loader, LoaderConfig, Split, TrainTransform, build_loader
from train.config import Recipe, RunConfig
from train.dist import join_world
from train.model import ModelConfig, build_model
from train.optim import build_optimizer
from train.speed import SpeedConfig, set_precision
from train.step import Step, Sums, new_state

GIB = 1 << 30


def measure(job: Job) -> dict[str, Any]:
    """Rates, where the loader's time went, memory, and how busy the machine was."""
    with join_world(job["device"]) as world:
        split, config = Split(job["data"], job["split"]), LoaderConfig(**job["loader"])
        loader = build_loader(split, TrainTransform(job["size"]), job["batch_size"], world, config=config)
        batches = iter(loader)
        with closing(batches):  # pyright: ignore[reportArgumentType]  (a generator)
            take = build_take(job, loader, batches)
            first_seconds = time_one(take, loader)
            num_steps = warm_up(take, job["seconds"], world)
            before = loader.stats()
            with Usage() as usage:
                seconds = repeat(take, num_steps, job["repetitions"], world)
            stats = loader.stats().since(before)
    spent = {name: 1000 * getattr(stats, f"{name}_seconds") / stats.num_batches for name in SPENT}
    return {
        "images_per_second": summarize([num_steps * job["batch_size"] / each for each in seconds]),
        "data_wait_percent": 100 * stats.wait_seconds / sum(seconds),
        "milliseconds_a_batch": spent,
        "first_batch_seconds": first_seconds,
        "gpu_memory_gib": torch.cuda.max_memory_allocated() / GIB if world.device.type == "cuda" else None,
        "usage": usage.figures,
    }


def build_take(job: Job, loader: Loader, batches: Iterator[Batch]) -> Take:
    """What is measured, as a function that does it for one batch."""
    if job["mode"] == "loader":
        return lambda: _drop(next(batches))
    step, sums = build_step(job, loader), Sums.zero(loader.world.device)
    return lambda: step(next(batches), sums)


def _drop(_: Batch) -> None:
    """The loader alone: nothing is done with a batch."""


def build_step(job: Job, loader: Loader) -> Step:
    """The training step as `train.fit` makes it, at the start of a run."""
    recipe = Recipe(
        name="gpu-suite",
        epochs=100,
        batch_size=loader.batch_size,
        amp=job["amp"],
        model=ModelConfig(job["model"]),
        speed=SpeedConfig(compile=job["compile"]),
        run=RunConfig(dir=Path(job["work"])),
    )
    set_precision(recipe.speed)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, len(loader.split.class_names), loader.world.device)
    ema = copy.deepcopy(model).requires_grad_(False)
    state = new_state(recipe, model, ema, build_optimizer(model, recipe.optim))
    return Step(recipe, state, TOTAL_IMAGES, loader.world)


def time_one(take: Take, loader: Loader) -> float:
    """Seconds of the first batch: queues fill, kernels load, the model is compiled."""
    started = time.perf_counter()
    take()
    return read_clock(loader.world) - started


if __name__ == "__main__":
    answer(measure)
