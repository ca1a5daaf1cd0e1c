"""Hours and dollars of a recipe on a machine: its phases at the lowest bound, its start, and reclaims. Pure functions.

A run is: boot, environment, staging, training with its evaluations. Each reclaim of a spot machine adds another start
and the training since the last save. `phases.total` adds the phases up.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from dollars.decoding import Decoding, Stored
from dollars.machines import GIGABIT, Machine
from dollars.speeds import PYTORCH_SHARE, Speed, rate_at
from phases.plan import IMAGENET_VALIDATION, Phase, plan_phases
from phases.total import PhaseResult, sum_seconds
from verdict.bounds import Figures, expected_rate
from verdict.cost import IMAGENET_IMAGES

from prep.errors import InputError
from train.config import Recipe

IMAGES = IMAGENET_IMAGES + IMAGENET_VALIDATION  # of both splits
SAME_BYTES = 0.1  # files whose mean sizes differ by less are of the same kind
MEMORY_SHARE = 0.8  # of a machine's memory can hold the shards
S3_GBIT = 100  # per second, the most that S3 gives to one machine
# Evaluating an image costs two forward passes, of the model and of its EMA; a training step one, and a backward pass
# that costs twice as much.
EVALUATIONS_PER_STEP = 3 / 2
HOUR, MINUTE, GIB = 3600, 60, 1 << 30
STAGED, READ_THROUGH = "staged", "read-through"
Start = Literal["staged", "read-through"]


@dataclass(frozen=True)
class Assumptions:
    """What is assumed, not measured."""

    reclaims: int = 1
    boot_minutes: float = 2.0
    environment_minutes: float = 5.0
    start: Start = STAGED  # read-through: training starts while the shards arrive
    uses_burst: bool = False  # of the network
    lost_epochs: float | None = None  # per reclaim; None: half of the recipe's interval between saves
    pytorch_share: float = PYTORCH_SHARE
    efficiency: float = 1.0  # of training with a loader, relative to the lowest bound, if the step was measured alone


@dataclass(frozen=True)
class Case:
    """A recipe on a machine, from one form of stored images."""

    recipe: Recipe
    machine: Machine
    stored: Stored
    speed: Speed
    network_cost: float  # time of the recipe's network relative to that of `speed`


@dataclass(frozen=True)
class Estimate:
    """The seconds of the parts of a run, and what the machine must give."""

    training: list[PhaseResult]
    evaluation: PhaseResult
    staging: float  # until all shards are there
    start: float  # boot, environment, and what training waits for shards
    reclaim: float  # each: another start, and the training since the last save
    need_bytes: float  # per second, from storage, if storage set no limit
    need_vcpus: float  # to decode as fast as the model trains

    @property
    def running(self) -> float:
        """Seconds of training and evaluation."""
        return sum_seconds([*self.training, self.evaluation])

    def seconds(self, reclaims: int) -> float:
        """Return the seconds of the whole run, which all are paid."""
        return self.start + self.running + reclaims * self.reclaim

    def dollars(self, dollars_per_hour: float, reclaims: int = 0) -> float:
        """Return the cost of the whole run."""
        return self.seconds(reclaims) / HOUR * dollars_per_hour


def estimate_cost(case: Case, decoding: Decoding, assumed: Assumptions) -> Estimate:
    """Return the estimate of a run.

    Raises:
        InputError: the shards do not fit on the machine's disks.
    """
    *sizes, last = plan_phases(case.recipe)
    training = [bound_phase(phase, case, decoding, assumed) for phase in sizes]
    evaluation = bound_phase(last, case, decoding, assumed)

    # Staging, and what training waits for it.
    shards = IMAGES * case.stored.bytes_per_image
    if shards > case.machine.disk_gb * 1e9:
        raise InputError(
            f"{case.machine.name} has {case.machine.disk_gb:g} GB of disk, the shards need {shards / 1e9:.0f}: choose "
            "smaller --stored files or another machine"
        )
    staging = shards / staging_rate(case.machine, assumed)
    epoch = sum_seconds(training) / case.recipe.epochs
    waiting = staging if assumed.start == STAGED else max(0.0, staging - epoch)
    start = (assumed.boot_minutes + assumed.environment_minutes) * MINUTE + waiting
    lost = case.recipe.run.save_every / 2 if assumed.lost_epochs is None else assumed.lost_epochs
    needs = [each.figures for each in training]
    return Estimate(
        training,
        evaluation,
        staging,
        start,
        reclaim=start + lost * epoch,
        need_bytes=max(min(each.model, each.decode) * each.mean_bytes for each in needs),
        need_vcpus=max(
            each.figures.model / decoding.per_vcpu(case.stored, each.phase.measured_size) for each in training
        ),
    )


def staging_rate(machine: Machine, assumed: Assumptions) -> float:
    """Return bytes/s from S3 to the disks: of the slower of network and disks."""
    gigabits = machine.network_burst_gbit if assumed.uses_burst else machine.network_gbit
    return min(min(gigabits, S3_GBIT) * GIGABIT, machine.disk_write)


def bound_phase(phase: Phase, case: Case, decoding: Decoding, assumed: Assumptions) -> PhaseResult:
    """Return the figures of one phase: the rate of each part of the pipeline, and of training, at this size.

    Training reaches the lowest bound, times the efficiency if the rate of the step does not contain a loader. Where a
    record has measured the training of this very machine at this size, its rate is taken.
    """
    machine, stored, speed, size = case.machine, case.stored, case.speed, phase.measured_size
    model = machine.gpus * rate_at(speed.by_size, size) / case.network_cost
    if phase.evaluates:
        model *= EVALUATIONS_PER_STEP
    decode = decoding.rate(machine, stored, size)
    fits_memory = IMAGES * stored.bytes_per_image <= MEMORY_SHARE * machine.memory_gib * GIB
    figures = Figures(
        read_warm=float("inf"),
        decode=decode,
        model=model,
        loader=decode,
        train=0.0,
        read_cold=machine.disk_read / stored.bytes_per_image,
        fits_memory=fits_memory,
        cpu_read=0.0,
        cpu_decode=0.0,
        cpu_model=0.0,
        num_cores=machine.vcpus,
        shares_cores=False,
        decodes_on_gpu=False,
        mean_bytes=stored.bytes_per_image,
    )
    efficiency = 1.0 if speed.has_loader else assumed.efficiency
    train = measured_training(phase, case) or efficiency * expected_rate(figures)
    return PhaseResult(phase, replace(figures, train=train))


def measured_training(phase: Phase, case: Case) -> float | None:
    """Return the images/s of training that a record has of this very machine, network, size and kind of files."""
    shape, machine = case.speed.shape, case.machine
    if shape is None or phase.evaluates or case.network_cost != 1:
        return None
    is_machine = (shape.gpus, shape.cores) == (machine.gpus, machine.vcpus)
    is_stored = math.isclose(shape.mean_bytes, case.stored.bytes_per_image, rel_tol=SAME_BYTES)
    return shape.train.get(phase.measured_size) if is_machine and is_stored else None
