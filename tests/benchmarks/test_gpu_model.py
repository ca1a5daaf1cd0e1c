"""The rates of a training step without data: every kind of case runs on a CPU, and no outcome loses the others."""

import argparse
import ctypes
import importlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import recorded
from helpers.commands import CHECKOUT, run_command
from torch import nn

from loaders import World
from prep.errors import InputError

BENCHMARKS = CHECKOUT / "benchmarks"
SCRIPT = BENCHMARKS / "gpu_model.py"
BLOCKED = ("nvidia.dali", "tyro", "psutil", "rich", "datasets", "simplejpeg", "captum", "gradio", "webdataset")
BLOCKER = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in {BLOCKED}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Blocker())
"""
RESULT = {"images_per_second": recorded.summary(90, 100, 110), "seconds_ready": 1.0, "memory_gib": None}
STAND_IN = f"""
import os, signal, sys, threading
def answer_cases(job):
    request = yield {recorded.ORIGIN}
    while True:
        name = request["name"]
        if name == "hangs":
            threading.Event().wait()
        if name == "dies":
            print("some words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        outcome = {{"status": "done", "reason": None, "seconds": 0.1, "result": {RESULT}}}
        request = yield outcome | ({{"is_broken": True}} if name == "breaks" else {{}})
def exit_at_start(job):
    sys.exit("the GPU has fallen off the bus")
    yield
"""


def part(name: str) -> Any:
    return importlib.import_module(f"modelling.{name}")


def make_case(name: str, **options: Any) -> Any:
    """A small case that may begin at any time."""
    small = {"expected_seconds": 0.0, "size": 32, "batch_size": 2, "amp": "none", "is_small": True}
    return part("cases").Case(**{"name": name, "kind": "rate"} | small | options)


@pytest.fixture
def command() -> Any:
    return importlib.import_module("gpu_model")


@pytest.fixture
def make_runner(command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that makes a runner with STAND_IN as its worker; `kept` lists the records that it wrote."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(CHECKOUT)]))
    monkeypatch.setattr(command, "ENTRY", "stand_in:answer_cases")
    monkeypatch.setattr(command, "has_nvidia_gpu", lambda: True)

    def make(minutes: float = 10.0) -> Any:
        kept: list[list[str]] = []
        monkeypatch.setattr(command, "write_json", lambda out, content: kept.append(list(content["cases"])))
        given = {"minutes": minutes, "seconds": 0.1, "repetitions": 3, "device": "auto", "batch_size": None}
        runner = command.Runner(argparse.Namespace(**given, size=None, out=tmp_path / "out.json"), time.monotonic())
        runner.kept = kept
        return runner

    return make


def fail_with(error: Exception) -> Callable[..., None]:
    """A function that raises this error."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def list_outcomes(runner: Any) -> dict[str, str]:
    return {name: each["status"] for name, each in runner.results.items()}


# The command on a CPU

REHEARSED = ["machine", "eager-224-bf16", "ours-224-bf16", "check-bf16", "ours-fused-224-bf16-graph"]  # cases
if "PENSTOCK_SOAK_GPU_MODEL" in os.environ:
    REHEARSED = ["machine", "eager*", "ours*", "fused-224-bf16"]


def test_the_command_runs_on_a_bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton's interpreter runs the kernels on a CPU")
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(CHECKOUT)]))
    out = tmp_path / "record.json"
    options = ("--device", "cpu", "--minutes", "8", "--seconds", "0.01", "--out", out)
    done = run_command(SCRIPT, *options, "--only", *REHEARSED, timeout=500)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert (record["what"], record["device"], record["is_rehearsal"]) == ("gpu model", "cpu", True)
    assert record["command"].startswith("python benchmarks/gpu_model.py --device cpu --minutes 8 --seconds 0.01")
    assert record["commit"] and record["hardware"]["cpu"]
    assert record["versions"].keys() >= {"torch", "timm", "numpy", "python", "triton"}

    cases = record["cases"]
    expected = [case.name for case in part("cases").choose_cases(REHEARSED)]
    assert list(cases) == expected
    graph = cases.pop("ours-fused-224-bf16-graph")
    assert (graph["status"], graph["reason"]) == ("skipped", "a CUDA graph needs a GPU")
    assert {name: each["status"] for name, each in cases.items() if each["status"] != "done"} == {}
    for name, each in cases.items():
        if each["settings"]:
            rate = each["result"]["images_per_second"]
            assert len(rate["repetitions"]) == 3 and 0 < rate["min"] <= rate["median"] <= rate["max"], name
            assert each["result"]["seconds_ready"] > 0
            assert (each["settings"]["batch_size"], each["settings"]["size"]) == (2, 32)
    for name in {"eager-224-bf16", "fused-224-bf16"} & cases.keys():
        kinds = cases[name]["result"]["profile"]["milliseconds_a_step"]
        assert kinds["convolution and matmul"] > 0
    assert set(cases["check-bf16"]["result"]["errors"]) >= {"output", "input gradient", "running variance"}
    # A line of progress for each case, then the tables.
    assert [line.partition(":")[0] for line in done.stderr.splitlines() if ": " in line][-len(expected) :] == expected
    assert all(name in done.stdout for name in ("A rehearsal on a CPU", "milliseconds per step", *expected))
    assert len(done.stdout.splitlines()) <= 60 and len(done.stdout) < 12_000  # the end of a log has room for it


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--only", "nosuch*"), "unknown case nosuch*: --list names all cases"),
        (("--minutes", "0"), "--minutes must be more than 0, got 0.0"),
        (("--minutes", "nan"), "--minutes must be more than 0, got nan"),
        (("--seconds", "-1"), "--seconds must be more than 0, got -1.0"),
        (("--repetitions", "2"), "--repetitions must be at least 3, got 2"),
        (("--batch-size", "1"), "--batch-size must be at least 2, got 1"),
        (("--size", "16"), "--size must be at least 32 pixels, got 16"),
        (("--out", "no/such/folder.json"), "--out must be a file in an existing folder, got no/such/folder.json"),
        (("--device", "cuda"), "--device cuda needs an NVIDIA GPU and this machine shows none: choose --device cpu"),
    ],
)
def test_bad_input_is_one_line(
    command: Any, options: tuple[str, ...], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["gpu_model.py", *options])
    with pytest.raises(InputError) as caught:
        command.main()
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_a_gpu_that_torch_cannot_use_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"an NVIDIA GPU is here but torch .* cannot use it: update the driver"):
        next(part("measure").answer_cases({"device": "cuda"}))


