"""How a case is measured, in the process that holds the device: rates, bandwidth and matmul, time by kind of kernel."""

import gc
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from modelling.cases import Case
from modelling.kernels import classify_kernel
from modelling.steps import Take, build_take
from pace import read_clock, repeat, warm_up
from record import GIB, summarize
from torch.profiler import ProfilerActivity, profile

from loaders import World

FIRST_STEPS = 3  # autotuning, compilation, recording of CUDA graphs
PROFILED_STEPS = 3
TOP_KERNELS, LONGEST_NAME = 12, 90
COPIED_BYTES, MATRIX_SIZE = 1 << 31, 8192
SMALL_COPIED_BYTES, SMALL_MATRIX_SIZE = 1 << 24, 256  # on a CPU


class WrongError(RuntimeError):
    """A result that must not be built on: what it computed is not what it should be."""

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class Timing:
    """How long each case is timed."""

    seconds: float  # of a repetition, about
    repetitions: int


def measure_case(case: Case, timing: Timing, device: torch.device) -> dict[str, Any]:
    """Return a case's result.

    Raises:
        WrongError: the fused kernels do not compute what PyTorch does.
    """
    measures: dict[str, Callable[[Case, Timing, World], dict[str, Any]]] = {
        "machine": measure_machine,
        "check": check_kernels,
        "rate": measure_rate,
    }
    release_memory(device)
    try:
        return measures[case.kind](case, timing, World(device=device))
    finally:
        if case.compile != "none":  # else this would import the compiler, which takes seconds
            torch.compiler.reset()


def measure_rate(case: Case, timing: Timing, world: World) -> dict[str, Any]:
    """Return images/s of a training step, the seconds until it was ready, peak memory and the profile, where wanted.

    Ready: the network is built, cuDNN has chosen its algorithms, kernels are compiled and graphs captured.
    """
    started = time.perf_counter()
    take = build_take(case, world.device)
    for _ in range(FIRST_STEPS):
        take()
    seconds_ready = read_clock(world) - started
    num_steps = warm_up(take, timing.seconds, world)
    seconds = repeat(take, num_steps, timing.repetitions, world)
    result = {
        "images_per_second": summarize([case.batch_size * num_steps / each for each in seconds]),
        "steps_a_repetition": num_steps,
        "seconds_ready": round(seconds_ready, 2),
        "memory_gib": torch.cuda.max_memory_allocated() / GIB if world.device.type == "cuda" else None,
    }
    if case.profiled:
        try:
            result["profile"] = profile_steps(take, world)
        except RuntimeError as error:  # a driver may forbid it: the rates are right all the same
            result["profile_failure"] = f"{error}"[:LONGEST_NAME]
    return result


def measure_machine(case: Case, timing: Timing, world: World) -> dict[str, Any]:
    """Return the device's bandwidth (bytes read and written by a copy) and its matmul rate in bf16."""
    on_gpu, device = world.device.type == "cuda", world.device
    size = COPIED_BYTES if on_gpu else SMALL_COPIED_BYTES
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bytes_per_second = [2 * size / each for each in time_operation(lambda: target.copy_(source), timing, world)]
    side = MATRIX_SIZE if on_gpu else SMALL_MATRIX_SIZE
    left = torch.randn(side, side, device=device).to(torch.bfloat16)
    right = torch.randn(side, side, device=device).to(torch.bfloat16)
    flops = [2 * side**3 / each for each in time_operation(lambda: left @ right, timing, world)]
    return {
        "copy_terabytes_per_second": summarize([each / 1e12 for each in bytes_per_second]),
        "matmul_teraflops": summarize([each / 1e12 for each in flops]),
        "copied_bytes": size,
        "matrix_size": side,
    }


def time_operation(operation: Callable[[], object], timing: Timing, world: World) -> list[float]:
    """Return the seconds that one operation takes in each repetition, which is a tenth as long as a network's."""

    def take() -> None:
        operation()

    num_steps = warm_up(take, timing.seconds / 10, world)
    return [each / num_steps for each in repeat(take, num_steps, timing.repetitions, world)]


def check_kernels(case: Case, timing: Timing, world: World) -> dict[str, Any]:
    """Return the errors of the fused kernels.

    Raises:
        WrongError: one is too large.
    """
    from modelling.check import describe_excess, measure_errors  # noqa: PLC0415  (Triton, which a CPU may lack)

    result = measure_errors(case.amp, world.device)
    if excess := describe_excess(result):
        raise WrongError(excess, result)
    return result


def profile_steps(take: Take, world: World) -> dict[str, Any]:
    """Return the milliseconds a step by kind of kernel, and the kernels that take longest.

    On a GPU the kernels' own time; on a CPU that of PyTorch's operations.
    """
    on_gpu = world.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    read_clock(world)
    with profile(activities=[activity], acc_events=True) as profiler:
        for _ in range(PROFILED_STEPS):
            take()
        read_clock(world)
    by_kind: dict[str, float] = defaultdict(float)
    kernels: list[tuple[float, str, float]] = []
    for event in profiler.key_averages():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if spent > 0:
            milliseconds = spent / 1000 / PROFILED_STEPS
            by_kind[classify_kernel(event.key)] += milliseconds
            kernels.append((milliseconds, event.key[:LONGEST_NAME], event.count / PROFILED_STEPS))
    longest = sorted(kernels, reverse=True)[:TOP_KERNELS]
    return {
        "milliseconds_a_step": {
            kind: round(each, 3) for kind, each in sorted(by_kind.items(), key=lambda pair: -pair[1])
        },
        "kernels_a_step": round(sum(count for _, _, count in kernels)),
        "longest": [
            {"kernel": name, "milliseconds_a_step": round(each, 3), "calls_a_step": round(count, 1)}
            for each, name, count in longest
        ],
    }


def release_memory(device: torch.device) -> None:
    """Give back what earlier cases held, so that each case begins as the first one did."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
