"""The signs of lost time that no stage shows alone: their limits, their sentences, and how they are read.

No GPU is needed: the tests use figures from the H200 records and from a report on DALI, and invented timelines.
"""

import ctypes
import importlib
import json
import struct
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import CHECKOUT, free_port
from helpers.ranks import Ranks
from hypothesis import given
from hypothesis import strategies as st

from loaders import Split, TrainTransform, build_loader

SHARES = st.floats(0.0, 1.0)
POWER, HOT, IDLE, APPLICATION = 0x04, 0x40, 0x01, 0x02


def part(name: str) -> Any:
    return importlib.import_module(name)


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Import everything before hypothesis measures how long an example takes."""
    part("signs")


@given(st.floats(0.5, 20.0))
def test_the_share_of_communication_is_what_a_step_without_it_saves(gain: float) -> None:
    signs = part("signs")
    sign = signs.judge_communication(gain)
    assert sign.share == pytest.approx(max(0.0, 1 - 1 / gain)) and f"{sign.share:.0%} of a training step" in sign.says
    assert sign.is_found == (sign.share > 0.1) == ("larger batch" in sign.says)
    # A step of 1 second with its communication halved takes 1 - share / 2.
    assert sign.figures["gain_if_halved"] == pytest.approx(1 / (1 - sign.share / 2))


def test_two_processes_measure_their_communication(ranks: Ranks, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    words = ["--data", str(digits), "--recipe", "fast_24", "--scale", "0.2", "--out", str(out), "--device", "cpu"]
    words += ["--seconds", "0.05", "--batch-size", "16", "--model", "test_resnet", "--amp", "none"]
    script = str(CHECKOUT / "benchmarks" / "throughput.py")
    ranks.start("script", 2, tmp_path, script=script, arguments=words, port=free_port())
    ended = ranks.wait(180)
    assert [rank.status for rank in ended] == [0, 0], ended
    record = json.loads(out.read_text())
    assert record["num_processes"] == 2
    for phase in record["phases"]:
        sign = phase["signs"]["communication"]
        assert sign["share"] >= 0 and sign["says"].startswith("Communication between the processes takes ")
    assert sum("Communication between the processes" in line for line in record["says"]) == 1


@given(SHARES, SHARES, SHARES)
def test_launching_is_found_in_a_small_step_or_in_an_idle_gpu_that_does_not_wait(
    fixed: float, idle: float, wait: float
) -> None:
    signs = part("signs")
    judge = signs.judge_launching
    by_step, by_gpu = judge(fixed), judge(None, idle, wait)
    assert by_step.is_found == (fixed > 0.7) and by_gpu.is_found == (idle > 0.15 and wait < 0.05)
    both = judge(fixed, idle, wait)
    assert both.is_found == (by_step.is_found or by_gpu.is_found) == ("CUDA graphs" in both.says)
    assert "CUDA graphs" not in judge(fixed, has_gpu=False).says
    assert judge(None) is None and judge(None, idle) is None


@pytest.mark.parametrize(
    ("busy_percent", "wait_percent", "is_found"),
    [
        pytest.param(75.0, 0.0, True, id="train-resnet50-cpu"),
        pytest.param(36.9, 0.0, True, id="train-resnet50-cpu, first run"),
        pytest.param(99.0, 1.14, False, id="train-resnet50-full-0.99"),
        pytest.param(94.2, 0.0, False, id="train-resnet50-gpu-fp16"),
        pytest.param(100.0, 0.0, False, id="model-resnet50"),
        pytest.param(1.2, 92.3, False, id="loader-cpu"),
    ],
)
def test_a_recorded_gpu_that_is_idle_without_waiting_is_found(
    busy_percent: float, wait_percent: float, is_found: bool
) -> None:
    """Figures of the two runs on an H200 (records/h200 and h200-first), by case: sm_percent and data_wait_percent."""
    signs = part("signs")
    sign = signs.judge_launching(None, 1 - busy_percent / 100, wait_percent / 100)
    assert sign.is_found == is_found and f"idle {1 - busy_percent / 100:.0%} of the time" in sign.says


def test_a_step_of_few_images_is_measured_and_not_compiled(digits: Path) -> None:
    signs, stages = part("signs"), part("stages")
    setting = stages.Setting(16, 32, "test_resnet", "none", seconds=0.02)
    loader = build_loader(Split(digits, "train"), TrainTransform(32), 16)
    assert signs.measure_few(loader, stages.build_step(setting, loader), setting) > 0
    compiled = replace(setting, compile="default")
    assert signs.measure_few(loader, None, compiled) is None


def timeline(usual: float, slow: float, num_slow: int = 3) -> list[float]:
    """100 batches in milliseconds, a few of which are slow."""
    return [slow / 1000] * num_slow + [usual / 1000] * (100 - num_slow)


def test_engines_with_the_same_mean_are_judged_by_their_slowest_batches() -> None:
    """The p99 of DALI's pull request 6366: 24.5 ms, and 34.3 ms at a load of 0.90."""
    signs = part("signs")
    judge = signs.judge_engines
    times = {0.65: timeline(15.6, 24.5), 0.9: timeline(15.4, 34.3)}
    sign = judge(0.9, times, busy=0.69)
    assert sign.is_found and sign.figures["best"] == 0.65
    assert "15.4 ms (p50), 34.3 ms (p99), and its JPEG engines work 69% of the time" in sign.says
    assert "--loader.hw-decoder-load 0.65 takes 15.9 ms on average instead of 16.0, with a p99 of 24.5 ms" in sign.says
    # A load that is much slower on average is not advised, however even it is.
    sign = judge(0.9, {0.0: timeline(40.0, 40.0), 0.9: timeline(15.4, 34.3)})
    assert sign.figures["best"] == 0.9 and "--loader.batches-ahead" in sign.says and "engines work" not in sign.says
    assert not judge(0.65, {0.65: timeline(15.6, 16.0)}).is_found
    assert judge(0.65, {}) is None


