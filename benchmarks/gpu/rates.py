"""Images/s of the loader, the model, or both: the stages of benchmarks/throughput.py, and how busy the machine was.

Loader and training read the photographs from the page cache through the real reader. The model alone gets the batch of
the synthetic backend, so that it needs neither DALI nor decoding.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from answer import Job
from gpu.decoding import check_splicing
from gpu.memory import describe_memory
from gpu.usage import Usage
from gpu.worker import Report
from pace import read_clock
from record import summarize
from stages.setting import Setting
from stages.stage import Stage, Window, measure_window
from stages.stepping import Feed, Feeding, Stepping, build_step

from loaders import Loader, LoaderConfig, Split, TrainTransform, World, build_loader
from train.dist import join_world

SYNTHETIC = {"backend": "synthetic"}


def measure_rates(job: Job, report: Report) -> dict[str, Any]:
    """Measure the mode of a job; return rates, the loader's times, memory, and how busy the machine was."""
    with join_world(job["device"]) as world:
        loader = open_loader(job, SYNTHETIC if job["mode"] == "model" else job["loader"], world)
        with Feed(loader) as feed:
            stage = Feeding(feed) if job["mode"] == "loader" else Stepping(feed, build_step(read_setting(job), loader))
            return measure_stage(stage, job)


def measure_compiled(job: Job, report: Report) -> dict[str, Any]:
    """Return the rates of the model alone and of training; both use one training step, which is compiled once."""
    torch.compiler.reset()  # forget what an earlier mode has compiled
    with join_world(job["device"]) as world:
        loader, synthetic = open_loader(job, job["loader"], world), open_loader(job, SYNTHETIC, world)
        step = build_step(read_setting(job), loader)
        result: dict[str, Any] = {}
        for name, each in {"model": synthetic, "train": loader}.items():
            with Feed(each) as feed:
                result[name] = measure_stage(Stepping(feed, step), job)
            report(result)
    return result


def open_loader(job: Job, options: dict[str, Any], world: World) -> Loader:
    """Return a loader of training batches with the given settings."""
    split = Split(job["data"], job["split"])
    loader = build_loader(split, TrainTransform(job["size"]), job["batch_size"], world, config=LoaderConfig(**options))
    if options is not SYNTHETIC:
        check_splicing(job, loader)
    return loader


def measure_stage(stage: Feeding, job: Job) -> dict[str, Any]:
    """Return a stage's figures: windows of about `seconds`, after a warm-up of the same length."""
    first_seconds = time_one(stage)
    stage.calibrate(job["seconds"])
    with Usage() as usage:
        windows = [measure_window(stage) for _ in range(job["repetitions"])]
    names = windows[0].spent
    return {
        "images_per_second": summarize([window.num_images / window.seconds for window in windows]),
        "data_wait_percent": wait_percent(windows, stage.num_steps),
        "milliseconds_a_batch": {name: statistics.mean(window.spent[name] for window in windows) for name in names},
        "first_batch_seconds": first_seconds,
        "usage": usage.figures,
        **describe_memory(stage.world.device),
        **stage.feed.loader.placement.to_dict(),
    }


def read_setting(job: Job) -> Setting:
    """Return the settings of the training step."""
    return Setting(
        size=job["size"], model=job["model"], amp=job["amp"], compile=job["compile"], run_dir=Path(job["work"])
    )


def wait_percent(windows: list[Window], num_steps: int) -> float:
    """Return the percentage of the time that was spent waiting for a batch; on a GPU the loader measures it there."""
    waited = sum(window.spent["wait"] * num_steps / 1000 for window in windows)
    return 100 * waited / sum(window.seconds for window in windows)


def time_one(stage: Stage) -> float:
    """Return the seconds of the first batch, in which queues fill, kernels load and the model is compiled."""
    started = time.perf_counter()
    stage.take()
    return read_clock(stage.world) - started
