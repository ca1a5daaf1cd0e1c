"""Compare the kernels of fused BatchNorm with PyTorch in float64; profile a training step."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from gpu.pixels import open_loader
from gpu.rates import read_setting
from modelling.cases import describe_excess
from modelling.kernel_errors import measure_errors
from record import print_progress
from step_time import profile_training

from prep.errors import InputError
from train.dist import join_world
from train.fused import find_obstacle


def check_kernels(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the largest error of each quantity, and its limit.

    Raises:
        InputError: the kernels cannot run here, or an error is above its limit.
    """
    device = torch.device(job["device"])
    if obstacle := find_obstacle(device):
        raise InputError(obstacle)
    checked = measure_errors(job["amp"], device)
    yield checked
    if excess := describe_excess(checked):
        raise InputError(excess)


def profile_case(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rate of training without the profiler, and the time of each class of kernel under it."""
    with join_world(job["device"]) as world:
        times = {name: job[name] for name in ("batch_size", "repetitions", "seconds")}
        setting = replace(read_setting(job), mode="train", **times)
        loader = open_loader(job, job["loader"], world)
        record = profile_training(setting, loader, lambda what, _: print_progress(what))
        yield {name: record[name] for name in ("unprofiled", "profile")} | loader.placement.to_dict()
