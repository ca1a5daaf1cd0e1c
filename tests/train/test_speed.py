"""Settings of speed change no result: precision on a GPU is set on purpose, a compiled network trains alike."""

import copy
import importlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.steps import build_step, random_batch, small, tensors
from torch import nn

from loaders import World
from prep.errors import InputError
from train.compile import CompileMode, SpeedConfig, set_precision
from train.config import Recipe
from train.metrics import Sums
from train.model import build_model
from train.optim import build_optimizer
from train.step import Step, check_amp, check_step, new_state, warm_up

# torch's compiler imports setuptools, which replaces the standard library's distutils and checks that it could. That
# has failed in a process in which other tests had run before; here no test has run yet.
if find_spec("setuptools"):
    importlib.import_module("setuptools")


def tiny_network() -> nn.Module:
    """Return a network with what every network of ours has: a convolution, a running statistic, a linear layer."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


READERS: dict[str, Callable[[], bool | str]] = {
    "cuda.matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
    "cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
    "float32_matmul_precision": torch.get_float32_matmul_precision,
    "cuda.matmul.fp32_precision": lambda: torch.backends.cuda.matmul.fp32_precision,
}


@pytest.fixture
def precision() -> Iterator[None]:
    """Afterwards torch computes as before."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    benchmark, deterministic = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("deterministic", [True, False])
def test_determinism_is_set(deterministic: bool) -> None:
    set_precision(SpeedConfig(deterministic=deterministic))
    assert torch.backends.cudnn.benchmark is not deterministic
    assert torch.are_deterministic_algorithms_enabled() is deterministic


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("tf32", [True, False])
def test_precision_is_set_and_can_be_read_by_every_name(tf32: bool) -> None:
    """The compiler reads it by several, and torch raises an error for a name that contradicts another."""
    set_precision(SpeedConfig(tf32=not tf32))
    set_precision(SpeedConfig(tf32=tf32))
    names = ("high", "tf32") if tf32 else ("highest", "ieee")
    assert [read() for read in READERS.values()] == [tf32, tf32, *names]


def test_what_cannot_work_is_refused_before_anything_is_set() -> None:
    with pytest.raises(InputError, match=r"--speed\.compile must be one of .* got fast"):
        set_precision(SpeedConfig(compile="fast"))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("network", ["two layers", "resnet10t"])
def test_a_compiled_network_trains_alike_and_its_cache_lies_in_the_run(tmp_path: Path, network: str) -> None:
    if network != "two layers" and "PENSTOCK_SOAK_COMPILE" not in os.environ:
        pytest.skip("a soak: PENSTOCK_SOAK_COMPILE=1")  # the compiler takes a minute for its 40 layers
    model = tiny_network() if network == "two layers" else None
    eager = small()
    compiled = replace(eager, speed=SpeedConfig(compile="default"), run=replace(eager.run, dir=tmp_path))
    steps = [build_step(eager, network=model), build_step(compiled, network=model)]
    warm_up(steps[1])
    for step in steps:
        step(random_batch(0), Sums.zero(torch.device("cpu")))
    ours, theirs = map(tensors, steps)
    assert ours.keys() == theirs.keys()  # names are those of the network itself
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
    assert any((tmp_path / "compiled").rglob("*.so"))


@pytest.mark.parametrize(
    ("mode", "instead"), [("reduce-overhead", "default"), ("max-autotune", "max-autotune-no-cudagraphs")]
)
def test_cuda_graphs_are_refused_where_gradients_accumulate(mode: CompileMode, instead: CompileMode) -> None:
    words = (
        f"speed.compile {mode} records CUDA graphs.* 4 parts of 4 images: .*microbatch 0 or --speed.compile {instead}"
    )
    with pytest.raises(InputError, match=words):
        build_step(small(speed=SpeedConfig(compile=mode, microbatch=4)))
    assert SpeedConfig(compile=mode, microbatch=16).num_parts(16) == 1
    assert SpeedConfig(compile=instead, microbatch=4).num_parts(16) == 4


@pytest.mark.parametrize(
    ("mode", "times"), [("reduce-overhead", 3), ("max-autotune", 3), ("default", 1), ("max-autotune-no-cudagraphs", 1)]
)
def test_a_warm_up_rehearses_until_a_graph_is_replayed_and_keeps_no_gradient_over_a_pass(
    mode: CompileMode, times: int
) -> None:
    recipe = small(epochs=8, speed=SpeedConfig(compile=mode))
    step = build_step(replace(recipe, transform=replace(recipe.transform, size=64, first_size=32, grow=(2, 4))))
    seen, network = [], step.model
    parameters = list(network.parameters())

    def forward(images_BCHW: torch.Tensor) -> torch.Tensor:
        seen.append((images_BCHW.shape[2], sum(each.grad is not None for each in parameters)))
        return network.forward(images_BCHW)  # not compiled

    step.model = forward  # pyright: ignore[reportAttributeAccessIssue]
    warm_up(step)
    assert seen == [(size, 0) for size in (32, 64) for _ in range(times)]
    assert all(each.grad is None for each in parameters)


