"""From the record's figures to the verdict: which of them it takes, what is measured on top, and how it is written."""

from typing import Any

from stages.machine import available_bytes, count_cores
from stages.probes import find_scaling, measure_probes, probe_placement
from stages.rounds import Report
from stages.setting import Setting
from stages.stage import DECODE, LOADER, MODEL, READ_COLD, READ_WARM, TRAIN
from verdict.advice import WANTED, advise
from verdict.bounds import Figures, expect, find_binding, find_bounds
from verdict.cost import Cost
from verdict.words import speak

from loaders import Loader
from train.dist import from_every_rank, from_rank_0

NEEDED = (READ_WARM, DECODE, LOADER, MODEL, TRAIN)
Described = dict[str, dict[str, Any]]  # stages by name


def judge(stages: Described, loader: Loader, setting: Setting, cost: Cost, report: Report) -> dict[str, Any] | None:
    """The verdict for the record; None where a stage that it needs was not measured."""
    if not all(name in stages for name in NEEDED):
        return None
    figures = read_figures(stages, loader)
    binds = find_binding(figures)
    probes = measure_probes(WANTED[binds], loader, setting, report)
    other = probe_placement(loader, setting, report)
    advice = advise(figures, probes, find_scaling(loader), other)
    return {
        "binds": binds,
        "expected_images_per_second": expect(figures),
        "bounds": find_bounds(figures),
        "says": speak(figures, advice, cost, other),
        "advice": [vars(each) for each in advice],
        "probes": {name: vars(probe) for name, probe in probes.items()},
        "other_placement": vars(other) if other else None,
        "figures": vars(figures),
    }


def read_figures(stages: Described, loader: Loader) -> Figures:
    """What the verdict goes by: medians over the rounds, of all processes together."""

    def rate(name: str) -> float:
        return stages[name]["total"]["median"]

    def cpu(name: str) -> float:
        return stages[name]["cpu_seconds_per_1000_images"] / 1000

    sizes = loader.split.column("size")
    return Figures(
        read_warm=rate(READ_WARM),
        decode=rate(DECODE),
        model=rate(MODEL),
        loader=rate(LOADER),
        train=rate(TRAIN),
        read_cold=rate(READ_COLD) if READ_COLD in stages else None,
        fits_memory=from_rank_0(int(sizes.sum()) < available_bytes(), loader.world),
        cpu_read=cpu(READ_WARM),
        cpu_decode=cpu(DECODE),
        cpu_model=cpu(MODEL),
        num_cores=count_all_cores(loader),
        shares_cores=loader.world.device.type == "cpu",
        decodes_on_gpu=loader.decodes_on_gpu,
        mean_bytes=float(sizes.mean()),
    )


def count_all_cores(loader: Loader) -> float:
    """Of all machines that take part, each as the first of its processes sees it."""
    own = [count_cores()] if loader.world.local_rank == 0 else []
    return sum(from_every_rank(own, loader.world))
