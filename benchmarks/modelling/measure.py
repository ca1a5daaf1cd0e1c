"""Measure a case, in the process that uses the device: rates, bandwidth and matmul, time by kind of kernel."""

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
from pace import read_clock, time_repetitions, warm_up
from record import GIB, summarize
from torch.profiler import ProfilerActivity, profile

from loaders import World

FIRST_STEPS = 3  # these include autotuning, compilation and the recording of CUDA graphs
PROFILED_STEPS = 3
TOP_KERNELS, LONGEST_NAME = 12, 90
COPIED_BYTES, MATRIX_SIZE = 1 << 31, 8192
SMALL_COPIED_BYTES, SMALL_MATRIX_SIZE = 1 << 24, 256  # on a CPU


class WrongError(RuntimeError):
    """A wrong result; cases that need this one must not run."""

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class Timing:
    """The length and number of a case's repetitions."""

    seconds: float  # approximate length of a repetition
    repetitions: int


def measure_case(case: Case, timing: Timing, device: torch.device) -> dict[str, Any]:
    """Return a case's result.

    Raises:
        WrongError: the fused kernels do not compute the same as PyTorch.
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
        if case.compile != "none":  # otherwise this line would import the compiler, which takes seconds
            torch.compiler.reset()


def measure_rate(case: Case, timing: Timing, world: World) -> dict[str, Any]:
    """Return images/s of a training step, the seconds until it was ready, peak memory and, if wanted, the profile.

    Ready means: the network is built, cuDNN has chosen its algorithms, kernels are compiled and graphs are captured.
    """
    # Build the step and get it ready.
    started = time.perf_counter()
    take = build_take(case, world.device)
    for _ in range(FIRST_STEPS):
        take()
    seconds_ready = read_clock(world) - started

    # Time it.
    num_steps = warm_up(take, timing.seconds, world)
    seconds = time_repetitions(take, num_steps, timing.repetitions, world)
    result = {
        "images_per_second": summarize([case.batch_size * num_steps / each for each in seconds]),
        "steps_a_repetition": num_steps,
        "seconds_ready": round(seconds_ready, 2),
        "memory_gib": torch.cuda.max_memory_allocated() / GIB if world.device.type == "cuda" else None,
    }

    # Profile it afterwards, because profiling slows it down.
    if case.profiled:
        try:
            result["profile"] = profile_steps(take, world)
        except RuntimeError as error:  # a driver may forbid profiling; the rates are valid without it
            result["profile_failure"] = f"{error}"[:LONGEST_NAME]
    return result


def measure_machine(case: Case, timing: Timing, world: World) -> dict[str, Any]:
    """Return the device's bandwidth (bytes read plus bytes written by a copy) and its matmul rate in bf16."""
    # Copy a large array.
    on_gpu, device = world.device.type == "cuda", world.device
    size = COPIED_BYTES if on_gpu else SMALL_COPIED_BYTES
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bytes_per_second = [2 * size / each for each in time_operation(lambda: target.copy_(source), timing, world)]

    # Multiply large matrices.
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
    """Return the seconds of one operation in each repetition; a repetition is a tenth as long as that of a network."""

    def take() -> None:
        operation()

    num_steps = warm_up(take, timing.seconds / 10, world)
    return [each / num_steps for each in time_repetitions(take, num_steps, timing.repetitions, world)]


def check_kernels(case: Case, timing: Timing, world: World) -> dict[str, Any]:
    """Return the errors of the fused kernels.

    Raises:
        WrongError: an error is above its limit.
    """
    from modelling.check import describe_excess, measure_errors  # noqa: PLC0415  (Triton, which a CPU may lack)

    result = measure_errors(case.amp, world.device)
    if excess := describe_excess(result):
        raise WrongError(excess, result)
    return result


def profile_steps(take: Take, world: World) -> dict[str, Any]:
    """Return the milliseconds per step by kind of kernel, and the kernels that take longest.

    On a GPU it is the time of the kernels; on a CPU that of PyTorch's operations.
    """
    # Record some steps.
    on_gpu = world.device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    read_clock(world)
    with profile(activities=[activity], acc_events=True) as profiler:
        for _ in range(PROFILED_STEPS):
            take()
        read_clock(world)

    # Add up the time per step by kind of kernel.
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
    """Release the memory of earlier cases and reset the peak, so that all cases begin in the same state."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