def test_a_minute_that_ends_before_the_worker_is_ready_is_one_line(tmp_path: Path) -> None:
    done = run_command(SCRIPT, "--device", "cpu", "--minutes", "0.002", "--out", tmp_path / "record.json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the measuring process was not ready after 0.") and "--minutes" in done.stderr
    assert not (tmp_path / "record.json").exists()


# The list


def test_the_list_is_in_order_of_worth_and_compilation_comes_late() -> None:
    done = run_command(SCRIPT, "--list")
    names = done.stdout.split()
    cases = part("cases").list_cases()
    assert names == [case.name for case in cases] and len(set(names)) == len(names)
    first = ["machine", "eager-224-bf16", "eager-224-fp16", "ours-224-bf16", "check-bf16", "ours-fused-224-bf16"]
    assert names[:6] == first
    slow = [i for i, case in enumerate(cases) if case.compile != "none"]
    assert min(slow) > max(names.index(f"{how}-{size}-bf16") for how in ("eager", "fused") for size in (160, 88))
    assert names[-1] == "compile-224-bf16-max-autotune"
    # What comes before compilation is estimated to take little more than a minute, besides the start.
    assert sum(case.expected_seconds for case in cases[: min(slow)]) < 85
    for case in cases:
        assert not case.needs or names.index(case.needs) < names.index(case.name)
        assert case.fused == bool(case.needs)


def test_a_chosen_case_brings_its_check() -> None:
    assert [case.name for case in part("cases").choose_cases(["fused-88-bf16"])] == ["check-bf16", "fused-88-bf16"]


def test_sizes_are_small_on_a_cpu_alone_unless_given() -> None:
    (case,) = part("cases").choose_cases(["eager-160-bf16"])
    assert case.resized(None, None, True) == case
    assert (case.resized(64, 96, True).batch_size, case.resized(64, 96, True).size) == (64, 96)
    small = case.resized(None, None, False)
    assert (small.batch_size, small.size, small.is_small) == (2, 32, True)
    assert (case.resized(8, 64, False).batch_size, case.resized(8, 64, False).size) == (8, 64)


# Outcomes


def test_the_deadline_cuts_a_case_and_keeps_what_was_there(make_runner: Callable[..., Any]) -> None:
    runner = make_runner(minutes=0.05)
    runner.run_cases([make_case("first"), make_case("hangs"), make_case("last")])
    assert time.monotonic() - runner.started < 60 * 0.05 + 10
    assert list_outcomes(runner) == {"first": "done", "hangs": "cut", "last": "skipped"}
    assert runner.results["first"]["result"] == RESULT
    assert "deadline" in runner.results["hangs"]["reason"] and runner.results["last"]["reason"]
    assert runner.kept == [["first"], ["first", "hangs"], ["first", "hangs", "last"]]