def test_a_percentile_is_the_smallest_time_that_its_share_does_not_exceed() -> None:
    signs = part("signs")
    times = list(range(1, 101))
    assert [signs.percentile(times, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=300), st.sampled_from([0.5, 0.99]))
def test_a_percentile_is_one_of_the_times_and_is_not_exceeded_by_more_than_its_share(
    times: list[float], share: float
) -> None:
    signs = part("signs")
    found = signs.percentile(times, share)
    assert found in times
    assert sum(time > found for time in times) <= (1 - share) * len(times) + 1e-9 or len(times) == 1


def make_sys(folder: Path, nodes: dict[int, str], gpu_node: int) -> Path:
    for node, cores in nodes.items():
        path = folder / "devices" / "system" / "node" / f"node{node}" / "cpulist"
        path.parent.mkdir(parents=True)
        path.write_text(f"{cores}\n")
    device = folder / "bus" / "pci" / "devices" / "0000:17:00.0" / "numa_node"
    device.parent.mkdir(parents=True)
    device.write_text(f"{gpu_node}\n")
    return folder


TWO_NODES = {0: "0-3,8-11", 1: "4-7,12-15"}


@pytest.mark.parametrize(
    ("cores", "near", "is_found"),
    [(range(16), 8, True), (range(4), 0, True), ([4, 5, 12], 3, False)],
)
def test_cores_of_another_node_than_the_gpu_are_counted(tmp_path: Path, cores: Any, near: int, is_found: bool) -> None:
    signs = part("signs")
    sign = signs.judge_distance(make_sys(tmp_path, TWO_NODES, 1), "0000:17:00.0", set(cores))
    assert sign.is_found == is_found == ("numactl --cpunodebind=1 --membind=1" in sign.says)
    assert f"NUMA node 1, as do {near} of the {len(set(cores))} cores" in sign.says


@pytest.mark.parametrize(
    ("nodes", "gpu_node", "address"),
    [({0: "0-15"}, 0, "0000:17:00.0"), (TWO_NODES, -1, "0000:17:00.0"), (TWO_NODES, 1, "0000:99:00.0")],
)
def test_without_a_known_node_there_is_no_sign(
    tmp_path: Path, nodes: dict[int, str], gpu_node: int, address: str
) -> None:
    """One node; a virtual machine, in which the kernel answers -1; a device that does not exist."""
    signs, machine = part("signs"), part("machine")
    assert signs.judge_distance(make_sys(tmp_path, nodes, gpu_node), address, {0, 1}) is None
    assert signs.find_distance(machine.open_gpu(torch.device("cpu"))) is None


