"""Find where the time of a training step goes, by class of kernel: `throughput.py --profile`.

The step is first measured without the profiler, in windows as every stage; then some steps run under torch.profiler.
On a GPU the profiler records kernels and copies of all streams, also those of the loader, and nothing of the CPU, which
it would slow down. On a CPU it records the operations of the training thread, and the collectives of its process.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from modelling.intervals import Account, Interval, account_for, clip_intervals, flatten_nested
from modelling.step_profile import LONGEST_NAME, OPTIMIZER, OTHER, TOP_KERNELS, class_of
from record import summarize
from stages import FIRST_STEPS, TRAIN, Report, Setting, describe_setup, describe_stage, open_stages, run_rounds
from timing import Stage, read_clock
from torch.profiler import ProfilerActivity, profile

from loaders import Loader
from prep.errors import InputError
from train.dist import barrier

LEAST_STEPS, MOST_STEPS = 5, 50  # profiled; between them as many as a window has
NANOSECONDS_PER_MILLISECOND = 1e6


@dataclass(frozen=True)
class Profiled:
    """What ran in a window of steps. Times are nanoseconds since 1970."""

    intervals: list[Interval]  # of kernels, or disjoint pieces of operations, and collectives
    start: int
    end: int
    num_steps: int


# The measurement. Every process of the world must call it.


def profile_training(setting: Setting, loader: Loader, report: Report) -> dict[str, Any]:
    """Measure the step of a mode, `train` or `model`, without and with the profiler; return the record.

    Raises:
        InputError: the profiler records nothing of the GPU.
    """
    setting = replace(setting, mode=TRAIN if setting.mode == "all" else setting.mode)
    with open_stages(setting.mode, loader, setting) as (stage,):
        # The profiled steps take about as long as one window, or longer if a window has fewer than LEAST_STEPS.
        num_steps = min(MOST_STEPS, max(LEAST_STEPS, stage.num_steps))
        share = setting.repetitions / (setting.repetitions + num_steps / stage.num_steps)
        windows = run_rounds([stage], setting.repetitions, lambda what, done: report(what, done * share))
        report(f"profiling {num_steps} steps", share)
        profiled = profile_window(stage, num_steps)
        report("profiled", 1.0)
        described = describe_stage(stage.name, windows[stage.name], loader.world)
    milliseconds = [1000 * setting.batch_size / rate for rate in described["images_per_second"]["repetitions"]]
    return {
        "what": "profile of a step",
        "mode": setting.mode,
        "unprofiled": described | {"milliseconds_a_step": summarize(milliseconds)},
        "profile": describe_steps(profiled, on_gpu=loader.world.device.type == "cuda"),
        "size": setting.size,
        "microbatch": setting.microbatch,
        "torch_threads": torch.get_num_threads(),
        **describe_setup(setting, loader),
    }


def profile_window(stage: Stage, num_steps: int) -> Profiled:
    """Run steps of a stage under the profiler; return what ran while they did, in this process.

    Raises:
        InputError: the driver forbids profiling.
    """
    on_gpu = stage.world.device.type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler's library writes log lines to stderr
    try:
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
            # Starting the profiler takes seconds, in which the loader fills its queues: `rest` empties them. The first
            # steps under the profiler are slow.
            barrier(stage.world)
            stage.rest()
            for _ in range(FIRST_STEPS):
                stage.take()
            read_clock(stage.world)  # waits for the device; the events' clock is time.time_ns
            start = time.time_ns()
            for _ in range(num_steps):
                stage.take()
            read_clock(stage.world)
            end = time.time_ns()
    except RuntimeError as error:
        if "cupti" in f"{error}".lower():
            raise _no_kernel_error() from error
        raise

    # torch's own list of events would first build a tree of Python objects, which takes as long as the steps.
    results = profiler.profiler.kineto_results if profiler.profiler else None
    events = results.events() if results else ()
    intervals = list_kernels(events) if on_gpu else list_operations(events)
    inside = clip_intervals(intervals, start, end)
    if not inside and on_gpu:
        raise _no_kernel_error()
    return Profiled(inside, start, end, num_steps)


def _no_kernel_error() -> InputError:
    return InputError(
        "the profiler recorded no kernel of the GPU: if the driver lets only administrators profile, set "
        "NVreg_RestrictProfilingToAdminUsers=0 for the kernel module nvidia, or run the command as root"
    )


# The profiler's events.


def list_kernels(events: Iterable[Any]) -> list[Interval]:
    """Return the kernels, copies and memsets of a GPU; annotations, which span several kernels, are left out."""
    return [
        Interval(each.start_ns(), each.end_ns(), each.name(), class_of(each.name()))
        for each in events
        if each.device_type() == torch.autograd.DeviceType.CUDA and not each.is_user_annotation()
    ]


def list_operations(events: Iterable[Any]) -> list[Interval]:
    """Return the operations of a CPU, each without those that it calls, and its collectives.

    What an optimizer calls counts as the optimizer. Other annotations, such as DDP's of a forward pass, are left out;
    the time in them that no operation takes is idle. A collective of gloo runs in another thread, at the same time.
    """
    threads, collectives = defaultdict(list), []
    for each in events:
        interval = Interval(each.start_ns(), each.end_ns(), each.name(), class_of(each.name()))
        if each.is_async():
            collectives.append(interval)
        elif not (each.is_user_annotation() and interval.category == OTHER):
            threads[each.start_thread_id()].append(interval)
    pieces = (piece for thread in threads.values() for piece in flatten_nested(thread, inherited=OPTIMIZER))
    return [*pieces, *collectives]


# The figures of the record.


def describe_steps(profiled: Profiled, on_gpu: bool) -> dict[str, Any]:
    """Return the milliseconds per step of each class, idle time, overlap, and the kernels that take longest.

    Shares are fractions of the wall time of the profiled steps.
    """
    account = account_for(profiled.intervals, profiled.start, profiled.end)
    num_calls = sum_values(profiled.intervals, lambda each: each.category, lambda each: each.calls)

    def describe_time(nanoseconds: int) -> dict[str, float]:
        share = nanoseconds / account.wall
        return {"milliseconds_a_step": _per_step(nanoseconds, profiled), "share": round(share, 5)}

    return {
        "num_steps": profiled.num_steps,
        "counted": "kernels" if on_gpu else "operations",
        "wall": describe_time(account.wall),
        "classes": {
            kind: describe_time(account.classes[kind])
            | {"calls_a_step": round(num_calls[kind] / profiled.num_steps, 1)}
            for kind in sort_classes(account)
        },
        "idle": describe_time(account.idle),
        "overlap": describe_time(account.overlap),
        "longest": list_longest(profiled),
    }


def sort_classes(account: Account) -> list[str]:
    """Return the classes of an account, the longest first."""
    return sorted(account.classes, key=lambda kind: -account.classes[kind])


def list_longest(profiled: Profiled) -> list[dict[str, Any]]:
    """Return the kernels or operations whose times add up to most, by name and class."""
    key = _name_and_class
    nanoseconds = sum_values(profiled.intervals, key, lambda each: each.end - each.start)
    num_calls = sum_values(profiled.intervals, key, lambda each: each.calls)
    return [
        {
            "name": name[:LONGEST_NAME],
            "class": kind,
            "milliseconds_a_step": _per_step(nanoseconds[name, kind], profiled),
            "calls_a_step": round(num_calls[name, kind] / profiled.num_steps, 1),
        }
        for name, kind in sorted(nanoseconds, key=lambda each: (-nanoseconds[each], each))[:TOP_KERNELS]
    ]


def sum_values(
    intervals: Iterable[Interval], key: Callable[[Interval], Any], value: Callable[[Interval], int]
) -> dict[Any, int]:
    """Return the sum of a value over the intervals of each key."""
    ordered = sorted(intervals, key=key)
    return {found: sum(map(value, group)) for found, group in groupby(ordered, key)}


def _name_and_class(interval: Interval) -> tuple[str, str]:
    return interval.name, interval.category


def _per_step(nanoseconds: int, profiled: Profiled) -> float:
    """Return milliseconds per step, to the nanosecond."""
    return round(nanoseconds / profiled.num_steps / NANOSECONDS_PER_MILLISECOND, 6)
