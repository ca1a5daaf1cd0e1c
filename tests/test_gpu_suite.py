"""The GPU suite, run without a GPU: every kind of case answers, what crashes or hangs is a result, and it goes on."""

import importlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKOUT, run_command

from loaders import InputError, Split, TrainTransform

BENCHMARKS = CHECKOUT / "benchmarks"
SCRIPT = BENCHMARKS / "gpu_suite.py"
NUM_IMAGES = 1437  # of the digits
SMALL = {"split": "train", "device": "cpu", "batch_size": 16, "size": 32, "repetitions": 5, "seconds": 0.05}
QUICK = ("--device", "cpu", "--batch-size", "16", "--size", "32", "--seconds", "0.05", "--images", "2000")
TINY = (*QUICK, "--models", "resnet10t", "--amp", "none")
ANSWERS = "python -c \"print('it went well')\""
DIES = 'python -c "import os; os.kill(os.getpid(), 11)"'
HANGS = 'python -c "import time; time.sleep(600)"'

Run = Callable[..., tuple[str, str]]


@pytest.fixture(autouse=True)
def beside_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def suite(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command on the digits in this process, its cases in theirs; what it prints and what it reports."""
    command = importlib.import_module("gpu_suite")
    places = ("--data", str(digits), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"))

    def run(*more: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["gpu_suite.py", *places, *TINY, *more])
        capsys.readouterr()
        command.main()
        shown = capsys.readouterr()
        return shown.out, shown.err

    return run


def part(name: str) -> Any:
    return importlib.import_module(f"gpu.{name}")


def records(folder: Path, stage: str) -> dict[str, Any]:
    content = json.loads((folder / "out" / f"{stage}.json").read_text())
    assert (content["what"], content["stage"]) == ("gpu suite", stage)
    return content["cases"]


def named(command: str) -> str:
    """With the interpreter of the tests."""
    return command.replace("python", shlex.quote(sys.executable), 1)


def check_rates(result: dict[str, Any]) -> None:
    rates = result["images_per_second"]
    assert len(rates["repetitions"]) == 5 and 0 < rates["min"] <= rates["median"] <= rates["max"]
    assert result["usage"]["cpu_cores"] > 0


def test_a_decode_path_is_judged_and_timed_and_not_again(suite: Run, digits: Path, tmp_path: Path) -> None:
    places = ("--data", digits, "--out", tmp_path / "out", "--work", tmp_path / "work")
    done = run_command(SCRIPT, *places, *TINY, "--only", "decode-full-0.65")
    assert done.returncode == 0, done.stderr
    cases = records(tmp_path, "decode")
    assert set(cases) == {"parity-full-0.65", "decode-full-0.65"}  # the second needs the first
    assert all(each["status"] == "done" for each in cases.values()), cases
    assert cases["parity-full-0.65"]["result"]["is_right"]
    check_rates(cases["decode-full-0.65"]["result"])
    assert cases["decode-full-0.65"]["command"].startswith("python benchmarks/gpu_suite.py --data ")
    assert cases["decode-full-0.65"]["versions"]["torch"] and cases["decode-full-0.65"]["hardware"]["cpu"]
    assert "decode: taken full with hw_decoder_load 0.65" in done.stdout and len(done.stdout) < 12_000
    assert suite("--only", "decode-full-0.65") == (done.stdout, "")
    assert records(tmp_path, "decode") == cases


def test_what_crashes_or_hangs_is_a_result_and_what_failed_is_tried_again(suite: Run, tmp_path: Path) -> None:
    also = [f"{name}={named(command)}" for name, command in {"dies": DIES, "hangs": HANGS, "answers": ANSWERS}.items()]
    flag = tmp_path / "flag"
    also.append(f"learns=ls {flag}")
    arguments = ("--only", "dies", "hangs", "answers", "learns", "--also-seconds", "2", "--also", *also)
    shown, _ = suite(*arguments)
    first = records(tmp_path, "more")
    assert {name: each["status"] for name, each in first.items()} == {
        "dies": "crashed",
        "hangs": "hung",
        "answers": "done",
        "learns": "failed",
    }
    assert "SIGSEGV" in first["dies"]["reason"] and first["hangs"]["reason"] == "over 2 s"
    assert first["answers"]["result"] == {"last_line": "it went well"}
    assert "SIGSEGV" in shown and "it went well" in shown
    flag.touch()
    suite(*arguments)
    second = records(tmp_path, "more")
    assert second["learns"]["status"] == "done"
    assert {name: second[name] for name in ("dies", "hangs", "answers")} == {
        name: first[name] for name in ("dies", "hangs", "answers")
    }


def test_a_case_with_other_settings_is_another_case(suite: Run, tmp_path: Path) -> None:
    for word in ("one", "two"):
        suite("--only", "says", "--also", f"says=echo {word}")
        assert records(tmp_path, "more")["says"]["result"] == {"last_line": word}
    shown, _ = suite("--only", "other", "--also", "says=echo three", "other=echo four")
    assert "four" in shown and "says" not in shown  # what was measured otherwise is not shown beside it


def test_what_the_budget_cuts_off_is_no_result_and_gets_its_turn_later(
    suite: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("gpu_suite"), "LEAST_SECONDS", 0.1)
    also = ("--also", f"hangs={named(HANGS)}", f"answers={named(ANSWERS)}", "--only", "hangs", "answers")
    suite("--budget-minutes", str(2 / 60), *also)
    cases = records(tmp_path, "more")
    assert {name: each["status"] for name, each in cases.items()} == {"hangs": "cut", "answers": "skipped"}
    suite("--also-seconds", "1", *also)
    cases = records(tmp_path, "more")
    assert {name: each["status"] for name, each in cases.items()} == {"hangs": "hung", "answers": "done"}


def test_a_case_ends_with_all_that_it_started(suite: Run, tmp_path: Path) -> None:
    """A worker that outlives its case would disturb the next one's figures."""
    program = "import subprocess; print(subprocess.Popen(['sleep', '99']).pid)"
    suite("--only", "leaves", "--also", f"leaves={named('python')} -c {shlex.quote(program)}")
    pid = records(tmp_path, "more")["leaves"]["result"]["last_line"]
    stat = Path("/proc", pid, "stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_the_same_images_under_new_keys_and_the_loader_on_them(suite: Run, digits: Path, tmp_path: Path) -> None:
    suite("--only", "loader-num_threads-4")
    assert records(tmp_path, "rates")["repeated"]["result"]["num_images"] == 2 * NUM_IMAGES
    made = Split(tmp_path / "work" / "repeated", "train")
    assert len(made) == len(set(made.keys(range(len(made))))) == 2 * NUM_IMAGES
    digests = made.samples.column("sha256").to_pylist()
    assert len(set(digests)) <= NUM_IMAGES and len(made.class_names) == 10
    labels = Split(digits, "train").column("label")
    assert np.array_equal(np.bincount(made.column("label")), 2 * np.bincount(labels))
    assert os.listdir(tmp_path / "work") == ["repeated"]  # the links are gone
    case = records(tmp_path, "sweeps")["loader-num_threads-4"]
    assert case["status"] == "done", case
    assert case["job"]["loader"] == {"num_threads": 4}
    check_rates(case["result"])


@pytest.mark.parametrize(("mode", "backend"), [("model", "synthetic"), ("train", "dali"), ("train", "reference")])
def test_rates_of_model_and_training(digits: Path, tmp_path: Path, mode: str, backend: str) -> None:
    job = {"data": str(digits), "mode": mode, "model": "resnet10t", "amp": "none", "compile": "none"}
    result = part("rates").measure(SMALL | job | {"work": str(tmp_path), "loader": {"backend": backend}})
    check_rates(result)
    assert 0 <= result["data_wait_percent"] <= 100 and result["first_batch_seconds"] > 0


@pytest.mark.parametrize("decode", ["roi", "full"])
def test_wrong_pixels_are_seen_and_told_by_kind(digits: Path, monkeypatch: pytest.MonkeyPatch, decode: str) -> None:
    parity = part("parity")
    job = SMALL | {"data": str(digits), "num_images": 40, "resize": 36, "loader": {"decode": decode}}
    right = parity.compare(job)
    assert right["is_right"] and set(right["train"]) == {"grey"}  # how the digits are stored
    assert right["train"]["grey"]["num_images"] == 48 and right["train"]["grey"]["worst_image"] < 1
    honest = parity.build_loader

    def mirrored(split: Split, transform: Any, *others: Any, config: Any) -> Any:
        """The reference flips every training image, the path that is judged every other one."""
        flips_all = config.backend == "reference" and isinstance(transform, TrainTransform)
        return honest(split, TrainTransform(32, hflip=1.0) if flips_all else transform, *others, config=config)

    monkeypatch.setattr(parity, "build_loader", mirrored)
    wrong = parity.compare(job)
    assert not wrong["is_right"] and wrong["train"]["grey"]["worst_image"] > 1
    assert wrong["evaluation"] == right["evaluation"]


def test_an_image_far_off_its_reference_is_no_go() -> None:
    parity = part("parity")
    figures = parity.by_kind(iter([("4:4:4", 0.2, 5), ("4:4:4", 1.4, 9), ("4:2:0", 3.0, 40)]))
    assert figures["4:4:4"] == {"num_images": 2, "mean": pytest.approx(0.8), "worst_image": 1.4, "largest_pixel": 9}
    assert not parity.is_close("4:4:4", figures["4:4:4"]) and not parity.is_close("grey progressive", figures["4:4:4"])
    assert parity.is_close("4:2:0", figures["4:2:0"])


def test_the_fastest_path_that_is_right_is_taken() -> None:
    def record(status: str, **result: Any) -> dict[str, Any]:
        return {"status": status, "result": result, "job": {"loader": path(result.get("decode", ""))}}

    def path(decode: str) -> dict[str, Any]:
        return {"decode": decode, "hw_decoder_load": 0.65}

    def rate(value: float) -> dict[str, Any]:
        return {"images_per_second": {"median": value}}

    results = {
        "parity-roi-0": record("done", is_right=True, decode="roi"),
        "parity-full-0": record("done", is_right=True, decode="full"),
        "parity-full-0.99": record("done", is_right=False, decode="wrong"),
        "parity-roi-0.99": {"status": "crashed", "result": None, "job": {}},
        "decode-roi-0": record("done", **rate(5000)),
        "decode-full-0": record("done", **rate(6000)),
        "decode-full-0.99": record("done", **rate(9000)),
    }
    cases = part("cases")
    assert cases.find_best_path(results) == path("full")
    assert cases.find_best_path({}) == {}
    results |= {"loader": record("done", **rate(4000)), "model-a": record("done", **rate(2500))}
    results["train-a"] = record("done", **rate(2450))
    conclusions = "\n".join(part("table").conclude(results))
    assert "no-go for full-0.99, roi-0.99" in conclusions
    assert "efficiency of a: train 2,450 / min(loader, model) = 0.980" in conclusions


def test_marked_tests_are_counted_and_skip_themselves_here(suite: Run, tmp_path: Path) -> None:
    suite("--only", "gpu-tests")
    case = records(tmp_path, "tests")["gpu-tests"]
    assert case["status"] == "done", case
    result = case["result"]
    assert result["num_passed"] + result["num_skipped"] > 0 and result["failed"] == []


def test_dmon_is_read_by_its_own_header() -> None:
    usage = part("usage")
    text = "# gpu     sm    mem    enc    dec    jpg    ofa\n# Idx      %      %      %      %      %      %\n"
    text += "    0     90     40      0      0     80      0\n    0     96     42      0      0      -      0\n"
    text += "    0     9\n"  # cut off
    assert usage.parse_dmon(text) == {"sm_percent": 93, "mem_percent": 41, "dec_percent": 0, "jpg_percent": 80}
    assert usage.parse_dmon("") == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--repetitions", "2"), "2 repetitions show no spread: take 5 or more"),
        (("--only", "nothing"), "there is no case nothing: --list names them"),
        (("--also", "nameless"), "is no NAME=COMMAND"),
        (("--also", "loader=ls"), "two cases are named loader"),
        (("--batch-size", "5000"), "fewer than a batch of 5000"),
        (("--budget-minutes", "0"), "--budget-minutes 0.0 is too little"),
        (("--data", "/nowhere"), "/nowhere/train/manifest.json does not exist"),
    ],
)
def test_what_cannot_be_is_one_line(suite: Run, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        suite(*arguments)
    assert len(str(caught.value).splitlines()) == 1 and not (tmp_path / "out").exists()


def test_damaged_records_are_named(suite: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "more.json").write_text("{")
    with pytest.raises(InputError, match=r"more\.json holds no records of this suite: delete it"):
        suite("--only", "says", "--also", "says=echo")


def test_a_gpu_that_is_watched_tells_how_busy_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that prints dmon's table and goes on until it is ended."""
    stand_in = tmp_path / "nvidia-smi"
    stand_in.write_text("#!/bin/sh\necho '# gpu sm mem jpg'\necho '# Idx % % %'\necho '0 70 30 55'\nexec sleep 99\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with part("usage").Usage() as usage:
        deadline = time.monotonic() + 10
        while os.fstat(usage.output.fileno()).st_size < 40 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert usage.watcher.poll() is not None  # it has ended
    assert (usage.figures["sm_percent"], usage.figures["jpg_percent"]) == (70, 55)


def test_the_speed_of_a_path_that_crashed_is_not_asked_for(
    suite: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed = {"status": "crashed", "result": None, "reason": "SIGSEGV; ended without a word", "seconds": 1.0}
    monkeypatch.setattr(importlib.import_module("gpu_suite"), "run_case", lambda *_: crashed)
    shown, _ = suite("--only", "decode-roi-0")
    cases = records(tmp_path, "decode")
    assert (cases["parity-roi-0"]["status"], cases["decode-roi-0"]["status"]) == ("crashed", "skipped")
    assert "decode: no-go for roi-0\n" in shown and "it needs parity-roi-0" in shown


def test_the_list_begins_with_what_is_worth_most(suite: Run, tmp_path: Path) -> None:
    names = suite("--list")[0].split()
    order = ("parity-roi-0", "decode-roi-0", "gpu-tests", "repeated", "train-resnet10t", "model-resnet10t-default")
    assert names[0] == order[0] and [name for name in names if name in order] == list(order)
    assert not (tmp_path / "out").exists()