class FakeNvml:
    """Answers as libnvidia-ml does: through pointers, 0 for success. Sets an event after some answers."""

    def __init__(self, *reasons: int, name: str = "nvmlDeviceGetCurrentClocksEventReasons") -> None:
        self.reasons, self.num_read, self.all_read = reasons, 0, threading.Event()
        setattr(self, name, self._give_reasons)

    def _give_reasons(self, handle: Any, pointer: Any) -> int:
        pointer._obj.value = self.reasons[min(self.num_read, len(self.reasons) - 1)]
        self.num_read += 1
        if self.num_read > len(self.reasons):
            self.all_read.set()
        return 0

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:  # noqa: N802
        return 0 if uuid == b"GPU-1" else 6  # NVML_ERROR_NOT_FOUND

    def nvmlDeviceGetPciInfo_v3(self, handle: Any, info: Any) -> int:  # noqa: N802
        """Fill nvmlPciInfo_t: the short address, five numbers, the address."""
        content = struct.pack("16s5I32s", b"0000:17:00.0", 0, 0x17, 0, 0, 0, b"00000000:17:00.0")
        ctypes.memmove(info, content, len(content))
        return 0

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int, pointer: Any) -> int:  # noqa: N802
        pointer._obj.value = 1410
        return 0

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int, pointer: Any) -> int:  # noqa: N802
        pointer._obj.value = 1980
        return 0


def test_clocks_are_sampled_while_a_block_runs() -> None:
    signs, machine = part("signs"), part("machine")
    nvml = FakeNvml(POWER, POWER | HOT, IDLE)
    with machine.ClockSampler(machine.find_gpu(nvml, "GPU-1")) as sampler:
        assert nvml.all_read.wait(30)
    assert [sample.reasons for sample in sampler.samples[:3]] == [POWER, POWER | HOT, IDLE]
    assert sampler.samples[0] == machine.Sample(POWER, 1410, 1980)
    with machine.ClockSampler(None) as sampler:
        pass
    assert sampler.samples == [] and signs.judge_clocks([]) is None


def test_the_address_of_a_gpu_is_that_of_the_kernel() -> None:
    machine = part("machine")
    assert machine.read_address(machine.find_gpu(FakeNvml(0), "GPU-1")) == "0000:17:00.0"


def test_older_drivers_and_drivers_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = part("machine")
    find_gpu = machine.find_gpu
    old = FakeNvml(HOT, name="nvmlDeviceGetCurrentClocksThrottleReasons")
    assert machine.read_sample(find_gpu(old, "GPU-1")).reasons == HOT
    assert machine.read_sample(find_gpu(FakeNvml(HOT, name="other"), "GPU-1")) is None
    unable = FakeNvml(HOT)
    monkeypatch.setattr(unable, "nvmlDeviceGetClockInfo", lambda *_: 3)  # NVML_ERROR_NOT_SUPPORTED
    assert machine.read_sample(find_gpu(unable, "GPU-1")) is None
    assert find_gpu(old, "GPU-2") is None


@given(st.lists(st.sampled_from([0, IDLE, APPLICATION, POWER, HOT, POWER | HOT]), min_size=1, max_size=50))
def test_power_and_temperature_are_found_and_idleness_is_not(bits: list[int]) -> None:
    signs, machine = part("signs"), part("machine")
    sign = signs.judge_clocks([machine.Sample(each, 1410, 1980) for each in bits])
    slowed = sum(bool(each & (POWER | HOT)) for each in bits) / len(bits)
    assert sign.share == pytest.approx(slowed) and sign.is_found == (slowed > 0.1) == ("nvidia-smi -q" in sign.says)
    assert sign.says.startswith("The GPU ran at 1,410 of at most 1,980 MHz")
    assert sign.figures["shares"]["power limit"] == pytest.approx(sum(bool(each & POWER) for each in bits) / len(bits))
