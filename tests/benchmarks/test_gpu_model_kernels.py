"""The check of the fused kernels, in Triton's interpreter too, and the kinds of kernels in a profile."""

import importlib
import os
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from helpers.commands import CHECKOUT
from torch import nn

BENCHMARKS = CHECKOUT / "benchmarks"


def part(name: str) -> Any:
    return importlib.import_module(f"modelling.{name}")


class Separate(nn.Module):
    """The separate layers that the fused one replaces, with one flaw if one is wanted."""

    def __init__(self, layer: nn.BatchNorm2d, relu: bool, flaw: str) -> None:
        super().__init__()
        self.layer, self.relu, self.flaw = layer, relu, flaw
        if flaw == "momentum":
            layer.momentum = 0.2
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(layer, name))

    def forward(self, images: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        output = self.layer(images.float())
        if residual is not None and self.flaw != "addition":
            output = output + residual.float()
        if self.relu:
            output = output + (output.relu() - output).detach() if self.flaw == "mask" else output.relu()
        return output.to(images.dtype)


@pytest.mark.parametrize(
    ("flaw", "found"),
    [
        ("", ""),
        ("momentum", "running mean"),
        ("addition", "output"),
        ("mask", "input gradient"),
    ],
)
def test_the_check_finds_what_is_wrong(flaw: str, found: str) -> None:
    check, cases = part("kernel_errors"), part("cases")
    build = partial(Separate, flaw=flaw)
    for amp in ("none", "bf16", "fp16"):
        excess = cases.describe_excess(check.measure_errors(amp, torch.device("cpu"), build))
        assert (found in excess) if found else excess == "", (amp, excess)


def test_the_check_draws_the_inputs_of_the_records() -> None:
    """They are rounded before they are scaled: the errors of another draw would not be comparable."""
    check, seen = part("kernel_errors"), []

    def build(layer: nn.BatchNorm2d, relu: bool) -> nn.Module:
        module = Separate(layer, relu, "")
        module.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
        return module

    trial = (2, 16, 9, 8), True, True
    torch.manual_seed(3)
    check.compare_with_float64(trial, torch.bfloat16, torch.device("cpu"), build)
    torch.manual_seed(3)
    torch.randn(2, 16)  # weight and bias
    images, residual = (torch.randn(2, 16, 9, 8).to(torch.bfloat16) for _ in range(2))
    assert torch.equal(seen[0], images.mul(2).add(1)) and torch.equal(seen[1], residual)


def test_the_kernels_pass_their_check() -> None:
    pytest.importorskip("triton", reason="Triton's interpreter runs the kernels on a CPU")
    program = """
import torch
from modelling.cases import describe_excess
from modelling.kernel_errors import measure_errors
assert describe_excess(measure_errors("bf16", torch.device("cpu"))) == ""
print("right")
"""
    path = os.pathsep.join([str(BENCHMARKS), str(CHECKOUT)])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "right\n", done.stderr


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "convolution: wgrad"),
        ("sm80_xmma_dgrad_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x32", "convolution: dgrad"),
        ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized_bf16_256x64>", "convolution and"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNN", "convolution and matmul"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NHWC<__nv_bfloat16, float, 512, true, 1, true>", "BatchNorm"),
        ("void at::native::batch_norm_backward_reduce_channels_last_kernel<4, c10::BFloat16>", "BatchNorm"),
        ("sum_backward", "BatchNorm, fused"),
        ("triton_red_fused__native_batch_norm_legit_functional_3", "compiled: reductions"),
        ("triton_poi_fused_add_native_batch_norm_backward_relu_17", "compiled: pointwise"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedSgdMathFunctor>", "optimizer and EMA"),
        ("void cudnn::ops::nhwcToNchwKernel<__nv_bfloat16, float>", "layout and copies"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<float>>", "elementwise"),
        ("void at::native::(anonymous namespace)::max_pool_backward_nhwc<c10::BFloat16>", "pooling"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>", "reductions"),
        ("something else", "other"),
    ],
)
def test_kernels_are_sorted_by_name(kernel: str, kind: str) -> None:
    assert part("step_profile").classify_kernel(kernel).startswith(kind)


def test_a_profile_sums_kernels_by_kind() -> None:
    profile = part("step_profile")
    weight = torch.randn(8, 3, 3, 3)
    kernels = profile.profile_step(lambda: torch.conv2d(torch.randn(2, 3, 16, 16), weight).relu(), on_gpu=False)
    assert [each.seconds for each in kernels] == sorted((each.seconds for each in kernels), reverse=True)
    assert {each.calls for each in kernels if each.name == "aten::relu"} == {1}
    kinds = profile.sum_by_kind(kernels)
    assert kinds["convolution and matmul"] > 0 and kinds["elementwise"] > 0
    assert sum(kinds.values()) == pytest.approx(sum(each.seconds for each in kernels))
