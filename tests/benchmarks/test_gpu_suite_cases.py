"""Measurements and conclusions of the GPU suite, on the CPU: wrong pixels, other bits, damage, a killed training."""

import copy
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import recorded
from helpers.commands import CHECKOUT
from helpers.datasets import prepare_folder

from loaders import Split, World
from loaders.plan import Plan
from prep.dataset import Options
from prep.errors import InputError

BENCHMARKS = CHECKOUT / "benchmarks"
SMALL = {"split": "train", "device": "cpu", "batch_size": 16, "size": 32, "resize": 36, "repetitions": 3}
SMALL |= {"seconds": 0.05, "loader": {}, "amp": "none", "compile": "none", "model": "resnet10t"}
SMALL |= {"fused": "off", "graph": False}
HARDWARE = {"cpu": "Some CPU", "cores": 16, "gpu": "Some GPU"}
Results = dict[str, dict[str, Any]]


def part(name: str) -> Any:
    return importlib.import_module(f"gpu.{name}")


def result_of(parts: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The last value of a case."""
    *_, result = parts
    return result


@pytest.fixture
def job(digits: Path, tmp_path: Path) -> dict[str, Any]:
    """Return the job of the small cases."""
    return SMALL | {"data": str(digits), "work": str(tmp_path)}


@pytest.fixture(scope="module")
def few(digits_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 digits to train on, 48 to validate on."""
    out = tmp_path_factory.mktemp("few-digits")
    for split in ("train", "validation"):
        prepare_folder(digits_source, split, out, Options(limit=48))
    return out


def check_rates(result: dict[str, Any]) -> None:
    rates = result["images_per_second"]
    assert len(rates["repetitions"]) == 3 and 0 < rates["min"] <= rates["median"] <= rates["max"]
    assert result["usage"]["cpu_cores"] > 0 and result["placement"] == "cpu"


def test_the_machine_and_eight_images(job: dict[str, Any]) -> None:
    smoke = part("smoke")
    assert result_of(smoke.describe_machine(job))["torch"] == torch.__version__
    assert result_of(smoke.find_dali(job))["dali"]
    result = result_of(smoke.decode_eight(job | {"batch_size": 8}))
    assert result["mean_difference"] < 1 and result["first_batch_seconds"] > 0 and result["placement"] == "cpu"


def test_engines_are_counted_by_the_decoders_log() -> None:
    smoke = part("smoke")
    said = "[nvjpeg-ext] HW decoder available num_hw_engines=7 num_cores_per_hw_engine=1"
    log = f"\x1b[0;32m[INFO] \x1b[0m{said}\n[INFO] else\n"
    assert smoke.parse_engines(log) == 7 and smoke.pick_lines(log) == [f"[INFO] {said}"]
    assert smoke.parse_engines("else") is None and smoke.pick_lines("one\ntwo\n") == ["one", "two"]


def test_the_decoders_log_is_read_back(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same library says on the CPU that there is no hardware; the log level may be set in a running process."""
    smoke = part("smoke")
    monkeypatch.setenv(smoke.LOG_LEVEL, "0")  # and is as before when the test has ended
    result = result_of(smoke.count_engines(job | {"batch_size": 8}))
    assert result["num_engines"] is None
    assert any("HW decoder not supported by this platform" in line for line in result["log"]), result


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "DALI is not installed: install nvidia-dali-cuda130, or unpack it and put its folder on PYTHONPATH"),
        (("backend_impl.cpython-39-x86_64-linux-gnu.so",), "is built for Python 3.9, this is 3."),
        (None, "cannot be imported: libcuda.so.9: cannot open shared object file"),
    ],
)
def test_dali_that_cannot_be_imported_is_explained_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...] | None, words: str
) -> None:
    smoke = part("smoke")
    (tmp_path / "nvidia").mkdir()
    if files != ():
        (tmp_path / "nvidia" / "dali").mkdir()
    for name in files or ():
        (tmp_path / "nvidia" / "dali" / name).touch()
    if files is None:
        tag = smoke.sys.implementation.cache_tag
        (tmp_path / "nvidia" / "dali" / f"backend_impl.{tag}-x86_64-linux-gnu.so").touch()

    class Spec:
        submodule_search_locations = (str(tmp_path / "nvidia"),)

    monkeypatch.setattr(smoke.importlib.util, "find_spec", lambda _: Spec)
    said = smoke.explain_import(ImportError("libcuda.so.9: cannot open shared object file"))
    assert words in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("decode", ["roi", "full"])
def test_wrong_pixels_are_seen_and_told_by_kind(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, decode: str
) -> None:
    pixels = part("pixels")
    job |= {"num_images": 40, "loader": {"decode": decode}}
    parts = list(pixels.compare_with_reference(job))
    right = parts[-1]
    assert right["verdict"] == "right" and set(right["train"]) == {"grey"}  # how the digits are stored
    assert right["train"]["grey"]["num_images"] == 48 and right["train"]["grey"]["worst_image"] < 1
    assert right["decode"] == decode
    assert "evaluation" not in parts[0]
    render = pixels.render

    def mirrored(encoded: np.ndarray, plan: Plan, i: int) -> np.ndarray:
        """Flip each training image that the plan does not flip, and the other way round."""
        image_HWC = render(encoded, plan, i)
        return image_HWC[:, ::-1] if plan.resized_B2[i].max() == job["size"] else image_HWC

    monkeypatch.setattr(pixels, "render", mirrored)
    wrong = result_of(pixels.compare_with_reference(job))
    assert wrong["verdict"] == "wrong" and wrong["train"]["grey"]["worst_image"] > 1
    assert wrong["evaluation"] == right["evaluation"]


def test_augmented_images_are_compared_without_a_verdict(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, table = part("pixels"), importlib.import_module("reports.gpu_runs")
    job |= {"num_images": 16, "loader": {"decode": "full"}}
    right = result_of(pixels.compare_augmented(job))
    assert set(right) == {"augmented", "placement", "reason", "decode"}
    assert right["augmented"]["grey"]["num_images"] >= 16 and right["augmented"]["grey"]["mean"] < 1
    said = table.describe_figures(right)
    assert said.startswith("grey 0.") and said.count("worst image") == 1
    # Without its operations, the reference would be far from the loader's images.
    monkeypatch.setattr("loaders.reference.apply_ops", lambda image, plan, i: image)
    assert result_of(pixels.compare_augmented(job))["augmented"]["grey"]["mean"] > 5


def test_subsampled_colours_alone_make_a_path_differ_and_not_wrong() -> None:
    pixels = part("pixels")
    found = pixels.by_kind(iter([("4:4:4", 0.2, 5), ("4:4:4", 1.4, 9), ("4:2:0", 3.0, 40)]))
    assert found["4:4:4"] == {"num_images": 2, "mean": pytest.approx(0.8), "worst_image": 1.4, "largest_pixel": 9}
    whole = {"grey progressive": {"worst_image": 0.9}, "4:4:4": {"worst_image": 1.0}}
    assert pixels.find_verdict([whole, {"4:2:0": {"worst_image": 4.0}}]) == "right"
    assert pixels.find_verdict([whole, {"4:2:0": {"worst_image": 4.1}}]) == "differs"
    assert pixels.find_verdict([whole, {"4:2:0": {"worst_image": 60.0}}]) == "wrong"
    assert pixels.find_verdict([{"4:2:0": {"worst_image": 4.1}}, {"4:4:4": {"worst_image": 1.1}}]) == "wrong"


def test_a_path_is_timed_from_memory(job: dict[str, Any]) -> None:
    check_rates(result_of(part("rates").measure_decoding(job)))


@pytest.mark.parametrize(("mode", "backend"), [("loader", "dali"), ("train", "reference")])
def test_rates_of_the_loader_and_of_training(job: dict[str, Any], mode: str, backend: str) -> None:
    result = result_of(part("rates").measure_rates(job | {"mode": mode, "loader": {"backend": backend}}))
    check_rates(result)
    assert 0 <= result["data_wait_percent"] <= 100 and result["first_batch_seconds"] > 0


def test_one_compilation_serves_the_model_and_training(job: dict[str, Any]) -> None:
    """Not compiled here, which takes a minute: the rest is the same."""
    parts = list(part("rates").measure_compiled(job))
    result = parts[-1]
    assert [set(each) for each in parts] == [{"model"}, {"model", "train"}]
    check_rates(result["model"])
    check_rates(result["train"])


def test_the_same_bits_under_load_and_others_are_counted(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = part("pixels")
    result = result_of(pixels.compare_under_load(job))
    assert result["is_same_idle"] and result["is_same_under_load"] and result["num_batches"] == 12
    assert result["num_products"] > 0
    decode = pixels.decode

    def torn(job: dict[str, Any], world: World, delay: torch.Tensor | None = None) -> Any:
        """Change one value of each batch while the device is busy."""
        for images_BCHW in decode(job, world, delay):
            images_BCHW[0, 0, 0, 0] ^= 64 if delay is not None else 0
            yield images_BCHW

    monkeypatch.setattr(pixels, "decode", torn)
    result = result_of(pixels.compare_under_load(job))
    assert result["is_same_idle"] and not result["is_same_under_load"]
    assert result["under_load"] == {"num_values": 12, "largest": 64}


def test_damaged_files_are_named_or_shown_in_silence(job: dict[str, Any], tmp_path: Path) -> None:
    result = result_of(part("pixels").decode_damaged(job))["damages"]
    assert {name: each["outcome"] for name, each in result.items()} == {
        "cut at half": "named",
        "broken header": "named",
        "flipped bits": "silent",
    }
    assert result["flipped bits"]["mean_difference"] > 1
    assert all(each["largest_of_others"] == 0 for each in result.values())
    assert not (tmp_path / "damaged").exists()


def test_a_damaged_file_that_ends_the_run_is_told(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = part("pixels")
    loader = pixels.open_evaluation(Split(job["data"], "train"), job, World())

    def fail(*_: Any) -> None:
        raise InputError("decoding failed, though each image of the batch can be decoded alone: status 8")

    monkeypatch.setattr(loader, "_decode", fail)
    outcome = pixels.describe_outcome(loader, torch.zeros(16, 3, 32, 32))
    assert outcome["outcome"] == "error" and "status 8" in outcome["reason"]


def test_a_training_is_killed_resumed_finished_and_scored(job: dict[str, Any], few: Path, tmp_path: Path) -> None:
    options = {"data": str(few), "epochs": 8, "run": str(tmp_path / "run")}
    parts = [copy.deepcopy(each) for each in part("training").train_and_resume(job | options)]
    result = parts[-1]
    assert result["failed_checks"] == [], result
    assert len(result["checks"]) == 8 and result["clock"] == 8 * 48
    assert 0 < result["resumed_at"] < result["clock"] and result["placement"]["placement"] == "cpu"
    assert result["evaluation"]["ema"]["num_images"] == 48
    assert parts[0]["checks"] == {"killed while it trained": True} and parts[0]["checkpoints_then"]
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (recipe["transform"]["first_size"], recipe["transform"]["size"]) == (32, 64)  # resolution grows


def test_a_training_that_cannot_start_says_why(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = part("training")
    monkeypatch.setattr(training, "CHECKOUT", tmp_path)  # where no train/main.py is
    with pytest.raises(InputError, match=r"train/main\.py ended before its first checkpoint: .*can't open file"):
        list(training.train_and_resume(job | {"epochs": 8, "run": str(tmp_path / "run")}))


def test_a_training_without_dali_takes_pillow(job: dict[str, Any], few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = part("training")
    options = {"data": str(few), "epochs": 8, "run": "a run"}
    assert training.build_command(training.complete_job(job | options))[-1] == "dali"

    def refuse(*_: Any) -> None:
        raise InputError("DALI is not installed")

    monkeypatch.setattr(training, "import_dali", refuse)
    assert training.build_command(training.complete_job(job | options))[-2:] == ["--loader.backend", "reference"]


TESTS = """
import os, signal, warnings
import pytest
pytestmark = [pytest.mark.gpu]

def test_roi_crashes(): os.kill(os.getpid(), signal.SIGSEGV)
@pytest.mark.parametrize("decode", ["roi", "full"])
def test_warns(decode, record_property):
    warnings.warn("of a version that was never tried", DeprecationWarning)
    record_property("worst_mean", 0.25)
def test_fails(): assert 1 == 2
def test_skips(): pytest.skip("needs more")
"""


def test_a_test_that_crashes_or_warns_costs_no_other_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = part("marked")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(f"# mark.gpu{TESTS}")
    (tmp_path / "tests" / "test_other.py").write_text("import a_package_that_is_not_here")
    (tmp_path / "tests" / "test_another.py").write_text("import another_package_that_is_not_here  # mark.gpu")
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\nmarkers = gpu\n")
    monkeypatch.setattr(marked, "CHECKOUT", tmp_path)
    *parts, result = marked.run_tests({"marker": "gpu"})
    assert (result["num_passed"], result["num_skipped"]) == (2, 1)
    assert set(result["failed"]) == {"test_fails", "test_roi_crashes", "tests/test_another.py"}
    assert "No module named 'another_package_that_is_not_here'" in result["failed"]["tests/test_another.py"]
    assert "assert 1 == 2" in result["failed"]["test_fails"] and "crashed" in result["failed"]["test_roi_crashes"]
    assert result["properties"] == {f"test_warns[{decode}]": {"worst_mean": 0.25} for decode in ("full", "roi")}
    assert parts and parts[0]["num_passed"] + parts[0]["num_skipped"] + len(parts[0]["failed"]) > 0


def test_tests_that_cannot_begin_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = part("marked")
    (tmp_path / "tests").mkdir()
    monkeypatch.setattr(marked, "CHECKOUT", tmp_path)
    monkeypatch.setattr(marked, "OPTIONS", (*marked.OPTIONS, "--no-such-option"))
    with pytest.raises(InputError, match=r"pytest ended with status 4 before any test: see workers\.log"):
        list(marked.run_tests({"marker": "gpu"}))


def record(status: str = "done", path: str = "", **result: Any) -> dict[str, Any]:
    job = {"device": "cuda", "path": path, "model": "a"}
    return {"status": status, "result": result, "job": job, "reason": "SIGSEGV; no word", "hardware": HARDWARE}


def parity_of(verdict: str) -> dict[str, Any]:
    return record(verdict=verdict)


def rate_of(value: float, path: str = "") -> dict[str, Any]:
    return record(path=path, images_per_second={"median": value, "min": value, "max": value}, usage={})


def load_of(path: str, idle: bool = True, under_load: bool = True) -> dict[str, Any]:
    values = {"idle": {"num_values": int(not idle), "largest": 3}, "is_same_idle": idle}
    values |= {"under_load": {"num_values": int(not under_load), "largest": 9}, "is_same_under_load": under_load}
    return record(path=path, **values)


@pytest.mark.parametrize(
    ("results", "best"),
    [
        ({}, "full-0"),  # nothing is known: the safe path
        ({"parity-cpu": parity_of("right")}, "full-0"),
        ({"parity-roi-0": record("skipped")}, "full-0"),
        ({"parity-full-0": parity_of("right"), "parity-roi-0": parity_of("right")}, "roi-0"),  # faster, below
        ({"parity-full-0": parity_of("right"), "parity-roi-0": record("crashed")}, "full-0"),
        ({"parity-full-0": parity_of("wrong"), "parity-roi-0": parity_of("differs")}, "roi-0"),
        ({"parity-full-0": parity_of("differs"), "parity-roi-0": parity_of("differs")}, "full-0"),
        ({"parity-full-0": parity_of("right"), "parity-full-0.99": parity_of("differs")}, "full-0"),
        ({"parity-full-0": parity_of("wrong"), "parity-roi-0": record("hung")}, None),
        ({"parity-roi-0": parity_of("right"), "load-best": load_of("roi-0", under_load=False)}, None),
    ],
)
def test_the_fastest_path_that_is_right_is_taken_and_never_one_that_is_not(results: Results, best: str | None) -> None:
    rates = {"decode-roi-0": rate_of(9000), "decode-full-0": rate_of(5000), "decode-full-0.99": rate_of(20_000)}
    assert part("cases").find_best_path(rates | results) == best


def test_jobs_take_the_path_that_was_found(tmp_path: Path) -> None:
    module = part("cases")
    options = module.Options(data=tmp_path, out=tmp_path, device="cuda", models=("a", "b"))
    cases = {case.name: case for case in module.build_cases(options, False)}
    results = {
        "parity-full-0.99": parity_of("right"),
        "parity-full-0": record("crashed"),
        "parity-cpu": parity_of("right"),
    }
    best = {"placement": "gpu", "decode": "full", "hw_decoder_load": 0.99}
    assert module.resolve_job(cases["train-a-gpu"], results)["loader"] == best
    assert module.resolve_job(cases["train-a-cpu"], results)["loader"] == {"placement": "cpu"}
    assert module.resolve_job(cases["compile-default"], results)["loader"] == {"placement": "cpu"}
    faster = results | {"train-a-cpu": rate_of(2000), "train-a-gpu": rate_of(2100)}
    assert module.resolve_job(cases["compile-default"], faster)["loader"] == best
    assert module.resolve_job(cases["train-a-gpu-fp16"], results) | {"amp": "bf16"} == module.resolve_job(
        cases["train-a-gpu"], results
    )
    with pytest.raises(InputError, match="full-0 is not right: crashed"):
        module.resolve_job(cases["damaged-full-0"], results)
    nothing = {"parity-full-0": parity_of("wrong")}
    with pytest.raises(InputError, match="no decode path of the GPU is right"):
        module.resolve_job(cases["loader-gpu"], nothing)
    assert {case.name for case in module.choose_cases(list(cases.values()), ("decode-full-0",), results)} == {
        *("decode-full-0", "parity-full-0", "dali")
    }


def test_conclusions_name_paths_placements_and_efficiency() -> None:
    tables = importlib.import_module("reports.gpu_runs")
    results = {
        "parity-full-0": parity_of("right"),
        "decode-full-0": rate_of(6000),
        "parity-full-0.65": parity_of("differs"),
        "parity-full-0.99": parity_of("wrong"),
        "parity-roi-0.99": record("crashed"),
        "parity-cpu": parity_of("right"),
        "load-best": load_of("full-0"),
        "load-full-0.99": load_of("full-0.99", under_load=False),
        "loader-gpu": rate_of(5700),
        "model-a": rate_of(2500),
        "train-a-cpu": rate_of(2400),
        "train-a-gpu": rate_of(2440),
        "train-a-gpu-fp16": rate_of(3050),
        "train-a-full-0.99": rate_of(2196),
        "compile-default": record(model=rate_of(3000)["result"], train=rate_of(2900)["result"]),
        "gpu-tests": record(num_passed=3, num_skipped=1, failed={"test_x": "assert 1 == 2"}),
        "training": record(
            checks={"the clock is complete": False}, failed_checks=["the clock is complete"], images_per_second=300.0
        ),
    }
    said = list(tables.conclude(results))
    for line in (
        "decode full-0: go, 6,000 images/s",
        "decode full-0.65: go, though subsampled colours differ",
        "decode full-0.99: NO-GO, wrong pixels",
        "decode roi-0.99: NO-GO, crashed: SIGSEGV; no word",
        "decode: fastest alone on the GPU: --loader.decode full --loader.hw-decoder-load 0",
        "load-full-0.99: NO-GO, full-0.99 gives other bits while the device is busy",
        "loader, placement gpu: 5,700 images/s, 0.950 of decoding alone",
        "a, placement gpu: train 2,440 / min(loader, model) = 0.976",
        "a: use placement cpu: gpu gives 1.017 times its rate (cpu 2,400, gpu 2,440; gpu must win by 1.02)",
        "train-a-gpu-fp16: 1.250 times train-a-gpu",
        "train-a-full-0.99: 0.900 times train-a-gpu",
        "a, compile-default: the model alone at 1.20 times its eager rate",
        "gpu-tests: 1 of 4 FAILED",
        "training: does NOT hold: the clock is complete",
    ):
        assert line in said, said
    other = record(verdict="right") | {"hardware": HARDWARE | {"gpu": "Another GPU"}}
    assert "CAUTION: these results are of several machines (Another GPU; Some GPU)" in next(
        tables.conclude(results | {"parity-roi-0": other})
    )
    origin = {"seconds": 1.0, "command": "c", "commit": "d", "versions": {}, "date": "2026-01-01"}
    content = {"stage": "rates", "cases": {name: each | origin for name, each in results.items()}}
    cases, origins, conclusions = tables.tables_of_suite([content])
    assert ["train-a-gpu", "done", "2,440 images/s (2,440 to 2,440); ", "1.0", "2026-01-01"] in cases.rows
    assert len(origins.notes) == 1 and list(conclusions.notes) == said


def test_a_case_that_was_cut_shows_what_it_had_found() -> None:
    table, reason = importlib.import_module("reports.gpu_runs"), "it ran over its limit of 60 s"
    cut = record("cut", num_passed=12, num_skipped=0, failed={}) | {"reason": reason}
    assert table.summarize_case(cut) == f"{reason}; before: 12 passed, 0 skipped"
    half = {"idle": {"num_values": 0, "largest": 0}, "num_batches": 12}
    assert table.summarize_case(record("hung") | {"result": half}) == "SIGSEGV; no word; before: twice idle: same bits"
    killed = record("hung", checks={"killed while it trained": True})
    assert table.summarize_case(killed).endswith("before: 1 checks hold")


def test_dmon_is_read_by_its_own_header() -> None:
    machine = importlib.import_module("machine")
    text = "# gpu     sm    mem    enc    dec    jpg    ofa\n# Idx      %      %      %      %      %      %\n"
    text += "    0     90     40      0      0     80      0\n    0     96     42      0      0      -      0\n"
    text += "    0     9\n"  # cut off
    assert machine.parse_dmon(text) == {"sm_percent": 93, "mem_percent": 41, "dec_percent": 0, "jpg_percent": 80}
    assert machine.parse_dmon("") == {}


def test_a_gpu_that_is_watched_tells_how_busy_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that prints the table of dmon and continues until it is killed."""
    stand_in = tmp_path / "nvidia-smi"
    stand_in.write_text("#!/bin/sh\necho '# gpu sm mem jpg'\necho '# Idx % % %'\necho '0 70 30 55'\nexec sleep 99\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with importlib.import_module("machine").Usage() as usage:
        deadline = time.monotonic() + 10
        while os.fstat(usage.output.fileno()).st_size < 40 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert usage.watcher.poll() is not None  # it has ended
    assert (usage.figures["sm_percent"], usage.figures["jpg_percent"]) == (70, 55)


def test_without_psutil_the_cores_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setenv("PATH", "/nowhere")
    with importlib.import_module("machine").Usage() as usage:
        pass
    assert usage.figures == {}


@pytest.mark.parametrize("has_rich", [True, False])
def test_the_terminal_shows_a_run_in_what_the_end_of_a_log_keeps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], has_rich: bool
) -> None:
    """All cases that were measured on a GPU, also with restart shards; each in one line, then the conclusions."""
    if not has_rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    runs, tables = importlib.import_module("reports.gpu_runs"), importlib.import_module("tables")
    contents = {stage: recorded.read(f"h200/{stage}.json") for stage in part("cases").STAGES}
    for stage in ("smoke", "decode", "rates"):
        contents[stage]["cases"] |= recorded.read(f"h200-restarts/{stage}.json")["cases"]
    cases, _, conclusions = runs.tables_of_suite(contents.values())
    tables.print_tables([cases, conclusions])
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert len(shown) < 12_000 and max(map(len, lines)) <= 180
    assert [line.split()[0] for line in lines[1 : 1 + len(cases.rows)]] == [row[0] for row in cases.rows]
    assert lines[-1 - len(conclusions.notes) : -1] == list(conclusions.notes)
    assert (
        "decode-full-0.99                done        8.4  18,360 images/s (18,337 to 18,447); cpu_cores 3.9, " in shown
    )


def test_without_rich_tables_are_plain_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    tables = importlib.import_module("tables")
    rows = [["eager", "4,000", "", "[a] note"], ["fused", "15,000", "", ""]]
    first = tables.Table("Rates", ("case", "images/s", "unused", "note"), rows, notes=["Median."])
    tables.print_tables([first, tables.Table(detail="More", notes=["long"]), tables.Table(notes=["End."])])
    assert capsys.readouterr().out == (
        "Rates\ncase   images/s  note\neager     4,000  [a] note\nfused    15,000\nMedian.\n\nEnd.\n\n"
    )
