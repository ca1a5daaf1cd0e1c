"""`python -m gpu.rates JOB`: images/s of the loader, the model or both, with any settings of loader and compilation.

The stages are those of benchmarks/throughput.py; here one is measured alone, with who was busy beside it.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from answer import Job, answer
from gpu.usage import Usage
from pace import read_clock
from record import summarize
from stages.setting import Setting
from stages.stage import Stage, Window
from stages.stage import measure as measure_window
from stages.stepping import Feed, Feeding, Stepping, build_step

from loaders import LoaderConfig, Split, TrainTransform, build_loader
from train.dist import join_world

GIB = 1 << 30


def measure(job: Job) -> dict[str, Any]:
    """Rates, where the loader's time went, memory, and how busy the machine was."""
    with join_world(job["device"]) as world:
        split, config = Split(job["data"], job["split"]), LoaderConfig(**job["loader"])
        loader = build_loader(split, TrainTransform(job["size"]), job["batch_size"], world, config=config)
        with Feed(loader) as feed:
            stage = Feeding(feed) if job["mode"] == "loader" else Stepping(feed, build_step(read_setting(job), loader))
            first_seconds = time_one(stage)
            stage.calibrate(job["seconds"])
            with Usage() as usage:
                windows = [measure_window(stage) for _ in range(job["repetitions"])]
    spent = {name: statistics.mean(window.spent[name] for window in windows) for name in windows[0].spent}
    return {
        "images_per_second": summarize([window.num_images / window.seconds for window in windows]),
        "data_wait_percent": wait_percent(windows, stage.num_steps),
        "milliseconds_a_batch": spent,
        "first_batch_seconds": first_seconds,
        "gpu_memory_gib": torch.cuda.max_memory_allocated() / GIB if world.device.type == "cuda" else None,
        "usage": usage.figures,
    }


def read_setting(job: Job) -> Setting:
    """What the training step is built with."""
    return Setting(
        size=job["size"], model=job["model"], amp=job["amp"], compile=job["compile"], run_dir=Path(job["work"])
    )


def wait_percent(windows: list[Window], num_steps: int) -> float:
    """The share of the time in which a batch was waited for."""
    waited = sum(window.spent["wait"] * num_steps / 1000 for window in windows)
    return 100 * waited / sum(window.seconds for window in windows)


def time_one(stage: Stage) -> float:
    """Seconds of the first batch: queues fill, kernels load, the model is compiled."""
    started = time.perf_counter()
    stage.take()
    return read_clock(stage.world) - started


if __name__ == "__main__":
    answer(measure)
