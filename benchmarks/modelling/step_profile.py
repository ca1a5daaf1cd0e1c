"""The time of a training step by kind of kernel: convolution, BatchNorm, optimizer, and so on.

There are about 15 kinds, for work on kernels (`gpu_model.py`), and 9 classes, for users (`throughput.py --profile`).
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

PROFILED_STEPS = 3
TOP_KERNELS, LONGEST_NAME = 12, 90  # in a record; of a name in characters

# The first pattern that is found in a name decides. Names of NCCL and gloo, DALI and nvJPEG, cuDNN 9, cuBLAS, inductor,
# ours, PyTorch's own kernels; on a CPU its operations (aten::...) and the nodes of its backward pass (ReluBackward0).
KINDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("communication", r"nccl|gloo|c10d"),
        ("decoding", r"\bdali|nvimgcodec|jpeg|huffman|\bidct|ycbcr"),
        ("compiled: reductions", r"triton_red|triton_per"),
        ("compiled: pointwise", r"triton_poi|triton_for"),
        ("layout and copies", r"nchwtonhwc|nhwctonchw|memcpy|memset|copy_kernel|copy_device|converttensor|aten::copy_"),
        ("layout and copies", r"catarray|aten::(_to_copy|to|clone|contiguous|cat|stack|_foreach_copy_)$|CopyBackward"),
        ("BatchNorm, fused", r"(sum|finish|apply)_(forward|backward)|FusedFunction|batch_norm_relu"),
        ("BatchNorm", r"bn_fw|bn_bw|batch_?norm|welford"),
        ("other normalisation", r"layer_?norm|group_?norm|rms_?norm|rowwisemoments|gammabeta"),
        ("convolution: wgrad", r"wgrad"),
        ("convolution: dgrad", r"dgrad"),
        ("optimizer and EMA", r"multi_tensor|fused_sgd|fusedsgd|fused_adam|foreach|aten::lerp_$|^Optimizer\."),
        ("pooling", r"pool"),
        ("loss", r"softmax|nll_?loss|cross_entropy"),
        ("convolution and matmul", r"conv|fprop|gemm|xmma|cutlass|nvjet|triton_tem|cudnn|splitk|addmm|aten::mm"),
        ("convolution and matmul", r"aten::(linear|matmul|bmm)|(^|: )(b?mm|matmul)Backward|attention|flash_|fmha"),
        ("reductions", r"reduce|aten::sum|aten::mean"),
        ("allocation and views", r"aten::(empty|new_|resize|as_strided|view|_?reshape|flatten|expand|slice|narrow)"),
        (
            "allocation and views",
            r"aten::(split|(un)?squeeze|t$|transpose|permute|detach|select|zeros|ones|full)|^detach",
        ),
        ("elementwise", r"elementwise|aten::|(^|: )(Relu|Add|Sub|Mul|Div|Neg|Threshold|Silu|Gelu|Sigmoid)Backward"),
    )
)

# The few classes in which the time of a step is reported, and the kinds of each. "other" is what is not named here.
CONVOLUTION, NORMALISATION, ELEMENTWISE, POOLING = "convolution", "normalisation", "elementwise", "pooling"
OPTIMIZER, COMMUNICATION, DECODING, COPIES, OTHER = "optimizer", "communication", "decoding", "copies", "other"
CLASSES: dict[str, str] = {
    "convolution: wgrad": CONVOLUTION,
    "convolution: dgrad": CONVOLUTION,
    "convolution and matmul": CONVOLUTION,
    "BatchNorm": NORMALISATION,
    "BatchNorm, fused": NORMALISATION,
    "other normalisation": NORMALISATION,
    "compiled: reductions": NORMALISATION,  # in a network of convolutions they are BatchNorm's sums
    "compiled: pointwise": ELEMENTWISE,
    "elementwise": ELEMENTWISE,
    "pooling": POOLING,
    "optimizer and EMA": OPTIMIZER,
    "communication": COMMUNICATION,
    "decoding": DECODING,
    "layout and copies": COPIES,
}


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


def class_of(name: str) -> str:
    """Return the class of the kernel with this name; "other" for the loss, sums, allocation and unknown names.

    On a CPU every operation of PyTorch (aten::...) that no other pattern names counts as elementwise.
    """
    return CLASSES.get(classify_kernel(name), OTHER)
