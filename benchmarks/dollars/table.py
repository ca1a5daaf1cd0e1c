"""From estimates to the rows of the record, and to what was assumed and computed from what, in words."""

from typing import Any

from dollars.decoding import Decoding
from dollars.estimate import HOUR, MINUTE, READ_THROUGH, Assumptions, Case, Estimate, measured_training, staging_rate
from dollars.machines import Machine
from dollars.speeds import EXPONENT, RECORD, describe_sizes, rate_at
from phases.total import group_by_bottleneck, sum_seconds

REFERENCE = 224  # pixels


def describe_row(case: Case, estimate: Estimate, assumed: Assumptions) -> dict[str, Any]:
    """Return one row of the record: a recipe on a machine from one form of stored images."""
    machine, rows = case.machine, estimate.training
    total = sum_seconds(rows)
    return {
        "recipe": case.recipe.name,
        "machine": machine.name,
        "stored": case.stored.name,
        "rate": describe_rate(case, estimate),
        "training_hours": total / HOUR,
        "evaluation_hours": estimate.evaluation.seconds / HOUR,
        "start_hours": estimate.start / HOUR,
        "reclaim_hours": estimate.reclaim / HOUR,
        "on_demand": describe_offer(estimate, machine.on_demand, 0),
        "spot": describe_offer(estimate, machine.spot, assumed.reclaims) | {"is_typical": machine.spot_is_typical},
        "staging_minutes": estimate.staging / MINUTE,
        "staging_megabytes_per_second": staging_rate(machine, assumed) / 1e6,
        "needs": {"storage_megabytes_per_second": estimate.need_bytes / 1e6, "vcpus": estimate.need_vcpus},
        "has": {"storage_megabytes_per_second": machine.disk_read / 1e6, "vcpus": machine.vcpus},
        "shards_fit_memory": rows[0].figures.fits_memory,
        "binds": {
            part: {"share": sum_seconds(group) / total, "sizes": [each.phase.size for each in group]}
            for part, group in group_by_bottleneck(rows).items()
        },
    }


def describe_offer(estimate: Estimate, dollars_per_hour: float, reclaims: int) -> dict[str, Any]:
    """Return the price, hours and dollars of a run, on demand or on the spot market."""
    return {
        "dollars_per_hour": dollars_per_hour,
        "reclaims": reclaims,
        "hours": estimate.seconds(reclaims) / HOUR,
        "dollars": estimate.dollars(dollars_per_hour, reclaims),
    }


def describe_rate(case: Case, estimate: Estimate) -> dict[str, Any]:
    """Return the rate of one GPU's training step, whether it is a record, and what was derived from it."""
    speed, sizes = case.speed, [each.phase.size for each in estimate.training]
    measured = [
        size for each, size in zip(estimate.training, sizes, strict=True) if measured_training(each.phase, case)
    ]
    derived = [describe_sizes(speed.by_size, sizes)]
    derived += [f"× {case.machine.gpus} GPUs, communication not counted"] * (
        speed.kind == RECORD and case.machine.gpus > 1 and not measured
    )
    derived += [f"{case.recipe.model.name}: {case.network_cost:.2f} times the time, as on an H200"] * (
        case.network_cost != 1
    )
    derived += [f"training measured on this machine at {', '.join(map(str, measured))} px"] * bool(measured)
    return {
        "kind": speed.kind,
        "gpu": speed.gpu,
        "origin": speed.origin,
        "images_per_second_and_gpu": {str(size): rate_at(speed.by_size, size) / case.network_cost for size in sizes},
        "derived": "; ".join(filter(None, derived)),
    }


def list_assumptions(assumed: Assumptions, decoding: Decoding) -> list[str]:
    """Return what was assumed and how the rest was computed, in sentences."""
    lost = "half of the recipe's interval between saves" if assumed.lost_epochs is None else f"{assumed.lost_epochs:g}"
    network = "burst" if assumed.uses_burst else "baseline"
    start = (
        "training starts while they arrive and waits for what is missing after one epoch"
        if assumed.start == READ_THROUGH
        else "before training"
    )
    return [
        "Computed, not measured.",
        f"Assumed, not measured: {assumed.boot_minutes:g} min to boot, {assumed.environment_minutes:g} min for the "
        f"environment; each reclaim costs another start, and training since the last save ({lost}, in epochs). Time "
        "without a machine costs nothing and is not counted.",
        f"Shards come from S3 at the network's {network} rate or as fast as the disks write, {start}. Disks: AWS's "
        "random operations times 4,096 bytes, a lower bound.",
        f"A vCPU decodes {decoding.vcpu:,.0f} images/s at {REFERENCE} px from photographs as they are "
        "(h200/rates.json, 16 vCPUs); other sizes and files in the ratio of the CPU times of sweeps.json and "
        f"sweeps-88.json. An H100 or H200 decodes {decoding.engines:,.0f} images/s (h200/decode.json, an H200).",
        f"Other sizes than the known ones: linear in the pixels between them, beyond them (size ratio)^-{EXPONENT} "
        "(FFCV's rates at 160 and 192 px on an A100).",
        f"Rates of MXNet count × {assumed.pytorch_share:g} (PyTorch / MXNet, both published for an A100 of 80 GB). "
        f"Where only the step was measured, training reaches {assumed.efficiency:.2f} of the lowest bound "
        "(h200/rates.json).",
        "Evaluating an image costs two forward passes, 2/3 of a training step. BlurPool is not counted, except in "
        "FFCV's rates. Not in the dollars: S3, EBS, traffic, and preparing the shards once.",
    ]


def describe_machine(machine: Machine) -> str:
    """Return a machine in words, such as `4 × A10G, 48 vCPUs`."""
    return f"{machine.gpus} × {machine.gpu}, {machine.vcpus} vCPUs"
