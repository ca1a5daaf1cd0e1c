"""Compute hours and dollars of a recipe on EC2, on demand and spot.

For each recipe and machine: the time to the recipe's published accuracy, with staging, start and reclaims; the bytes/s
that storage must give, the vCPUs that decoding needs, and what binds. It measures nothing: rates are from records
(--record, and the committed ones) or from publications (cloud/machines.json), and each row says which. throughput.py
measures one machine. docs/benchmarks.md explains the figures.

A run is: boot, environment, staging, training with its evaluations. Each reclaim of a spot machine adds another start
and the training since the last save.
"""

import hashlib
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ec2
from ec2 import BLOCK, STORED, Decoding, Machine, Speed, Stored
from options import check_known, check_least, check_outputs, parse_options
from phases import IMAGENET_VALIDATION, Phase, PhaseResult, group_by_bottleneck, plan_phases, sum_seconds
from record import describe_command, describe_date, write_json
from reports.recipes import GPU_MODEL, OFFERS, PUBLISHED, SMALL_SIZES, gpu_rates, tables_of_cost
from reports.records import CHECKOUT, RECORDS, read_record, read_records
from tables import print_tables
from verdict import IMAGENET_IMAGES, Figures, expected_rate

from prep.errors import InputError, run
from train.config import Recipe
from train.recipe import RECIPES

SCRIPT = "benchmarks/cost.py"
IMAGES = IMAGENET_IMAGES + IMAGENET_VALIDATION  # of both splits
SAME_BYTES = 0.1  # files whose mean sizes differ by less are of the same kind
MEMORY_SHARE = 0.8  # of a machine's memory can hold the shards
S3_GBIT = 100  # per second, the most that S3 gives to one machine
# Evaluating an image costs two forward passes, of the model and of its EMA; a training step one, and a backward pass
# that costs twice as much.
EVALUATIONS_PER_STEP = 3 / 2
# PyTorch's share of the rate of MLPerf's MXNet code, which fuses BatchNorm with other operations. Both are published
# for an A100 of 80 GB: 2,470 images/s (NVIDIA/DeepLearningExamples) and 3,400 (training_results_v2.1, HPE XL675d).
PYTORCH_SHARE = round(2470 / 3400, 2)
HOUR, MINUTE, GIB, GIGABIT = 3600, 60, 1 << 30, 1e9 / 8


@dataclass(frozen=True)
class Assumptions:
    """What is assumed, not measured."""

    reclaims: int = 1  # of a spot run
    boot_minutes: float = 2.0  # until the machine is up, at each start
    environment_minutes: float = 5.0  # until the environment is there, at each start
    # Whether training starts after all shards have arrived, or while they arrive.
    start: Literal["staged", "read-through"] = "staged"
    burst: bool = False  # count on the burst rate of the network
    lost_epochs: float | None = None  # lost per reclaim; None: half of the interval between saves
    pytorch_share: float = PYTORCH_SHARE  # PyTorch's share of a rate published for MXNet


@dataclass(frozen=True)
class Options:
    """What is computed, and from which prices and rates."""

    recipe: tuple[str, ...] = ("quick_24",)  # recipes
    machine: tuple[str, ...] = ()  # machines or families, such as g6e; unset: all
    stored: tuple[str, ...] = ("original",)  # how the images are stored: original, 500, 256
    record: tuple[Path, ...] = ()  # records with the rates of your GPUs
    machines: Path = ec2.MACHINES  # file of machines with their prices
    price: tuple[str, ...] = ()  # NAME=DOLLARS per hour on demand, such as g6e.xlarge=1.86
    spot_price: tuple[str, ...] = ()  # NAME=DOLLARS per hour on the spot market
    on_demand: bool = False  # show and sort by the cost on demand alone
    spot: bool = False  # show and sort by the cost on the spot market alone
    assumed: Assumptions = field(default_factory=Assumptions)
    out: Path | None = None  # write the record to this file
    picture: Path | None = None  # draw the first recipe as PNG; needs --out

    def check(self) -> None:
        """Check the values; raise InputError for the first one that cannot be used."""
        assumed = self.assumed
        check_least(0, reclaims=assumed.reclaims, boot_minutes=assumed.boot_minutes)
        check_least(0, environment_minutes=assumed.environment_minutes, lost_epochs=assumed.lost_epochs or 0)
        if not 0 < assumed.pytorch_share <= 1:
            raise InputError(f"--pytorch-share must be more than 0 and at most 1, got {assumed.pytorch_share}")
        if self.on_demand and self.spot:
            raise InputError("--on-demand and --spot exclude each other: give one, or none to see both")
        if self.picture and not self.out:
            raise InputError("--picture needs --out FILE: the picture names the record that it shows")
        check_outputs(self.out, self.picture)
        check_known("--stored", self.stored, STORED)
        for name in self.recipe:
            if name not in PUBLISHED:
                has_none = ", which has no published accuracy on ImageNet" if name in RECIPES else ""
                raise InputError(f"unknown recipe {name}{has_none}: choose from {', '.join(PUBLISHED)}")


