"""A GPU that is there is used or complained about, and never silently passed over."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loaders import world
from loaders.world import WorldError, has_nvidia_gpu, resolve_device
from prep.errors import InputError

DRIVER_LINE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed Feb 26 02:04:57 UTC 2025"


@pytest.fixture(autouse=True)
def no_choice_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends to be some machine: its GPUs, what torch sees of them, and the CUDA of the driver and of DALI."""

    def pretend(
        num_gpus: int = 1,
        torch_sees: int = 1,
        driver_cuda: tuple[int, int] | None = (13, 0),
        dali_cuda: tuple[int, int] | None = (12, 9),
    ) -> None:
        for number in range(num_gpus):
            (tmp_path / "gpus" / f"0000:0{number}:00.0").mkdir(parents=True)
        if num_gpus:
            (tmp_path / "version").write_text(DRIVER_LINE + "\nGCC version: gcc 12\n")
        monkeypatch.setattr(world, "DRIVER", tmp_path)
        monkeypatch.setattr(Path, "glob", _without_device_files(Path.glob))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_sees > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: torch_sees)
        monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
        monkeypatch.setattr(torch.version, "cuda", "13.2")
        monkeypatch.setattr(world, "_driver_cuda", lambda: driver_cuda)
        monkeypatch.setattr(world, "_dali_cuda", lambda: dali_cuda)

    return pretend


def _without_device_files(glob: Callable[..., object]) -> Callable[..., object]:
    """`Path.glob` on a machine whose /dev is empty."""
    return lambda path, pattern: [] if path == Path("/dev") else glob(path, pattern)


def test_cpu_is_the_cpu_even_next_to_a_gpu(machine: Callable[..., None]) -> None:
    machine()
    assert resolve_device("cpu") == torch.device("cpu")


def test_auto_without_a_gpu_is_the_cpu(machine: Callable[..., None]) -> None:
    machine(num_gpus=0, torch_sees=0)
    assert not has_nvidia_gpu()
    assert resolve_device("auto") == torch.device("cpu")


def test_cuda_without_a_gpu_is_refused(machine: Callable[..., None]) -> None:
    machine(num_gpus=0, torch_sees=0)
    with pytest.raises(InputError, match="this machine shows no NVIDIA GPU: choose --device cpu"):
        resolve_device("cuda")


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_gpu_that_works_is_taken_one_for_each_process(machine: Callable[..., None], wanted: str) -> None:
    machine(num_gpus=2, torch_sees=2)
    assert resolve_device(wanted) == torch.device("cuda", 0)
    assert resolve_device(wanted, local_rank=1) == torch.device("cuda", 1)


def test_the_process_makes_its_gpu_the_current_one(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(num_gpus=4, torch_sees=4)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    resolve_device("auto", local_rank=3)
    assert chosen == [3]


@pytest.mark.parametrize("wanted", ["gpu", "", "CUDA", "cuda:x", "mps", torch.device("meta"), 0, None])
def test_an_unknown_device_is_answered_with_those_there_are(wanted: Any) -> None:
    with pytest.raises(InputError, match=f"unknown device {wanted}: choose auto, cpu, cuda or cuda:N"):
        resolve_device(wanted)


@pytest.mark.parametrize("wanted", ["cpu", torch.device("cpu"), torch.device("cpu", 0)])
def test_torchs_own_cpu_device_is_accepted(wanted: str | torch.device) -> None:
    assert resolve_device(wanted) == torch.device("cpu")


def test_a_numbered_gpu_is_taken_whatever_the_local_rank(machine: Callable[..., None]) -> None:
    machine(num_gpus=2, torch_sees=2)
    for wanted in ("cuda:1", torch.device("cuda", 1)):
        assert resolve_device(wanted, local_rank=0) == torch.device("cuda", 1)
    assert resolve_device("cuda:0", local_rank=5) == torch.device("cuda", 0)
    with pytest.raises(InputError, match="device cuda:2 does not exist: this machine has 2 GPUs, numbered from 0"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_gpu_that_torch_cannot_use_is_complained_about_with_the_versions(
    machine: Callable[..., None], wanted: str
) -> None:
    machine(torch_sees=0, driver_cuda=(12, 8))
    versions = f"{DRIVER_LINE}, which supports CUDA 12.8; torch is built for CUDA 13.2, DALI for CUDA 12.9"
    with pytest.raises(InputError, match=re.escape(f"torch cannot use it ({versions}): update the driver")) as caught:
        resolve_device(wanted)
    assert len(str(caught.value).splitlines()) == 1


def test_a_driver_too_old_for_dali_is_complained_about(machine: Callable[..., None]) -> None:
    machine(driver_cuda=(12, 8), dali_cuda=(13, 1))
    with pytest.raises(
        InputError, match=r"its driver is too old for DALI \(.*supports CUDA 12\.8; .*DALI for CUDA 13\.1"
    ):
        resolve_device("auto")


@pytest.mark.parametrize("driver_cuda", [(12, 0), (12, 9), (13, 0), None])
def test_a_driver_of_dalis_major_version_or_a_newer_one_will_do(
    machine: Callable[..., None], driver_cuda: tuple[int, int] | None
) -> None:
    """Within a major version CUDA guarantees compatibility; an unknown version is accepted."""
    machine(driver_cuda=driver_cuda, dali_cuda=(12, 9))
    assert resolve_device("auto").type == "cuda"


def test_without_dali_only_torch_must_agree(machine: Callable[..., None]) -> None:
    machine(driver_cuda=(12, 0), dali_cuda=None)
    assert resolve_device("auto").type == "cuda"


def test_more_processes_than_gpus_are_refused(machine: Callable[..., None]) -> None:
    machine(num_gpus=2, torch_sees=2)
    with pytest.raises(WorldError, match="process 2 of this machine has no GPU, because there are only 2"):
        resolve_device("auto", local_rank=2)


def test_an_unknown_driver_is_called_unknown(machine: Callable[..., None], tmp_path: Path) -> None:
    machine(torch_sees=0, driver_cuda=None, dali_cuda=None)
    (tmp_path / "version").unlink()
    with pytest.raises(InputError, match=r"\(driver unknown, which supports CUDA unknown; .* DALI for CUDA unknown\)"):
        resolve_device("auto")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_are_hidden_do_not_count(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    machine(num_gpus=2, torch_sees=0)
    assert has_nvidia_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not has_nvidia_gpu()
    assert resolve_device("auto") == torch.device("cpu")


def test_a_choice_among_the_gpus_hides_none_of_them_wholly(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(num_gpus=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert has_nvidia_gpu()


def test_a_device_file_alone_shows_a_gpu(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers may have no /proc/driver/nvidia."""
    machine(num_gpus=0, torch_sees=0)
    monkeypatch.setattr(Path, "glob", lambda path, _: [path / "nvidia0"] if path == Path("/dev") else [])
    assert has_nvidia_gpu()
    with pytest.raises(InputError, match="an NVIDIA GPU is here but torch cannot use it"):
        resolve_device("auto")


def test_the_installed_dali_tells_its_cuda() -> None:
    found = world._dali_cuda()
    assert found is not None
    assert 12 <= found[0] <= 20 and 0 <= found[1] <= 9


def test_dalis_digits_are_read_as_major_and_minor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvidia.dali.__cuda_version__", 13086, raising=True)
    assert world._dali_cuda() == (13, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_gpu_of_this_machine_is_taken() -> None:
    assert has_nvidia_gpu()
    assert resolve_device("auto") == torch.device("cuda", 0)
    assert world._driver_cuda() is not None