@pytest.mark.parametrize("mode", ["none", "reduce-overhead"])
def test_a_step_begins_without_gradients(mode: CompileMode) -> None:
    """With CUDA graphs they are in memory that the next pass overwrites."""
    step, seen = build_step(small(speed=SpeedConfig(compile=mode))), []
    network = step.model

    def forward(images_BCHW: torch.Tensor) -> torch.Tensor:
        seen.append(sum(each.grad is not None for each in network.parameters()))
        return network.forward(images_BCHW)  # not compiled

    step.model = forward  # pyright: ignore[reportAttributeAccessIssue]
    for position in (0, 16):
        step(random_batch(position), Sums.zero(torch.device("cpu")))
    assert seen == [0, 0]


@pytest.fixture
def turing(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A T4, as torch would describe it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    return torch.device("cuda", 0)


def test_bf16_is_refused_where_a_gpu_would_emulate_it(turing: torch.device) -> None:
    words = r"amp bf16 needs .*8\.0 or higher.* Tesla T4 has 7\.5: train with --amp fp16; .*--device cpu"
    with pytest.raises(InputError, match=words) as refusal:
        check_amp(small(amp="bf16"), turing)
    assert "\n" not in str(refusal.value)
    for amp in ("fp16", "none"):
        check_amp(small(amp=amp), turing)
    check_amp(small(amp="bf16"), torch.device("cpu"))


def test_bf16_is_accepted_on_a_gpu_that_has_it(turing: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    check_amp(small(amp="bf16"), turing)


def test_a_step_is_checked_before_anything_is_built(turing: torch.device) -> None:
    """A Step calls it too; `fit` can call it before a run folder exists."""
    with pytest.raises(InputError, match="amp bf16 needs"):
        check_step(small(amp="bf16"), World(device=turing))
    with pytest.raises(InputError, match="must be a multiple of the number of processes, 3"):
        check_step(small(), World(size=3))
    with pytest.raises(InputError, match=r"must be a multiple of --speed.microbatch \(5\)"):
        check_step(small(speed=SpeedConfig(microbatch=5)), World())
    with pytest.raises(InputError, match=r"--speed\.compile must be one of .* got fast"):
        check_step(small(speed=SpeedConfig(compile="fast")), World())  # pyright: ignore[reportArgumentType]
    check_step(small(), World())


def test_a_step_is_not_built_where_the_gpu_lacks_its_type(turing: torch.device) -> None:
    recipe = small(amp="bf16")
    model = build_model(recipe.model, 10, torch.device("cpu"))
    state = new_state(recipe, model, model, build_optimizer(model, recipe.optim, recipe.batch_size))
    with pytest.raises(InputError, match="Tesla T4"):
        Step(recipe, state, 1600, World(device=turing))


def take_steps(recipe: Recipe, device: torch.device) -> dict[str, torch.Tensor]:
    """Warm up at two resolutions, then train on batches of one and the other in turn; the state afterwards."""
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, 10, device)
    state = new_state(recipe, model, copy.deepcopy(model), build_optimizer(model, recipe.optim, recipe.batch_size))
    step = Step(recipe, state, 1600, World(device=device))
    warm_up(step)
    for position, times in zip(range(0, 96, 16), itertools.cycle((2, 4)), strict=False):  # 32 and 64 pixels
        batch = random_batch(position)
        images_BCHW = batch.images_BCHW.repeat(1, 1, times, times).to(device, memory_format=torch.channels_last)
        step(replace(batch, images_BCHW=images_BCHW, labels_B=batch.labels_B.to(device)), Sums.zero(device))
    return tensors(step)


def relative_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-6))


@pytest.mark.gpu
@pytest.mark.usefixtures("precision")
def test_cuda_graphs_train_as_eager_kernels_do(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    recipe = small(epochs=8, amp="none")
    set_precision(SpeedConfig(tf32=False))
    growing = replace(recipe.transform, size=64, first_size=32, grow=(2, 4))
    recipe = replace(recipe, transform=growing, run=replace(recipe.run, dir=tmp_path))
    graphs = replace(recipe, speed=SpeedConfig(compile="reduce-overhead", tf32=False))
    ours, theirs = (take_steps(each, torch.device("cuda", 0)) for each in (graphs, recipe))
    distances = {name: relative_distance(tensor, theirs[name]) for name, tensor in ours.items()}
    assert max(distances.values()) < 0.2, distances  # on a CPU: 0.035 by other kernels, 4 where gradients stay
