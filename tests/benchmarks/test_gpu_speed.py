"""Cases of the GPU suite with fused BatchNorm and CUDA graphs, and its profiles, on the CPU."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prep.errors import InputError

SMALL = {"split": "train", "device": "cpu", "batch_size": 16, "size": 32, "repetitions": 3, "seconds": 0.05}
SMALL |= {"loader": {}, "amp": "none", "compile": "none", "model": "resnet10t", "fused": "off", "graph": False}


def part(name: str) -> Any:
    return importlib.import_module(f"gpu.{name}")


def result_of(parts: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The last value of a case."""
    *_, result = parts
    return result


def test_fused_cases_are_measured_after_their_check_and_without_a_gpu_they_are_skipped(tmp_path: Path) -> None:
    module = part("cases")
    for device in ("cuda", "cpu"):
        options = module.Options(data=tmp_path, out=tmp_path, device=device, models=("a", "b"))
        cases = {case.name: case for case in module.build_cases(options, False)}
        fused = {name: case for name, case in cases.items() if case.job.get("fused") == "on"}
        assert fused.keys() >= {"model-a-fused", "train-b-fused-gpu", "model-a-fused-graph", "profile-fused"}
        assert all(module.CHECK in case.needs for case in fused.values())
        assert {name for name, case in cases.items() if case.job.get("graph")} == {
            *("model-a-fused-graph", "train-a-fused-graph-gpu")
        }
        assert cases[module.CHECK].unable == ("" if device == "cuda" else "needs a GPU")
    usual = cases["train-a-gpu"].job
    assert cases["train-a-fused-gpu"].job == usual | {"fused": "on"}


def test_a_check_of_kernels_that_are_wrong_fails_with_the_quantity(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = part("speed")
    wrong = {"errors": {"output": 1.0, "bias gradient": 0.0}, "limits": {"output": 1e-4, "bias gradient": 1e-4}}
    monkeypatch.setattr(speed, "measure_errors", lambda amp, device: wrong | {"type": "bfloat16"})
    monkeypatch.setattr(speed, "find_obstacle", lambda device: None)
    with pytest.raises(InputError, match=r"^output is off by 1.0e\+00 in bfloat16, 1.0e-04 is allowed$"):
        result_of(speed.check_kernels({"device": "cpu", "amp": "bf16"}))
    monkeypatch.undo()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match="need an NVIDIA GPU"):
        result_of(speed.check_kernels({"device": "cpu", "amp": "bf16"}))


def test_a_profile_in_the_suite_shows_its_classes(digits: Path, tmp_path: Path) -> None:
    job = SMALL | {"data": str(digits), "work": str(tmp_path)}
    result = result_of(part("speed").profile_case(job))
    assert result["unprofiled"]["total"]["median"] > 0 and result["placement"] == "cpu"
    said = importlib.import_module("reports.gpu_runs").describe_figures(result)
    assert said.startswith("a step of ") and "convolution" in said and "idle" in said


def test_conclusions_compare_each_case_with_the_one_without_fusing_or_graphs() -> None:
    rates = {"loader-gpu": 5700, "model-a": 2500, "train-a-gpu": 2440, "model-a-fused": 4000}
    rates |= {"train-a-fused-gpu": 3904, "train-a-fused-graph-gpu": 3943}
    common = {"status": "done", "reason": None, "hardware": {"cpu": "c", "cores": 16, "gpu": "g"}}
    results = {
        name: common | {"job": {"device": "cuda", "model": "a"}, "result": {"images_per_second": {"median": rate}}}
        for name, rate in rates.items()
    }
    said = list(importlib.import_module("reports.gpu_runs").conclude(results))
    for line in (
        "a-fused, placement gpu: train 3,904 / min(loader, model) = 0.976",
        "with fused BatchNorm: model-a-fused 4,000 images/s, 1.600 times model-a",
        "with fused BatchNorm: train-a-fused-gpu 3,904 images/s, 1.600 times train-a-gpu",
        "as CUDA graphs: train-a-fused-graph-gpu 3,943 images/s, 1.010 times train-a-fused-gpu",
    ):
        assert line in said, said