# The estimate: pure functions.


@dataclass(frozen=True)
class Case:
    """A recipe on a machine, from one form of stored images."""

    recipe: Recipe
    machine: Machine
    stored: Stored
    speed: Speed
    network_cost: float  # time of the recipe's network relative to that of `speed`

    def measured_training(self, phase: Phase) -> float | None:
        """Return images/s of training if a record has this very machine, network, size and kind of files."""
        shape, machine = self.speed.shape, self.machine
        if shape is None or phase.evaluates or self.network_cost != 1:
            return None
        is_machine = (shape.gpus, shape.cores) == (machine.gpus, machine.vcpus)
        is_stored = math.isclose(shape.mean_bytes, self.stored.bytes_per_image, rel_tol=SAME_BYTES)
        return shape.train.get(phase.measured_size) if is_machine and is_stored else None


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

    def seconds(self, reclaims: int) -> float:
        """Return the seconds of the whole run, which all are paid."""
        return self.start + sum_seconds([*self.training, self.evaluation]) + reclaims * self.reclaim

    def dollars(self, dollars_per_hour: float, reclaims: int = 0) -> float:
        """Return the cost of the whole run."""
        return self.seconds(reclaims) / HOUR * dollars_per_hour


def estimate_cost(case: Case, decoding: Decoding, assumed: Assumptions) -> Estimate:
    """Return the estimate of a run.

    Raises:
        InputError: the shards do not fit on the machine's disks.
    """
    machine, stored = case.machine, case.stored
    *training, evaluation = [bound_phase(phase, case, decoding) for phase in plan_phases(case.recipe)]

    # Staging, and what training waits for it.
    shards = IMAGES * stored.bytes_per_image
    if shards > machine.disk_gb * 1e9:
        raise InputError(
            f"{machine.name} has {machine.disk_gb:g} GB of disk, the shards need {shards / 1e9:.0f}: choose "
            "smaller --stored files or another machine"
        )
    staging = shards / staging_rate(machine, assumed)
    epoch = sum_seconds(training) / case.recipe.epochs
    waiting = staging if assumed.start == "staged" else max(0.0, staging - epoch)
    start = (assumed.boot_minutes + assumed.environment_minutes) * MINUTE + waiting
    lost = case.recipe.run.save_every / 2 if assumed.lost_epochs is None else assumed.lost_epochs
    needs = [(each.figures.model, each.figures.decode, each.phase.measured_size) for each in training]
    return Estimate(
        training,
        evaluation,
        staging,
        start,
        reclaim=start + lost * epoch,
        need_bytes=max(min(model, decode) * stored.bytes_per_image for model, decode, _ in needs),
        need_vcpus=max(model / decoding.per_vcpu(stored, size) for model, _, size in needs),
    )


def staging_rate(machine: Machine, assumed: Assumptions) -> float:
    """Return bytes/s from S3 to the disks: of the slower of network and disks."""
    gigabits = machine.network_burst_gbit if assumed.burst else machine.network_gbit
    return min(min(gigabits, S3_GBIT) * GIGABIT, machine.disk_write_iops * BLOCK)


def bound_phase(phase: Phase, case: Case, decoding: Decoding) -> PhaseResult:
    """Return the figures of one phase: the rate of each part of the pipeline, and of training, at this size.

    Training reaches the lowest bound, times the efficiency if the rate of the step does not contain a loader. Where a
    record has measured the training of this very machine at this size, its rate is taken.
    """
    machine, stored, size = case.machine, case.stored, phase.measured_size
    model = machine.gpus * case.speed.at(size) / case.network_cost
    decode = decoding.rate(machine, stored, size)
    figures = Figures(
        read_warm=math.inf,
        decode=decode,
        model=model * EVALUATIONS_PER_STEP if phase.evaluates else model,
        loader=decode,
        train=0.0,
        read_cold=machine.disk_read_iops * BLOCK / stored.bytes_per_image,
        fits_memory=IMAGES * stored.bytes_per_image <= MEMORY_SHARE * machine.memory_gib * GIB,
        cpu_read=0.0,
        cpu_decode=0.0,
        cpu_model=0.0,
        num_cores=machine.vcpus,
        shares_cores=False,
        decodes_on_gpu=False,
        mean_bytes=stored.bytes_per_image,
    )
    efficiency = 1.0 if case.speed.has_loader else decoding.efficiency
    train = case.measured_training(phase) or efficiency * expected_rate(figures)
    return PhaseResult(phase, replace(figures, train=train))


