"""Measure all signs that exist on this machine. Every process takes part."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from signs.clocks import judge_clocks
from signs.communication import measure_communication
from signs.distance import find_distance
from signs.engines import judge_engines, measure_loads
from signs.launching import judge_launching, measure_few, step_seconds
from signs.nvml import open_gpu
from signs.sign import Sign
from signs.watched import Watched, watch
from stages.rounds import Report, Windows
from stages.setting import Setting
from stages.stage import LOADER, MODEL, TRAIN, Stage
from stages.stepping import Stepping

from loaders import Loader
from train.step import Step

MOST_SECONDS = 0.5  # of a window that is measured for a sign alone
WATCHED_SECONDS = 2.5  # nvidia-smi reports once per second


def measure_signs(
    loader: Loader, stages: Sequence[Stage], windows: Windows, setting: Setting, report: Report
) -> list[Sign]:
    """Return the signs, measured on the open stages of the mode `all`, with the windows that were measured on them."""
    by_name = {stage.name: stage for stage in stages}
    train = by_name[TRAIN]
    assert isinstance(train, Stepping)

    # The step, the GPU while it trains for some seconds, and the process's place.
    report("measuring signs of lost time", 1.0)
    shorter = replace(setting, seconds=min(MOST_SECONDS, setting.seconds))
    watched, repetitions = {}, math.ceil(WATCHED_SECONDS / setting.seconds)
    if loader.world.device.type == "cuda":
        watched = {name: watch(by_name[name], repetitions, report) for name in (TRAIN, LOADER)}
    few = measure_few(loader, train.step, shorter)
    found = find_signs(loader, train.step, shorter, few and few / step_seconds(windows[MODEL]), watched)

    # The JPEG engines, with several shares for them.
    times = measure_loads(loader, shorter) if loader.decodes_on_gpu else {}
    busy = watched[LOADER].busy_share("jpg") if times else None
    engines = judge_engines(loader.config.hw_decoder_load, times, busy)
    return [*found, engines] if engines else found


def find_signs(
    loader: Loader, step: Step, setting: Setting, fixed_share: float | None, watched: Mapping[str, Watched]
) -> list[Sign]:
    """Return the signs of the step, the GPU and the process, without those of the JPEG engines.

    Args:
        fixed_share: see `judge_launching`.
        watched: training on a GPU, by the stage's name.
    """
    device, train = loader.world.device, watched.get(TRAIN)
    busy = train.busy_share("sm") if train else None
    idle, wait = (1 - busy, train.wait_share) if train and busy is not None else (None, None)
    found = [
        measure_communication(loader, step, setting),
        judge_launching(fixed_share, idle, wait, has_gpu=device.type == "cuda"),
        find_distance(open_gpu(device)),
        judge_clocks(train.samples if train else []),
    ]
    return [sign for sign in found if sign is not None]
