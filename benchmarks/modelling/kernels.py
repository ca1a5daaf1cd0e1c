"""Classify GPU kernels by name: which part of a training step they belong to."""

import re

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


def classify_kernel(name: str) -> str:
    """Return the kind of the kernel with this name; "other" if no pattern is found."""
    return next((kind for kind, pattern in KINDS if pattern.search(name)), "other")
