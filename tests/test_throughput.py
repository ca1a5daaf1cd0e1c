"""The throughput benchmark: its figures follow from its repetitions, and its record says what was measured."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT, run_command

SCRIPT = CHECKOUT / "benchmarks" / "throughput.py"
QUICK = ("--device", "cpu", "--seconds", "0.2", "--batch-size", "16")
SMALL = (*QUICK, "--size", "32", "--model", "resnet10t", "--amp", "none")


def check_spread(figures: dict[str, Any]) -> None:
    rates = figures["repetitions"]
    assert len(rates) >= 5 and min(rates) > 0
    assert figures["median"] == statistics.median(rates)
    assert (figures["min"], figures["max"]) == (min(rates), max(rates))


@pytest.mark.parametrize(("mode", "backend"), [("loader", "reference"), ("model", "synthetic"), ("train", "reference")])
def test_every_figure_follows_from_the_repetitions(digits: Path, tmp_path: Path, mode: str, backend: str) -> None:
    out = tmp_path / "record.json"
    done = run_command(SCRIPT, "--data", digits, "--mode", mode, "--backend", backend, "--out", out, *SMALL)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record == json.loads(out.read_text())
    check_spread(record["images_per_second"])
    check_spread(record["total"])
    assert record["total"] == record["images_per_second"]  # one process
    assert (record["what"], record["mode"], record["backend"]) == ("throughput", mode, backend)
    assert (record["model"], record["amp"]) == ((None, None) if mode == "loader" else ("resnet10t", "none"))
    assert record["dataset"]["num_images"] == 1437 and record["dataset"]["label"] == "not ImageNet"
    assert 0 <= record["data_wait_percent"] <= 100
    assert record["command"].startswith("python benchmarks/throughput.py ")
    assert record["hardware"]["gpu"] is None


def test_without_data_it_measures_photos_and_says_that_they_are_not_imagenet(tmp_path: Path) -> None:
    done = run_command(SCRIPT, *QUICK, "--backend", "reference", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["dataset"]["label"] == "not ImageNet" and record["dataset"]["num_images"] == 256
    assert "not ImageNet" in done.stderr
    check_spread(record["images_per_second"])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_data_folder_is_one_line(tmp_path: Path) -> None:
    done = run_command(SCRIPT, "--data", tmp_path / "nowhere", *QUICK)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
