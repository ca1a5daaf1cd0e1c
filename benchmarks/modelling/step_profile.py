"""The time of a training step by kind of kernel: convolution, BatchNorm, optimizer, and so on."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

PROFILED_STEPS = 3
TOP_KERNELS, LONGEST_NAME = 12, 90  # in a record; of a name in characters

# The first pattern that is found in a name decides. Names of cuDNN 9, cuBLAS, PyTorch's own kernels, inductor, ours.
KINDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("compiled: reductions", r"triton_red|triton_per"),
        ("compiled: pointwise", r"triton_poi|triton_for"),
        ("layout and copies", r"nchwtonhwc|nhwctonchw|memcpy|memset|copy_kernel|copy_device|converttensor|aten::copy_"),
        ("BatchNorm, fused", r"sum_forward|finish_forward|apply_forward|sum_backward|finish_backward|apply_backward"),
        ("BatchNorm", r"bn_fw|bn_bw|batch_?norm|welford"),
        ("convolution: wgrad", r"wgrad"),
        ("convolution: dgrad", r"dgrad"),
        ("optimizer and EMA", r"multi_tensor|fused_sgd|fusedsgd|foreach|lerp"),
        ("pooling", r"pool"),
        ("loss", r"softmax|nll_loss|cross_entropy"),
        ("convolution and matmul", r"conv|fprop|gemm|xmma|cutlass|nvjet|triton_tem|cudnn|splitk|addmm|aten::mm"),
        ("reductions", r"reduce|aten::sum|aten::mean"),
        ("elementwise", r"elementwise|aten::"),
    )
)


@dataclass(frozen=True, order=True)
class Kernel:
    """A kernel's part in one step; on a CPU that of one of PyTorch's operations."""

    seconds: float
    name: str
    calls: float


def describe_profile(step: Callable[[], None], on_gpu: bool) -> dict[str, Any]:
    """Return the milliseconds per step by kind of kernel, and the kernels that take longest.

    Raises:
        RuntimeError: the driver forbids profiling.
    """
    kernels = profile_step(step, on_gpu)
    return {
        "milliseconds_a_step": {kind: round(1000 * each, 3) for kind, each in sum_by_kind(kernels).items()},
        "kernels_a_step": round(sum(each.calls for each in kernels)),
        "longest": [
            {
                "kernel": each.name[:LONGEST_NAME],
                "milliseconds_a_step": round(1000 * each.seconds, 3),
                "calls_a_step": round(each.calls, 1),
            }
            for each in kernels[:TOP_KERNELS]
        ],
    }


def profile_step(step: Callable[[], None], on_gpu: bool) -> list[Kernel]:
    """Run a step a few times; return its kernels, the longest first.

    Raises:
        RuntimeError: the driver forbids profiling.
    """
    import torch  # noqa: PLC0415  (what classifies kernels by name starts without it)
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415

    synchronize = torch.cuda.synchronize if on_gpu else torch.cpu.synchronize
    synchronize()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU], acc_events=True) as profiler:
        for _ in range(PROFILED_STEPS):
            step()
        synchronize()
    kernels = []
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if microseconds > 0:
            seconds = microseconds / 1e6 / PROFILED_STEPS
            kernels.append(Kernel(seconds, event.key, event.count / PROFILED_STEPS))
    return sorted(kernels, reverse=True)


def sum_by_kind(kernels: Iterable[Kernel]) -> dict[str, float]:
    """Return the seconds of each kind of kernel, the longest first."""
    seconds: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        seconds[classify_kernel(kernel.name)] += kernel.seconds
    return dict(sorted(seconds.items(), key=lambda pair: -pair[1]))


def classify_kernel(name: str) -> str:
    """Return the kind of the kernel with this name; "other" if no pattern is found."""
    return next((kind for kind, pattern in KINDS if pattern.search(name)), "other")
