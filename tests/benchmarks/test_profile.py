"""`throughput.py --profile`: times add up to the step, names go to their class, and the command tells both."""

import importlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import recorded
from helpers.commands import CHECKOUT, free_port
from helpers.ranks import Ranks

from loaders import LoaderConfig, Split, TrainTransform, World, build_loader
from prep.errors import InputError

SCRIPT = CHECKOUT / "benchmarks" / "throughput.py"
WORDS = ("--profile", "--device", "cpu", "--seconds", "0.05", "--batch-size", "4", "--size", "32")
MILLISECOND = 1_000_000  # nanoseconds


def part(name: str) -> Any:
    return importlib.import_module(name)


# The profiler's events.


@dataclass(frozen=True)
class Event:
    """An event as torch.profiler has it."""

    label: str
    start: int
    end: int
    on_gpu: bool = False
    annotates: bool = False
    thread: int = 1
    asynchronous: bool = False

    def name(self) -> str:
        return self.label

    def start_ns(self) -> int:
        return self.start

    def end_ns(self) -> int:
        return self.end

    def device_type(self) -> Any:
        return torch.autograd.DeviceType.CUDA if self.on_gpu else torch.autograd.DeviceType.CPU

    def is_user_annotation(self) -> bool:
        return self.annotates

    def start_thread_id(self) -> int:
        return self.thread

    def is_async(self) -> bool:
        return self.asynchronous


KERNELS = [  # (name, milliseconds from, to); the exchange of gradients runs next to two kernels
    ("sm90_xmma_dgrad_implicit_gemm_bf16bf16_bf16f32", 0, 10),
    ("void cudnn::bn_fw_tr_1C11_kernel_NHWC<__nv_bfloat16>", 10, 14),
    ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 8, 13),
    ("Memcpy HtoD (Pinned -> Device)", 16, 17),
    ("void nvjpeg::decode_huffman<8>", 16, 19),
    ("sm90_xmma_dgrad_implicit_gemm_bf16bf16_bf16f32", 19, 20),
    ("something else", 24, 30),
]


def gpu_events(offset: int = 0) -> list[Event]:
    kernels = [Event(name, offset + a * MILLISECOND, offset + b * MILLISECOND, True) for name, a, b in KERNELS]
    optimizer = Event("Optimizer.step#SGD.step", offset, offset + 30 * MILLISECOND, True, annotates=True)
    return [*kernels, optimizer, Event("cudaLaunchKernel", offset, offset + 25 * MILLISECOND)]


def test_kernels_of_all_streams_are_counted_once() -> None:
    step_time = part("step_time")
    profiled = step_time.Profiled(step_time.list_kernels(gpu_events()), 0, 25 * MILLISECOND, 2)
    found = step_time.describe_steps(profiled, on_gpu=True)
    milliseconds = {name: each["milliseconds_a_step"] for name, each in found["classes"].items()}
    # In two steps; the last kernel ends after the window, which cuts it off after 1 of its 6 ms.
    wanted = {
        "convolution": 5.5,
        "communication": 2.5,
        "normalisation": 2.0,
        "decoding": 1.5,
        "copies": 0.5,
        "other": 0.5,
    }
    assert milliseconds == wanted
    assert (found["wall"]["milliseconds_a_step"], found["idle"]["milliseconds_a_step"]) == (12.5, 3.0)
    assert found["overlap"] == {"milliseconds_a_step": 3.0, "share": 0.24}
    assert found["classes"]["convolution"]["calls_a_step"] == 1.0 and found["counted"] == "kernels"
    first = found["longest"][0]
    assert first["name"].startswith("sm90_xmma_dgrad") and first["milliseconds_a_step"] == 5.5


def test_operations_of_a_cpu_have_what_they_call_taken_off() -> None:
    events = [
        Event("DistributedDataParallel.forward", 0, 50, annotates=True),
        *(Event("aten::conv2d", 5, 25), Event("aten::mkldnn_convolution", 6, 24), Event("aten::relu_", 30, 40)),
        Event("gloo:all_reduce", 38, 60, annotates=True, thread=2, asynchronous=True),
        Event("Optimizer.step#SGD.step", 70, 95, annotates=True),
        *(Event("aten::_fused_sgd_", 75, 90), Event("aten::clone", 76, 80), Event("aten::copy_", 77, 79)),
    ]
    step_time = part("step_time")
    profiled = step_time.Profiled(step_time.list_operations(events), 0, 100, 1)
    account = part("modelling.intervals").account_for(profiled.intervals, profiled.start, profiled.end)
    # DDP's annotation is none of its operations; the optimizer's copies are the optimizer's.
    assert account.classes == {"convolution": 20, "elementwise": 10, "communication": 22, "optimizer": 25}
    assert (account.idle, account.overlap) == (100 - 20 - 10 - 20 - 25, 2)