# The record.


def compute_record(options: Options) -> dict[str, Any]:
    """Return the record: one row for each recipe, machine and stored form."""
    from train.versions import describe_commit  # noqa: PLC0415  (starts git)

    # The inputs.
    assumed = options.assumed
    catalogue = ec2.read_catalogue(options.machines, assumed.pytorch_share)
    machines = ec2.replace_prices(catalogue.machines, options.price, "--price")
    machines = ec2.replace_prices(machines, options.spot_price, "--spot-price")
    chosen = ec2.choose_machines(machines, options.machine)
    recipes = [RECIPES[name]() for name in dict.fromkeys(options.recipe)]
    records = read_records(RECORDS)
    given = [read_record(path, path.parent) for path in options.record]
    decoding = ec2.read_decoding(records)
    stored = [decoding.stored[name] for name in dict.fromkeys(options.stored)]

    # The rates of each GPU: a given record replaces the committed one, and that replaces a publication.
    gpus = sorted({machine.gpu for machine in machines.values()})
    speeds = catalogue.published | ec2.join_speeds([records[GPU_MODEL], records[SMALL_SIZES]], gpus)
    speeds |= ec2.join_speeds(given, gpus)
    _, deeper = gpu_rates(records[SMALL_SIZES].content, records[GPU_MODEL].content)
    times = {"resnet50": 1.0, "resnet50d": deeper}  # of a network's step, relative to ResNet-50's

    # One row for each recipe, machine and form.
    rows = []
    for recipe in recipes:
        for machine in chosen:
            if machine.gpu not in speeds:
                raise InputError(f"no rate is published for {machine.gpu}: give a record of one with --record")
            speed = speeds[machine.gpu]
            for form in stored:
                case = Case(recipe, machine, form, speed, times[recipe.model.name] / times[speed.network])
                rows.append(describe_row(case, estimate_cost(case, decoding, assumed), assumed))
    used = [options.machines, *(RECORDS / name for name in sorted({GPU_MODEL, SMALL_SIZES, *ec2.DECODING_FILES}))]
    return {
        "what": "cost of a recipe",
        "says": list_assumptions(assumed, decoding),
        "reclaims": assumed.reclaims,
        "prices": {"date": catalogue.sources["on_demand"]["date"], "sources": catalogue.sources},
        "recipes": {each.name: {"epochs": each.epochs, "published": PUBLISHED[each.name].top1} for each in recipes},
        "machines": {each.name: f"{each.gpus} × {each.gpu}, {each.vcpus} vCPUs" for each in chosen},
        "stored": {each.name: {"what": STORED[each.name], "bytes_per_image": each.bytes_per_image} for each in stored},
        "rows": rows,
        "computed_from": dict(map(describe_file, [*used, *options.record])),
        "command": describe_command(SCRIPT),
        "commit": describe_commit(),
        "date": describe_date(),
    }


def describe_row(case: Case, estimate: Estimate, assumed: Assumptions) -> dict[str, Any]:
    """Return one row of the record: a recipe on a machine from one form of stored images."""
    machine, training = case.machine, estimate.training
    total = sum_seconds(training)
    # The whole run on demand, without reclaims, and on the spot market.
    offers = {
        name: {
            "dollars_per_hour": price,
            "reclaims": reclaims,
            "hours": estimate.seconds(reclaims) / HOUR,
            "dollars": estimate.dollars(price, reclaims),
        }
        for name, price, reclaims in (("on_demand", machine.on_demand, 0), ("spot", machine.spot, assumed.reclaims))
    }
    offers["spot"]["is_typical"] = machine.spot_is_typical
    return {
        "recipe": case.recipe.name,
        "machine": machine.name,
        "stored": case.stored.name,
        "rate": describe_rate(case, [each.phase for each in training]),
        "training_hours": total / HOUR,
        "evaluation_hours": estimate.evaluation.seconds / HOUR,
        "start_hours": estimate.start / HOUR,
        "reclaim_hours": estimate.reclaim / HOUR,
        **offers,
        "staging_minutes": estimate.staging / MINUTE,
        "staging_megabytes_per_second": staging_rate(machine, assumed) / 1e6,
        "needs": {"storage_megabytes_per_second": estimate.need_bytes / 1e6, "vcpus": estimate.need_vcpus},
        "has": {"storage_megabytes_per_second": machine.disk_read_iops * BLOCK / 1e6, "vcpus": machine.vcpus},
        "shards_fit_memory": training[0].figures.fits_memory,
        "binds": {
            part: {"share": sum_seconds(group) / total, "sizes": [each.phase.size for each in group]}
            for part, group in group_by_bottleneck(training).items()
        },
    }


