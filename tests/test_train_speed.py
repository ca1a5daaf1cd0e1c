# pyright: reportAttributeAccessIssue=false
# (of torch.backends.cudnn.conv, which pyright does not see)
"""Settings of speed change no result: precision on a GPU is set on purpose, a compiled network trains alike."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train_guard import build_step, random_batch, small, tensors

from loaders import InputError
from train.speed import SpeedConfig, set_precision
from train.step import Sums
from train.warmup import warm_up


@pytest.fixture
def precision() -> Iterator[None]:
    """Afterwards torch computes as before."""
    matmul, conv = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    benchmark, deterministic = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    yield
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = matmul, conv
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize(("tf32", "name"), [(True, "tf32"), (False, "ieee")])
@pytest.mark.parametrize("deterministic", [True, False])
def test_precision_and_determinism_are_set(tf32: bool, name: str, deterministic: bool) -> None:
    set_precision(SpeedConfig(tf32=tf32, deterministic=deterministic))
    assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == name
    assert torch.backends.cudnn.benchmark is not deterministic
    assert torch.are_deterministic_algorithms_enabled() is deterministic


def test_what_cannot_work_is_refused_before_anything_is_set() -> None:
    with pytest.raises(InputError, match="no compile mode fast"):
        set_precision(SpeedConfig(compile="fast"))  # pyright: ignore[reportArgumentType]


def test_a_compiled_network_trains_alike_and_its_cache_lies_in_the_run(tmp_path: Path) -> None:
    eager = small()
    compiled = replace(eager, speed=SpeedConfig(compile="default"), run=replace(eager.run, dir=tmp_path))
    steps = [build_step(eager), build_step(compiled)]
    warm_up(steps[1])
    for step in steps:
        step(random_batch(0), Sums.zero(torch.device("cpu")))
    ours, theirs = map(tensors, steps)
    assert ours.keys() == theirs.keys()  # names are those of the network itself
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert any((tmp_path / "compiled").rglob("*.so"))
