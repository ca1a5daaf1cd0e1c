"""The rates of a training step without data: every kind of case runs on a CPU, and no outcome loses the others."""

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
BLOCKED = ("nvidia.dali", "tyro", "datasets", "simplejpeg", "captum", "gradio", "webdataset")
BLOCKER = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in {BLOCKED}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Blocker())
"""
RESULT = {"images_per_second": recorded.summary(90, 100, 110), "seconds_ready": 1.0, "memory_gib": None}
STAND_IN = """
import json, os, signal, sys, threading
print(json.dumps({"device": "cuda", "origin": json.loads(sys.argv[1])}), flush=True)
for line in sys.stdin:
    name = json.loads(line)["name"]
    if name == "hangs":
        threading.Event().wait()
    if name == "dies":
        print("some words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    outcome = {"status": "done", "reason": None, "seconds": 0.1, "result": json.loads(sys.argv[2])}
    print(json.dumps(outcome | ({"is_broken": True} if name == "breaks" else {})), flush=True)
    if name == "breaks":
        break
"""


def part(name: str) -> Any:
    return importlib.import_module(f"modelling.{name}")


def make_case(name: str, **options: Any) -> Any:
    """A small case that may begin at any time."""
    small = {"expected_seconds": 0.0, "size": 32, "batch_size": 2, "amp": "none", "is_small": True}
    return part("cases").Case(**{"name": name, "kind": "rate"} | small | options)


@pytest.fixture
def make_runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that makes a runner with STAND_IN as its process; `kept` lists the results at each `keep`."""
    runner = part("runner")
    words = (sys.executable, "-c", STAND_IN, json.dumps(recorded.ORIGIN), json.dumps(RESULT))
    monkeypatch.setattr(runner, "WORKER", words)

    def make(minutes: float = 10.0) -> Any:
        options = runner.Options("auto", minutes, 0.1, 3, None, None, ())
        kept: list[dict[str, Any]] = []
        made = runner.Runner(options, tmp_path, time.monotonic(), lambda each, _: kept.append(dict(each.results)))
        made.kept = kept
        return made

    return make


def list_outcomes(runner: Any) -> dict[str, str]:
    return {name: each["status"] for name, each in runner.results.items()}


# The command on a CPU

REHEARSED = ["machine", "eager-224-bf16", "ours-224-bf16", "check-bf16", "fused-224-bf16-graph"]  # cases
if "PENSTOCK_SOAK_GPU_MODEL" in os.environ:
    REHEARSED = ["machine", "eager*", "ours*", "fused-224-bf16*"]


def test_the_command_runs_on_a_cpu_without_dali_tyro_or_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert record["commit"] and record["versions"]["torch"] and record["hardware"]["cpu"]

    cases = record["cases"]
    expected = part("cases").choose_cases(part("cases").build_cases(), REHEARSED)
    assert list(cases) == [case.name for case in expected]
    graph = cases.pop("fused-224-bf16-graph")
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

    lines = done.stdout.splitlines()
    assert len(lines) <= 60 and len(done.stdout) < 12_000 and max(map(len, lines)) <= 120
    assert [line.split()[0] for line in lines[2 : 2 + len(expected)]] == [case.name for case in expected]
    assert lines[0].startswith("rehearsal on a CPU, not valid for a GPU")


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
    ],
)
def test_bad_input_is_one_line(options: tuple[str, ...], complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = importlib.import_module("gpu_model")
    monkeypatch.setattr(sys, "argv", ["gpu_model.py", *options])
    with pytest.raises(InputError) as caught:
        command.main()
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_gpu_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "record.json"
    done = run_command(SCRIPT, "--device", "cuda", "--out", out)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: --device cuda needs an NVIDIA GPU and this machine shows none: choose --device cpu\n"
    assert not out.exists()


def test_a_minute_that_ends_before_the_process_is_ready_is_one_line() -> None:
    done = run_command(SCRIPT, "--device", "cpu", "--minutes", "0.002")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the measuring process was not ready after 0.") and "--minutes" in done.stderr


# The list


def test_the_list_is_in_order_of_worth_and_compilation_comes_late() -> None:
    done = run_command(SCRIPT, "--list")
    names = done.stdout.split()
    cases = part("cases").build_cases()
    assert names == [case.name for case in cases] and len(set(names)) == len(names)
    first = ["machine", "eager-224-bf16", "eager-224-fp16", "ours-224-bf16", "check-bf16", "fused-224-bf16"]
    assert names[:6] == first
    slow = [i for i, case in enumerate(cases) if case.compile != "none"]
    assert min(slow) > max(names.index(f"{how}-{size}-bf16") for how in ("eager", "fused") for size in (160, 128, 88))
    assert names[-1] == "compile-224-bf16-max-autotune"
    # What comes before compilation is estimated to fit into about a minute, besides the start.
    assert sum(case.expected_seconds for case in cases[: min(slow)]) < 75
    for case in cases:
        assert not case.needs or names.index(case.needs) < names.index(case.name)
        assert case.fused == bool(case.needs)


def test_a_chosen_case_brings_its_check() -> None:
    cases = part("cases")
    chosen = [case.name for case in cases.choose_cases(cases.build_cases(), ["fused-88-bf16"])]
    assert chosen == ["check-bf16", "fused-88-bf16"]


def test_sizes_are_small_on_a_cpu_alone_unless_given() -> None:
    cases = part("cases")
    (case,) = cases.choose_cases(cases.build_cases(), ["eager-160-bf16"])
    assert case.resized(None, None, True) == case
    assert (case.resized(64, 96, True).batch_size, case.resized(64, 96, True).size) == (64, 96)
    small = case.resized(None, None, False)
    assert (small.batch_size, small.size, small.is_small) == (2, 32, True)
    assert (case.resized(8, 64, False).batch_size, case.resized(8, 64, False).size) == (8, 64)


# Outcomes


def test_the_deadline_cuts_a_case_and_keeps_what_was_there(make_runner: Callable[..., Any]) -> None:
    runner = make_runner(minutes=0.05)
    runner.run_cases([make_case("first"), make_case("hangs"), make_case("last")])
    assert time.monotonic() - runner.started < 60 * 0.05 + part("runner").LONGEST_END
    assert list_outcomes(runner) == {"first": "done", "hangs": "cut", "last": "skipped"}
    assert runner.results["first"]["result"] == RESULT
    assert "deadline" in runner.results["hangs"]["reason"] and runner.results["last"]["reason"]
    assert [list(each) for each in runner.kept] == [["first"], ["first", "hangs"], ["first", "hangs", "last"]]


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


def test_a_case_that_breaks_the_process_or_its_device_is_a_result(make_runner: Callable[..., Any]) -> None:
    runner = make_runner()
    runner.run_cases([make_case(name) for name in ("dies", "one", "breaks", "two")])
    assert list_outcomes(runner) == {"dies": "crashed", "one": "done", "breaks": "done", "two": "done"}
    assert runner.results["dies"]["reason"] == "SIGSEGV; some words"
    assert "is_broken" not in runner.results["breaks"]


def test_a_process_that_cannot_be_started_again_loses_nothing(
    make_runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner()
    gone = (sys.executable, "-c", "raise SystemExit('the GPU has fallen off the bus')")
    runner.keep = lambda *_: monkeypatch.setattr(part("runner"), "WORKER", gone)
    runner.run_cases([make_case(name) for name in ("first", "dies", "one", "two")])
    assert list_outcomes(runner) == {"first": "done", "dies": "crashed", "one": "skipped", "two": "skipped"}
    assert "ended at its start (status 1; the GPU has fallen off the bus)" in runner.results["one"]["reason"]
    with pytest.raises(InputError, match=r"ended at its start .*fallen off"):
        make_runner().run_cases([make_case("first")])  # its first process ends at its start


def test_kernels_that_are_wrong_are_not_timed(make_runner: Callable[..., Any]) -> None:
    runner = make_runner()
    runner.results["check"] = {"status": "wrong", "reason": "output is off by 1.0e+00", "settings": {}, "result": {}}
    runner.run_cases([make_case("fused", fused=True, needs="check"), make_case("eager")])
    assert list_outcomes(runner) == {"check": "wrong", "fused": "skipped", "eager": "done"}
    assert runner.results["fused"]["reason"] == "check is wrong: output is off by 1.0e+00"


def test_the_process_ends_with_the_command_that_started_it(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the kernel of another system does not end it")
    # The command is killed while its process waits for a case.
    program = f"""
import json, os, sys, time
sys.path.insert(0, {str(BENCHMARKS)!r})
from pathlib import Path
from modelling.runner import Options, Worker
worker = Worker(Options("cpu", 1, 1, 3, None, None, ()), Path({str(tmp_path)!r}))
assert "origin" in worker.receive(120)
print(worker.process.pid, flush=True)
sys.stdin.read()
"""
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        handle = os.pidfd_open(int(command.stdout.readline()))
        command.kill()
        assert select.select([handle], [], [], 60)[0], "the process outlived the command"
        os.close(handle)


def test_an_error_is_the_cases_result(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, measure = part("worker"), part("measure")
    job, cpu = {"seconds": 0.01, "repetitions": 3}, torch.device("cpu")
    outcome = worker.measure_outcome(measure, make_case("odd", network="resnet5000"), job, cpu)
    assert (outcome["status"], outcome["result"]) == ("failed", None) and "resnet5000" in outcome["reason"]
    assert "\n" not in outcome["reason"]
    check = part("check")
    wrong = {"errors": {"output": float("nan")}, "limits": {"output": 1e-4}, "type": "float32"}
    monkeypatch.setattr(check, "measure_errors", lambda amp, device: wrong)
    outcome = worker.measure_outcome(measure, make_case("check", kind="check"), job, cpu)
    assert (outcome["status"], outcome["result"]) == ("wrong", wrong)
    assert outcome["reason"] == "output is off by nan in float32, 1.0e-04 is allowed"


def test_a_forbidden_profile_loses_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = part("measure")

    def forbid(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    monkeypatch.setattr(measure, "profile", forbid)
    timing, case = measure.Timing(0.01, 3), make_case("eager", profiled=True)
    result = measure.measure_case(case, timing, torch.device("cpu"))
    assert result["images_per_second"]["median"] > 0 and "PRIVILEGES" in result["profile_failure"]


def test_a_compiled_step_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dynamo and without inductor, because compiling its C++ takes minutes here."""
    measure, seen = part("measure"), []

    def compile_eagerly(model: nn.Module, **options: Any) -> None:
        seen.append(options)
        model._compiled_call_impl = torch.compile(model._call_impl, backend="eager", dynamic=options["dynamic"])

    monkeypatch.setattr(nn.Module, "compile", compile_eagerly)
    case = make_case("compiled", compile="default")
    result = measure.measure_case(case, measure.Timing(0.01, 3), torch.device("cpu"))
    assert seen == [{"mode": "default", "dynamic": False}] and result["images_per_second"]["median"] > 0


# What is told of it


def test_the_section_of_results(tmp_path: Path) -> None:
    document, reading = (importlib.import_module(f"reports.{name}") for name in ("document", "reading"))
    recorded.write(tmp_path, "h100/model.json", recorded.gpu_model())
    text = document.write_document(reading.read_records(tmp_path))
    assert "## A ResNet-50's training step on a GPU, without data" in text and "other kinds" not in text
    assert "### h100/model.json, on Some CPU, 16 cores, Some GPU, driver 600.1, 79 GiB" in text
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
        assert line in text.splitlines(), line
    assert "* command: `python benchmarks/some.py`" in text and "rehearsal" not in text


def test_a_rehearsal_says_that_it_is_one(tmp_path: Path) -> None:
    document, reading = (importlib.import_module(f"reports.{name}") for name in ("document", "reading"))
    recorded.write(tmp_path, "model.json", recorded.gpu_model() | {"is_rehearsal": True})
    text = document.write_document(reading.read_records(tmp_path))
    assert "its figures are not valid for a GPU" in text


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

    def fail(name: str) -> None:
        raise OSError(name)

    world = World(device=torch.device("cuda", 0))
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert record.describe_gpu(world) == "Some GPU, driver 600.10.1, 79 GiB"
    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert record.describe_gpu(world) == "Some GPU, 79 GiB"
    assert record.describe_gpu(World()) is None