def test_a_case_that_would_begin_too_late_is_skipped_and_a_shorter_one_is_not(make_runner: Callable[..., Any]) -> None:
    runner = make_runner(minutes=1.0)
    runner.run_cases([make_case("long", expected_seconds=61.0), make_case("short", expected_seconds=1.0)])
    assert list_outcomes(runner) == {"long": "skipped", "short": "done"}
    assert runner.results["long"]["reason"].startswith("it takes about 61 s, ")


def test_a_case_past_its_own_limit_hangs_and_the_next_ones_are_measured(
    make_runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner()
    monkeypatch.setattr(part("cases").Case, "limit_seconds", lambda case, _: 0.5 if case.name == "hangs" else 600.0)
    runner.run_cases([make_case("hangs"), make_case("next")])
    assert list_outcomes(runner) == {"hangs": "hung", "next": "done"}


def test_a_case_that_breaks_the_worker_or_its_device_is_a_result(make_runner: Callable[..., Any]) -> None:
    runner = make_runner()
    runner.run_cases([make_case(name) for name in ("dies", "one", "breaks", "two")])
    assert list_outcomes(runner) == {"dies": "crashed", "one": "done", "breaks": "done", "two": "done"}
    assert runner.results["dies"]["reason"] == "SIGSEGV; some words"
    assert "is_broken" not in runner.results["breaks"]


def test_a_worker_that_cannot_be_started_again_loses_nothing(
    command: Any, make_runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner()
    monkeypatch.setattr(
        command, "write_json", lambda *_: monkeypatch.setattr(command, "ENTRY", "stand_in:exit_at_start")
    )
    runner.run_cases([make_case(name) for name in ("first", "dies", "one", "two")])
    assert list_outcomes(runner) == {"first": "done", "dies": "crashed", "one": "skipped", "two": "skipped"}
    assert "ended at its start (status 1; the GPU has fallen off the bus)" in runner.results["one"]["reason"]
    with pytest.raises(InputError, match=r"ended at its start .*fallen off"):
        make_runner().run_cases([make_case("first")])  # its first worker ends at its start


def test_kernels_that_are_wrong_are_not_timed(make_runner: Callable[..., Any]) -> None:
    runner = make_runner()
    runner.results["check"] = {"status": "wrong", "reason": "output is off by 1.0e+00", "settings": {}, "result": {}}
    runner.run_cases([make_case("fused", fused=True, needs="check"), make_case("eager")])
    assert list_outcomes(runner) == {"check": "wrong", "fused": "skipped", "eager": "done"}
    assert runner.results["fused"]["reason"] == "check is wrong: output is off by 1.0e+00"


def test_the_worker_ends_with_the_command_even_during_a_case() -> None:
    if sys.platform != "linux":
        pytest.skip("the kernel of another system does not end it")
    # The command is killed while its worker begins a case that takes minutes.
    program = """
import sys
from dataclasses import asdict
from modelling.cases import Case
from worker import start_worker
job = {"device": "cpu", "seconds": 1000, "repetitions": 3, "arguments": []}
with start_worker("modelling.measure:answer_cases", job) as worker:
    assert "commit" in worker.ask(120)
    worker.send(asdict(Case("long", "rate", 0, size=32, batch_size=2, is_small=True)))
    print(worker.process.pid, flush=True)
    sys.stdin.read()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(CHECKOUT)])}
    words, pipe = [sys.executable, "-c", program], subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment) as started:
        assert started.stdout is not None
        handle = os.pidfd_open(int(started.stdout.readline()))
        started.kill()
        assert select.select([handle], [], [], 60)[0], "the worker outlived the command"
        os.close(handle)


def test_an_error_is_the_cases_result(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = part("measure")
    timing, world = measure.Timing(0.01, 3), World()
    outcome = measure.measure_outcome(make_case("odd", network="resnet5000"), timing, world)
    assert (outcome["status"], outcome["result"]) == ("failed", None) and "resnet5000" in outcome["reason"]
    assert "\n" not in outcome["reason"] and "is_broken" not in outcome
    # An error after which the device does not answer.
    monkeypatch.setattr(measure, "read_clock", fail_with(RuntimeError("an illegal memory access")))
    assert measure.measure_outcome(make_case("odd", network="resnet5000"), timing, world)["is_broken"]
    monkeypatch.undo()
    # Kernels that compute something else.
    wrong = {"errors": {"output": float("nan")}, "limits": {"output": 1e-4}, "type": "float32"}
    monkeypatch.setattr(part("measure"), "measure_errors", lambda amp, device: wrong)
    outcome = measure.measure_outcome(make_case("check", kind="check"), timing, world)
    assert (outcome["status"], outcome["result"]) == ("wrong", wrong)
    assert outcome["reason"] == "output is off by nan in float32, 1.0e-04 is allowed"


def test_a_forbidden_profile_loses_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = part("measure")
    monkeypatch.setattr(torch.profiler, "profile", fail_with(RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")))
    outcome = measure.measure_outcome(make_case("eager", profiled=True), measure.Timing(0.01, 3), World())
    assert outcome["result"]["images_per_second"]["median"] > 0
    assert "PRIVILEGES" in outcome["result"]["profile_failure"] and "profile" not in outcome["result"]


def test_a_compiled_step_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dynamo and without inductor, because compiling its C++ takes minutes here."""
    measure, seen = part("measure"), []

    def compile_eagerly(model: nn.Module, **options: Any) -> None:
        seen.append(options)
        model._compiled_call_impl = torch.compile(model._call_impl, backend="eager", dynamic=options["dynamic"])

    monkeypatch.setattr(nn.Module, "compile", compile_eagerly)
    outcome = measure.measure_outcome(make_case("compiled", compile="default"), measure.Timing(0.01, 3), World())
    assert seen == [{"mode": "default", "dynamic": False}] and outcome["status"] == "done", outcome


# What is told of it


def test_the_tables_of_a_record() -> None:
    tables, reports = importlib.import_module("tables"), importlib.import_module("reports.gpu_runs")
    lines = tables.to_markdown(reports.tables_of_model(recorded.gpu_model())).splitlines()
    for line in (
        "| eager-224-bf16 | resnet50, 224 px, batch 256, bf16 | 4,000 (3,900 to 4,010) | 1.00 × | 5.2 | 22.1 |  |",
        "| fused-224-bf16 | resnet50, 224 px, batch 256, bf16; BatchNorm fused | 5,000 (4,990 to 5,100) | 1.25 × "
        "| 3.3 | 18.0 |  |",
        "| machine |  |  |  |  |  | copy 3 TB/s, matmul in bf16 710 TFLOP/s |",
        "| check-bf16 |  |  |  |  |  | right: 2 quantities; nearest to its limit: output, 1.0e-03 |",
        "| compile-224-bf16-default | resnet50, 224 px, batch 256, bf16; torch.compile, default |  |  |  |  | skipped: "
        "needs about 45 s, 3 s were left |",
        "| milliseconds per step | eager-224-bf16 | fused-224-bf16 |",
        "| wall clock | 64.0 | 51.2 |",
        "| all kernels | 50.5 | 32.2 |",
        "| BatchNorm | 30.5 |  |",
        "| BatchNorm, fused |  | 12.2 |",
    ):
        assert line in lines, line
    assert not any("rehearsal" in line for line in lines)
    rehearsal = tables.to_markdown(reports.tables_of_model(recorded.gpu_model() | {"is_rehearsal": True}))
    assert "its figures are not valid for a GPU" in rehearsal


@pytest.mark.parametrize("name", ["h200/gpu-model.json", "h200/small-sizes.json"])
def test_recorded_models_are_readable(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    reports = importlib.import_module("reports.gpu_runs")
    record = recorded.read(name)
    cases, *others = reports.tables_of_model(record)
    assert [row[0] for row in cases.rows] == list(record["cases"])
    # In the terminal each case has one line, and all fits into what the end of a log keeps.
    importlib.import_module("tables").print_tables([cases, *others])
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert len(lines) <= 60 and len(shown) < 12_000
    assert [line.split()[0] for line in lines[1 : 1 + len(cases.rows)]] == list(record["cases"])


def test_a_records_gpu_is_named_with_driver_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    record = importlib.import_module("record")
    properties = SimpleNamespace(name="Some GPU", total_memory=79 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    class Nvml:
        def nvmlInit_v2(self) -> int:  # noqa: N802
            return 0

        def nvmlSystemGetDriverVersion(self, buffer: Any, size: int) -> int:  # noqa: N802
            buffer.value = b"600.10.1"
            return 0

    def load(name: str) -> Nvml:
        assert name == "libnvidia-ml.so.1"
        return Nvml()

    world = World(device=torch.device("cuda", 0))
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert record.describe_gpu(world) == "Some GPU, driver 600.10.1, 79 GiB"
    monkeypatch.setattr(ctypes, "CDLL", fail_with(OSError("no such library")))
    assert record.describe_gpu(world) == "Some GPU, 79 GiB"
    assert record.describe_gpu(World()) is None