def describe_rate(case: Case, phases: list[Phase]) -> dict[str, Any]:
    """Return the rate of one GPU's training step, whether it is a record, and what was derived from it."""
    speed, gpus, sizes = case.speed, case.machine.gpus, [phase.size for phase in phases]
    measured = ", ".join(str(phase.size) for phase in phases if case.measured_training(phase))
    derived = [speed.describe_derived(sizes)]
    if speed.kind == ec2.RECORD and gpus > 1 and not measured:
        derived.append(f"× {gpus} GPUs, communication not counted")
    if case.network_cost != 1:
        derived.append(f"{case.recipe.model.name}: {case.network_cost:.2f} times the time, as on an H200")
    if measured:
        derived.append(f"training measured on this machine at {measured} px")
    return {
        "kind": speed.kind,
        "gpu": speed.gpu,
        "origin": speed.origin,
        "images_per_second_and_gpu": {str(size): speed.at(size) / case.network_cost for size in sizes},
        "derived": "; ".join(filter(None, derived)),
    }


def list_assumptions(assumed: Assumptions, decoding: Decoding) -> list[str]:
    """Return what was assumed and how the rest was computed, in sentences."""
    lost = "half of the recipe's interval between saves" if assumed.lost_epochs is None else f"{assumed.lost_epochs:g}"
    network = "burst" if assumed.burst else "baseline"
    start = "before training"
    if assumed.start == "read-through":
        start = "training starts while they arrive and waits for what is missing after one epoch"
    return [
        "Computed, not measured.",
        f"Assumed, not measured: {assumed.boot_minutes:g} min to boot, {assumed.environment_minutes:g} min for the "
        f"environment; each reclaim costs another start, and training since the last save ({lost}, in epochs). Time "
        "without a machine costs nothing and is not counted.",
        f"Shards come from S3 at the network's {network} rate or as fast as the disks write, {start}. Disks: AWS's "
        "random operations times 4,096 bytes, a lower bound.",
        f"A vCPU decodes {decoding.vcpu:,.0f} images/s at {ec2.REFERENCE} px from photographs as they are "
        "(h200/rates.json, 16 vCPUs); other sizes and files in the ratio of the CPU times of sweeps.json and "
        f"sweeps-88.json. An H100 or H200 decodes {decoding.engines:,.0f} images/s (h200/decode.json, an H200).",
        f"Other sizes than the known ones: linear in the pixels between them, beyond them (size ratio)^-{ec2.EXPONENT} "
        "(FFCV's rates at 160 and 192 px on an A100).",
        f"Rates of MXNet count × {assumed.pytorch_share:g} (PyTorch / MXNet, both published for an A100 of 80 GB). "
        f"Where only the step was measured, training reaches {decoding.efficiency:.2f} of the lowest bound "
        "(h200/rates.json).",
        "Evaluating an image costs two forward passes, 2/3 of a training step. BlurPool is not counted, except in "
        "FFCV's rates. Not in the dollars: S3, EBS, traffic, and preparing the shards once.",
    ]


def describe_file(path: Path) -> tuple[str, str]:
    """Return a file's path, relative to the checkout if it is in it, else its name; and its SHA-256."""
    whole = path.resolve()
    name = os.path.relpath(whole, CHECKOUT) if whole.is_relative_to(CHECKOUT) else whole.name
    return name, hashlib.sha256(whole.read_bytes()).hexdigest()


def main() -> None:
    """Compute the record, write it, print and draw it."""
    options = parse_options(Options, SCRIPT, __doc__)
    options.check()
    record = compute_record(options)
    if options.out:
        write_json(options.out, record)
    print_tables(tables_of_cost(record, [name for name in OFFERS if getattr(options, name)] or list(OFFERS)))
    if options.out and options.picture:
        from reports.plots import list_pictures, save_picture  # noqa: PLC0415  (matplotlib)

        written = read_record(options.out, options.out.parent)
        save_picture(list_pictures(written)[0], options.picture, written)


if __name__ == "__main__":
    run(main)
