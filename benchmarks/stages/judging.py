"""Build the verdict of a record: read its figures, measure the probes, and describe the result."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from signs.sign import COMMUNICATION, LAUNCHING, Sign
from stages.machine import available_bytes, count_cores
from stages.probes import find_core_scaling, measure_probes, probe_placement
from stages.rounds import Report
from stages.setting import Setting
from stages.stage import DECODE, LOADER, MODEL, READ_COLD, READ_WARM, TRAIN
from verdict.advice import LARGER_BATCH, WANTED, OtherPlacement, Probe, Scaling, advise
from verdict.bounds import CORES, Figures, expected_rate, find_bottleneck, find_bounds
from verdict.cost import Cost
from verdict.words import write_verdict

from loaders import Loader
from train.dist import all_gather_objects, broadcast_from_rank0

NEEDED = (READ_WARM, DECODE, LOADER, MODEL, TRAIN)
Described = dict[str, dict[str, Any]]  # figures of stages, by the stage's name


@dataclass(frozen=True)
class Tried:
    """The changes that were measured, and what is known about other ones."""

    probes: dict[str, Probe]
    scaling: Scaling
    other: OtherPlacement | None


def build_verdict(
    stages: Described, loader: Loader, setting: Setting, cost: Cost, report: Report, signs: Sequence[Sign] = ()
) -> dict[str, Any] | None:
    """Return the verdict for the record; None if a stage that it needs was not measured."""
    if not all(name in stages for name in NEEDED):
        return None

    # Find the bottleneck from the measured rates, and measure what would help against it.
    figures = read_figures(stages, loader)
    wanted = [*WANTED[find_bottleneck(figures)], *want_larger_batch(figures, signs)]
    tried = try_changes(wanted, loader, setting, report)
    probes, other = tried.probes, tried.other
    advice = advise(figures, probes, tried.scaling, other)
    return {
        "binds": find_bottleneck(figures),
        "expected_images_per_second": expected_rate(figures),
        "bounds": find_bounds(figures),
        "says": write_verdict(figures, advice, cost, other, [sign.says for sign in signs]),
        "signs": {sign.name: vars(sign) for sign in signs},
        "advice": [vars(each) for each in advice],
        "probes": {name: vars(probe) for name, probe in probes.items()},
        "other_placement": vars(other) if other else None,
        "figures": vars(figures),
    }


def try_changes(wanted: Iterable[str], loader: Loader, setting: Setting, report: Report) -> Tried:
    """Measure the changes whose effect cannot be computed: the wanted probes, and the other placement."""
    probes = measure_probes(wanted, loader, setting, report)
    return Tried(probes, find_core_scaling(loader), probe_placement(loader, setting, report))


def want_larger_batch(figures: Figures, signs: Sequence[Sign]) -> list[str]:
    """Return the probe of a larger batch if the model binds and much of its step does not depend on the images."""
    found = {sign.name for sign in signs if sign.is_found}
    return [LARGER_BATCH] if found & {COMMUNICATION, LAUNCHING} and find_bottleneck(figures) in (MODEL, CORES) else []


def read_figures(stages: Described, loader: Loader) -> Figures:
    """Return the figures that the verdict is computed from: medians over the rounds, of all processes together."""

    def rate(name: str) -> float:
        return stages[name]["total"]["median"]

    def cpu(name: str) -> float:
        return stages[name]["cpu_seconds_per_1000_images"] / 1000

    # `fits_memory` is rank 0's answer on every rank: machines may differ, the verdict must not.
    sizes = loader.split.column("size")
    return Figures(
        read_warm=rate(READ_WARM),
        decode=rate(DECODE),
        model=rate(MODEL),
        loader=rate(LOADER),
        train=rate(TRAIN),
        read_cold=rate(READ_COLD) if READ_COLD in stages else None,
        fits_memory=broadcast_from_rank0(int(sizes.sum()) < available_bytes(), loader.world),
        cpu_read=cpu(READ_WARM),
        cpu_decode=cpu(DECODE),
        cpu_model=cpu(MODEL),
        num_cores=count_all_cores(loader),
        shares_cores=loader.world.device.type == "cpu",
        decodes_on_gpu=loader.decodes_on_gpu,
        mean_bytes=float(sizes.mean()),
        read_share=find_read_share(stages[READ_WARM]),
    )


def find_read_share(stage: dict[str, Any]) -> float:
    """Return the share of the stored bytes that a stage reads: less than 1 from restart shards."""
    each = stage["bytes_per_image"]
    return each["read"] / each["stored"]


def count_all_cores(loader: Loader) -> float:
    """Return the cores of all machines that take part, each counted by the first of its processes."""
    own = [count_cores()] if loader.world.local_rank == 0 else []
    return sum(all_gather_objects(own, loader.world))