class Fake:
    """A profiler that records what the stage below says that it did."""

    def __init__(self, events: list[Event]) -> None:
        self.profiler = SimpleNamespace(kineto_results=SimpleNamespace(events=lambda: events))

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def pretend(monkeypatch: pytest.MonkeyPatch, runs_kernels: bool) -> Any:
    """Pretend that there is a GPU; return the stage."""
    step_time, events = part("step_time"), []

    class Stage(part("timing").Stage):
        def take(self) -> None:
            now = time.time_ns()
            time.sleep(0.001)
            if runs_kernels:
                events.append(Event("sm90_xmma_fprop", now, time.time_ns(), True))

    monkeypatch.setattr(step_time, "profile", lambda **_: Fake(events))
    monkeypatch.setattr(step_time, "read_clock", lambda _: time.perf_counter())
    monkeypatch.setattr(step_time, "barrier", lambda _: None)
    return Stage("train", 4, SimpleNamespace(device=torch.device("cuda", 0), size=1, rank=0))


def test_only_the_steps_after_the_first_ones_count(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, step_time = pretend(monkeypatch, runs_kernels=True), part("step_time")
    found = step_time.describe_steps(step_time.profile_window(stage, 5), on_gpu=True)
    assert found["classes"]["convolution"]["calls_a_step"] == 1
    assert found["classes"]["convolution"]["milliseconds_a_step"] >= 1


def test_a_driver_that_forbids_profiling_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = pretend(monkeypatch, runs_kernels=False)
    with pytest.raises(
        InputError, match=r"recorded no kernel of the GPU.*NVreg_RestrictProfilingToAdminUsers=0"
    ) as caught:
        part("step_time").profile_window(stage, 5)
    assert len(str(caught.value).splitlines()) == 1


# Names.


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::convolution_backward", "convolution"),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", "convolution"),
        ("aten::addmm", "convolution"),
        ("sm90_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "convolution"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNN", "convolution"),
        ("pytorch_flash::flash_fwd_kernel", "convolution"),
        ("aten::native_batch_norm", "normalisation"),
        ("aten::native_batch_norm_backward", "normalisation"),
        ("autograd::engine::evaluate_function: NativeBatchNormBackward0", "normalisation"),
        ("aten::native_layer_norm", "normalisation"),
        *((f"{work}_{way}", "normalisation") for work in ("sum", "finish", "apply") for way in ("forward", "backward")),
        ("aten::_fused_sgd_", "optimizer"),
        ("aten::lerp_", "optimizer"),
        ("Optimizer.step#SGD.step", "optimizer"),
        ("Optimizer.zero_grad#SGD.zero_grad", "optimizer"),
        ("aten::_amp_foreach_non_finite_check_and_unscale_", "optimizer"),
        ("void at::native::multi_tensor_apply_kernel<FusedSgdMathFunctor>", "optimizer"),
        ("aten::threshold_backward", "elementwise"),
        ("aten::clamp_min_", "elementwise"),
        ("aten::add_", "elementwise"),
        ("ReluBackward0", "elementwise"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<float>>", "elementwise"),
        ("aten::max_pool2d_with_indices_backward", "pooling"),
        ("AvgPool2DBackward0", "pooling"),
        ("gloo:all_reduce", "communication"),
        ("c10d::allreduce_", "communication"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "communication"),
        ("void dali::kernels::SliceFlipNormalizePermuteKernel<float, unsigned char>", "decoding"),
        ("void nvjpeg::ycbcr_to_format_kernel_roi<0>", "decoding"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("Memset (Device)", "copies"),
        ("aten::copy_", "copies"),
        ("aten::_to_copy", "copies"),
        ("aten::to", "copies"),
        ("ToCopyBackward0", "copies"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<float>", "copies"),
        ("void cudnn::ops::nhwcToNchwKernel<__nv_bfloat16, float>", "copies"),
        ("aten::empty", "other"),
        ("aten::as_strided", "other"),
        ("aten::topk", "elementwise"),
        ("LogSoftmaxBackward0", "other"),
        ("DistributedDataParallel.forward", "other"),
        ("something else", "other"),
    ],
)
def test_a_name_goes_to_its_class(name: str, kind: str) -> None:
    assert part("modelling.step_profile").class_of(name) == kind


def test_each_kind_of_kernel_has_a_class_or_is_other() -> None:
    profile = part("modelling.step_profile")
    kinds = {kind for kind, _ in profile.KINDS}
    assert kinds - profile.CLASSES.keys() == {"loss", "reductions", "allocation and views"}
    assert profile.CLASSES.keys() <= kinds


def test_recorded_kernels_keep_their_kinds() -> None:
    """The kernels that the record of the H200 names take no more time than it gives for their kinds."""
    profile = part("modelling.step_profile")
    for case in recorded.read("h200/gpu-model.json")["cases"].values():
        found: dict[str, Any] = (case["result"] or {}).get("profile") or {"longest": []}
        sums: dict[str, float] = defaultdict(float)
        for each in found["longest"]:
            sums[profile.classify_kernel(each["kernel"])] += each["milliseconds_a_step"]
        for kind, milliseconds in sums.items():
            assert milliseconds <= found["milliseconds_a_step"][kind] + 0.01, kind


# The command.


def check_profile(record: dict[str, Any]) -> None:
    """A record of a CPU: its sums, and classes that each step has."""
    check_sums(record)
    milliseconds = {name: each["milliseconds_a_step"] for name, each in record["profile"]["classes"].items()}
    for name in ("convolution", "normalisation", "elementwise", "optimizer", "copies"):
        assert milliseconds[name] > 0
    wall = record["profile"]["wall"]["milliseconds_a_step"]
    assert milliseconds["other"] < 0.3 * wall  # of so small images; of ImageNet's it is a fiftieth


def check_sums(record: dict[str, Any]) -> None:
    """A record's classes and idle time, less its overlap, are its step."""
    profile = record["profile"]
    milliseconds = {name: each["milliseconds_a_step"] for name, each in profile["classes"].items()}
    wall, idle, overlap = (profile[name]["milliseconds_a_step"] for name in ("wall", "idle", "overlap"))
    assert sum(milliseconds.values()) + idle - overlap == pytest.approx(wall, rel=0.02)
    assert idle >= 0 and overlap >= 0 and profile["num_steps"] >= 5
    for each in (*profile["classes"].values(), profile["idle"]):
        assert each["share"] == pytest.approx(each["milliseconds_a_step"] / wall, abs=1e-4)
    assert list(milliseconds.values()) == sorted(milliseconds.values(), reverse=True)
    assert 5 <= len(profile["longest"]) <= 12
    assert record["unprofiled"]["milliseconds_a_step"]["median"] > 0


def check_table(record: dict[str, Any], stdout: str) -> None:
    """The command has printed a row for each class."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in stdout.splitlines()]
    found = {row[0]: row[2] for row in rows if len(row) >= 3 and row[2].endswith("%")}
    names = {*record["profile"]["classes"], "idle", "the step"}
    assert names <= found.keys() <= names | {"counted several times"}
    assert found["idle"] == f"{record['profile']['idle']['share']:.1%}" and found["the step"] == "100.0%"


def test_the_command_tells_where_the_time_goes(ranks: Ranks, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    done = ranks.run_command(tmp_path, SCRIPT, "--data", digits, "--model", "resnet10t", "--out", out, *WORDS)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    check_profile(record)
    check_table(record, done.stdout)
    assert (record["what"], record["mode"], record["model"]) == ("profile of a step", "train", "resnet10t")
    assert set(record["unprofiled"]["milliseconds_a_batch"]) == {"wait", "take", "read", "decode", "copy", "step"}
    assert "communication" not in record["profile"]["classes"] and record["profile"]["overlap"]["share"] == 0
    # Progress, and the picture.
    assert re.search(r"^profiling \d+ steps; \d+ s left$", done.stderr, re.MULTILINE), done.stderr
    assert "picture: " in done.stderr and "profile.png" in done.stderr
    records, plots = part("reports.records"), part("reports.plots")
    assert plots.is_current(tmp_path / "profile.png", records.read_record(out))
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix) == ["profile.json", "profile.png"]


def test_two_processes_have_communication(ranks: Ranks, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    words = ["--data", str(digits), "--mode", "model", "--model", "test_resnet", "--out", str(out), *WORDS]
    group = ranks.start("script", 2, tmp_path, script=str(SCRIPT), arguments=words, port=free_port())
    ended = ranks.wait(120)
    assert [rank.status for rank in ended] == [0, 0], ended
    record = json.loads(out.read_text())
    check_profile(record)
    check_table(record, (group / "stdout-0").read_text())
    assert (group / "stdout-1").read_text() == "" and record["mode"] == "model" and record["num_processes"] == 2
    assert record["profile"]["classes"]["communication"]["milliseconds_a_step"] > 0
    assert any(each["class"] == "communication" for each in record["profile"]["longest"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mode", "read"), r"--profile needs a training step: give --mode train \(or none\) or --mode model, not"),
        (("--recipe", "quick_24"), "--profile and --recipe exclude each other: give one of them"),
        (("--tune",), "--profile and --tune exclude each other: give one of them"),
        (("--out", "profile.png"), "profile.png is the name of the picture"),
        (("--out", "nowhere/profile.json"), "nowhere does not exist: create it"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(words: tuple[str, ...], message: str) -> None:
    options = part("throughput").read_options(["--profile", *words])
    with pytest.raises(InputError, match=message) as caught:
        options.check()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_is_profiled_by_its_kernels(digits: Path, tmp_path: Path) -> None:
    world = World(device=torch.device("cuda", 0))
    synthetic = LoaderConfig(backend="synthetic")
    loader = build_loader(Split(digits, "train"), TrainTransform(64), 32, world, config=synthetic)
    setting = part("stages").Setting(
        batch_size=32, size=64, model="resnet10t", amp="none", mode="model", run_dir=tmp_path, seconds=0.1
    )
    record = part("step_time").profile_training(setting, loader, lambda *_: None)
    check_sums(record)
    assert record["profile"]["classes"]["convolution"]["milliseconds_a_step"] > 0
    assert record["profile"]["classes"]["optimizer"]["milliseconds_a_step"] > 0
    assert record["profile"]["counted"] == "kernels"


# The report.


@contextmanager
def drawn(content: dict[str, Any]) -> Iterator[Any]:
    """The axes of the picture of a record."""
    record = part("reports.records").Record(Path("record.json"), "record.json", content)
    (picture,) = part("reports.plots").list_pictures(record)
    assert picture.name == "record.png"
    figure = picture.draw()
    yield figure.axes[0]
    part("reports.plots").plt.close(figure)


def test_bars_are_the_classes_and_idle_time_the_longest_first() -> None:
    content = recorded.profile()
    profile = content["profile"]
    wanted = {name: each["milliseconds_a_step"] for name, each in profile["classes"].items()}
    wanted["idle"] = profile["idle"]["milliseconds_a_step"]
    names = sorted(wanted, key=lambda name: -wanted[name])
    with drawn(content) as ax:
        assert [label.get_text() for label in ax.get_yticklabels()] == names
        assert [bar.get_width() for bar in ax.patches] == [wanted[name] for name in names]
        colors = [bar.get_facecolor() for bar in ax.patches]
        idle = names.index("idle")
        assert colors.count(colors[idle]) == 1 and len(set(colors)) == 2
        assert f"{profile['idle']['share']:.1%}" in ax.texts[idle].get_text()


@pytest.mark.parametrize(("times", "warns"), [(1.1, False), (1.6, True)])
def test_a_step_that_the_profiler_slows_down_much_is_not_trusted(times: float, warns: bool) -> None:
    content = recorded.profile()
    content["unprofiled"]["milliseconds_a_step"] = recorded.summary(200 / times)
    notes = [note for table in part("reports.kinds").make_tables(content) for note in table.notes]
    assert any("may differ from those of training" in note.replace("\n", " ") for note in notes) == warns


def test_a_record_of_two_processes_with_overlap_says_so() -> None:
    content: dict[str, Any] = recorded.profile() | {"num_processes": 2}
    content["profile"] |= {"overlap": {"milliseconds_a_step": 4.72, "share": 0.0236}}
    notes = [note for table in part("reports.kinds").make_tables(content) for note in table.notes]
    assert any("of rank 0" in note for note in notes) and any("Counted several times" in note for note in notes)
    with drawn(content) as ax:
        assert any("4.72 ms of a step count in several classes" in text.get_text() for text in ax.figure.texts)
