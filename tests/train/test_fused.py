"""Fused BatchNorm: the decision, the networks that are refused, training; the kernels in a process of their own."""

import importlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.commands import CHECKOUT, run_command
from helpers.train_runs import Run
from torch import nn

from prep.errors import InputError
from train.compile import SpeedConfig
from train.config import ModelConfig
from train.fused import check_fusible, explain_plain, find_obstacle, fuse, fuse_if_wanted
from train.model import build_model

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
INTERPRETED = CHECKOUT / "tests" / "train" / "interpreted_fused.py"


def test_the_kernels_in_the_interpreter() -> None:
    """All tests of the other file."""
    pytest.importorskip("triton", reason="Triton's interpreter runs the kernels on a CPU")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"TRITON_INTERPRET": "1"}
    words = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", str(INTERPRETED)]
    done = subprocess.run(words, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


# The decision.


def test_auto_is_off_until_a_record_shows_a_gain() -> None:
    model = timm.create_model("resnet18", num_classes=3)
    fuse_if_wanted(model, SpeedConfig(), "resnet18", GPU)
    assert type(model.bn1) is nn.BatchNorm2d
    assert explain_plain(SpeedConfig(), CPU) is None


def test_without_a_gpu_or_triton_plain_layers_are_used_and_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    on, model = SpeedConfig(fused="on"), timm.create_model("resnet18", num_classes=3)
    fuse_if_wanted(model, on, "resnet18", CPU)
    assert type(model.bn1) is nn.BatchNorm2d
    line = explain_plain(on, CPU)
    assert line == (
        "speed.fused: the kernels need an NVIDIA GPU, so BatchNorm and ReLU are not fused: the plain layers are used"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find_obstacle(GPU) == "Triton is not installed"
    fuse_if_wanted(model, on, "resnet18", GPU)
    assert type(model.bn1) is nn.BatchNorm2d
    assert explain_plain(SpeedConfig(fused="off"), GPU) is None


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("vit_tiny_patch16_224", {}, "which is of the class VisionTransformer"),
        ("resnetv2_50", {}, "which is of the class ResNetV2"),
        ("resnet18", {"act_layer": "silu"}, "which has SiLU in place of ReLU"),
        ("resnet50", {"drop_block_rate": 0.1}, "which has DropBlock"),
        ("resnet18", {"norm_layer": nn.InstanceNorm2d}, "which has InstanceNorm2d"),
        ("resnet50_gn", {}, "which has GroupNorm"),
    ],
)
def test_other_networks_are_refused_by_name(
    name: str, options: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = timm.create_model(name, num_classes=3, **options)
    before = [type(each) for each in model.modules()]
    with pytest.raises(InputError, match=reason):
        fuse(model)
    assert [type(each) for each in model.modules()] == before  # unchanged

    pytest.importorskip("triton", reason="without it the plain layers are used")
    fuse_if_wanted(model, SpeedConfig(), name, CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    line = rf"--speed.fused on needs one of timm's ResNets .*, got {name}, {reason}.*: give --speed.fused off$"
    with pytest.raises(InputError, match=line) as caught:
        fuse_if_wanted(model, SpeedConfig(fused="on"), name, CPU)
    assert "\n" not in str(caught.value)


def test_a_batchnorm_that_the_kernels_do_not_compute_is_refused() -> None:
    changes: tuple[dict[str, Any], ...] = ({"momentum": None}, {"affine": False}, {"track_running_stats": False})
    for change in changes:
        model: Any = timm.create_model("resnet18", num_classes=3)
        model.layer2[0].bn1 = nn.BatchNorm2d(128, **change)
        with pytest.raises(
            InputError,
            match=r"which has BatchNorm2d.*, not .* with affine, track_running_stats and a momentum",
        ):
            check_fusible(model)


def test_every_batchnorm_is_fused_and_nothing_else_changes() -> None:
    for name in ("resnet50", "resnet50d", "resnet18", "resnet101"):
        model: Any = timm.create_model(name, num_classes=3)
        tensors = {key: value.data_ptr() for key, value in model.state_dict().items()}
        fused = fuse(model)
        assert fused is model and not any(type(each) is nn.BatchNorm2d for each in model.modules())
        assert not any(isinstance(each, nn.ReLU) for each in (model.act1, *model.conv1.modules()))
        assert {key: value.data_ptr() for key, value in model.state_dict().items()} == tensors
        with torch.no_grad():
            plain = timm.create_model(name, num_classes=3).eval()
            plain.load_state_dict(model.state_dict())
            images = torch.randn(1, 3, 64, 64)
            assert torch.equal(model.eval()(images), plain(images))


# Training.

SMALL = ("--data.fraction", "0.034", "--epochs", "1", "--optim.schedule-epochs", "2")


def test_a_run_with_fused_layers_goes_on_without_them(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """train/main.py, in Triton's interpreter; the checkpoint then loads into plain layers."""
    pytest.importorskip("triton", reason="Triton's interpreter runs the kernels on a CPU")
    runs = {name: Run(digits, tmp_path / name, (*SMALL, "--speed.fused", name)) for name in ("on", "off")}
    for name, run in runs.items():
        monkeypatch.setenv("TRITON_INTERPRET", "1" if name == "on" else "0")
        done = run_command("train/main.py", *run.arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "speed.fused" not in done.stdout
    losses = {name: [entry["loss"] for entry in run.metrics()] for name, run in runs.items()}
    assert len(losses["on"]) == len(losses["off"]) > 1
    assert losses["on"] == pytest.approx(losses["off"], rel=0.02)  # float32, one step

    longer = replace(runs["on"], flags=(*SMALL, "--epochs", "2"))
    done = run_command("train/main.py", *longer.arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(runs["on"].metrics()) > len(losses["on"]) and "resuming at image" in done.stdout


def test_a_run_says_what_this_machine_cannot_do(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    run = Run(digits, tmp_path / "run", (*SMALL, "--speed.fused", "on", "--speed.graph"))
    done = run_command("train/main.py", *run.arguments)
    assert (done.returncode, done.stderr) == (0, "")
    said = [line for line in done.stdout.splitlines() if "speed." in line]
    assert len(said) == 2 and "the plain layers are used" in said[0] and "CUDA graphs need an NVIDIA GPU" in said[1]


def test_a_model_that_cannot_be_fused_is_refused_before_the_run_folder_exists(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="without it the plain layers are used")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    run = Run(digits, tmp_path / "run", (*SMALL, "--speed.fused", "on", "--model.name", "test_efficientnet"))
    arguments = [word for word in run.arguments if word != "test_resnet"]
    arguments.pop(arguments.index("--model.name"))
    done = run_command("train/main.py", *arguments)
    line = (
        "error: --speed.fused on needs one of timm's ResNets with BatchNorm and ReLU, got test_efficientnet, which is "
    )
    assert (done.returncode, done.stderr) == (1, f"{line}of the class EfficientNet: give --speed.fused off\n")
    assert not list((tmp_path / "run").glob("*.json"))


# The kernels, compiled for GPUs that are not here.


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus_without_one(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    source = importlib.import_module("triton.compiler").ASTSource
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    kernels = importlib.import_module("train.fused_kernels")
    language = importlib.import_module("triton.language")
    acc = {"ACC": language.float32}
    both, mask = {"HAS_RESIDUAL": True, "RELU": True}, {"APPLY_RELU": True}
    images = ("y_ptr", "residual_ptr", "z_ptr", "dz_ptr", "g_ptr", "dy_ptr")
    types = dict.fromkeys(images, "*bf16") | {"num_batches_ptr": "*i64", "momentum": "fp32", "eps": "fp32"}
    for wide in (False, True):
        flags = acc | {"WIDE": wide}
        chosen = [(kernels.sum_forward, flags), (kernels.finish_forward, acc), (kernels.apply_forward, both | flags)]
        chosen += [(kernels.sum_backward, both | flags), (kernels.finish_backward, acc)]
        chosen += [(kernels.apply_backward, mask | flags)]
        for kernel, constants in chosen:
            names = kernel.arg_names
            kinds = {name: types.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in names}
            signature = kinds | dict.fromkeys(constants, "constexpr")
            values = {(names.index(name),): value for name, value in constants.items()}
            # As at a launch: aligned pointers, and a number of channels that is a multiple of 16.
            aligned = [name for name in names if name.endswith("_ptr") or name == "num_channels"]
            attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
            made = triton.compile(source(kernel, signature, values, attributes), target=target, options=kernels.LAUNCH)
            assert f"sm_{capability}" in made.asm["ptx"] and made.asm["cubin"]
            if kernel in (kernels.sum_forward, kernels.apply_forward):  # 16 bytes at once
                assert ".v4.b32" in made.asm["ptx"]


def test_no_kernel_is_compiled_again_for_another_batch_size_or_resolution() -> None:
    """Triton compiles again where an integer becomes 1 or a multiple of 16, unless it is told not to."""
    pytest.importorskip("triton")
    kernels = importlib.import_module("train.fused_kernels")
    entries = ("sum_forward", "finish_forward", "apply_forward", "sum_backward", "finish_backward", "apply_backward")
    changing = {"num_rows", "rows_each", "num_splits", "momentum", "eps"}
    for name in entries:
        parameters = [each for each in getattr(kernels, name).params if not each.is_constexpr]
        assert {each.name for each in parameters if not each.name.endswith("_ptr")} <= changing | {"num_channels"}
        assert all(each.do_not_specialize for each in parameters if each.name in changing), name


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_on_a_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, gradients and running statistics of a resnet50d, compared with the plain layers in float32."""
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    plain, fused = (build_model(ModelConfig("resnet50d"), 10, GPU) for _ in range(2))
    fused.load_state_dict(plain.state_dict())
    fuse(fused)
    images = torch.randn(16, 3, 96, 96, device=GPU).contiguous(memory_format=torch.channels_last)
    losses = []
    for model, amp in ((plain, torch.float32), (fused, dtype)):
        with torch.autocast("cuda", amp, enabled=amp != torch.float32):
            losses.append(model(images).float().square().mean())
        losses[-1].backward()
    limit = 1e-3 if dtype == torch.float32 else 0.1  # of random weights; rounding is amplified from layer to layer
    assert abs(losses[1] / losses[0] - 1) < limit
    for (name, ours), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        distance = (ours.grad - theirs.grad).norm() / theirs.grad.norm().clamp(min=1e-4)
        assert distance < 5 * limit, (name, float(distance))
    for (name, ours), theirs in zip(fused.named_buffers(), plain.buffers(), strict=True):
        assert (ours.double() - theirs.double()).norm() <= limit * theirs.double().norm(), name
