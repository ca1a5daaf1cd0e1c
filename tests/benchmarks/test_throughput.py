"""The throughput benchmark: its figures are computed from its repetitions, its record describes what was measured."""

import importlib
import json
import os
import re
import statistics
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from helpers.commands import CHECKOUT, free_port, run_command
from helpers.ranks import Ranks

from loaders import LoaderConfig, Split, TrainTransform, World, build_loader
from loaders.backends import BACKENDS
from prep.errors import InputError

SCRIPT = CHECKOUT / "benchmarks" / "throughput.py"
QUICK = ("--device", "cpu", "--seconds", "0.05", "--batch-size", "16")
SMALL = (*QUICK, "--size", "32", "--model", "test_resnet", "--amp", "none")
STAGES = {
    "read": {"read cold", "read warm"},
    "decode": {"decode"},
    "loader": {"loader"},
    "model": {"model"},
    "train": {"train"},
}
ALL = set().union(*STAGES.values())


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command in this process."""
    return importlib.import_module("throughput")


def check_spread(figures: dict[str, Any]) -> None:
    rates = figures["repetitions"]
    assert len(rates) >= 5 and min(rates) > 0
    assert figures["median"] == statistics.median(rates)
    assert (figures["min"], figures["max"]) == (min(rates), max(rates))


def check_stages(record: dict[str, Any], expected: set[str]) -> None:
    stages = record["stages"]
    assert expected - {"read cold"} <= stages.keys() <= expected  # on tmpfs nothing is cold
    for name, stage in stages.items():
        check_spread(stage["images_per_second"])
        check_spread(stage["total"])
        each, total = (stage[key]["median"] for key in ("images_per_second", "total"))
        assert total == pytest.approx(record["num_processes"] * each)
        assert stage["cpu_seconds_per_1000_images"] >= 0
        assert ("megabytes_per_second" in stage) == name.startswith("read")
    for name in {"loader", "train"} & stages.keys():
        spent = stages[name]["milliseconds_a_batch"]
        assert set(spent) == {"wait", "take", "read", "decode", "copy"} | ({"step"} if name == "train" else set())
        assert min(spent.values()) >= 0


def check_verdict(record: dict[str, Any]) -> None:
    verdict, stages = record["verdict"], record["stages"]
    assert verdict["binds"] in ("storage", "decode", "model", "cores")
    assert verdict["expected_images_per_second"] == min(verdict["bounds"].values())
    assert verdict["bounds"]["model"] == stages["model"]["total"]["median"]
    assert all(each["images_per_second"] > stages["train"]["total"]["median"] for each in verdict["advice"])
    loader, model, train = (stages[name]["total"]["repetitions"] for name in ("loader", "model", "train"))
    rounds = [t / min(a, b) for t, a, b in zip(train, loader, model, strict=True)]
    assert record["efficiency"]["repetitions"] == pytest.approx(rounds)


def test_all_stages_end_in_a_verdict(ranks: Ranks, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    done = ranks.run_command(tmp_path, SCRIPT, "--data", digits, "--dollars-per-hour", "5", "--out", out, *SMALL)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    check_stages(record, ALL)
    check_verdict(record)
    assert (record["what"], record["mode"], record["backend"], record["num_processes"]) == (
        "throughput",
        "all",
        "dali",
        1,
    )
    assert (record["model"], record["amp"]) == ("test_resnet", "none")
    assert record["dataset"]["num_images"] == 1437 and record["dataset"]["label"] == "not ImageNet"
    assert record["command"].startswith("python benchmarks/throughput.py ")
    assert record["hardware"]["gpu"] is None
    recipe = record["recipe"]
    assert recipe["name"] == "seed_113" and recipe["dollars"] == pytest.approx(5 * recipe["hours"])
    assert recipe["hours"] == pytest.approx(113 * 1_281_167 / record["stages"]["train"]["total"]["median"] / 3600)
    for line in record["verdict"]["says"]:
        assert line in done.stdout
    assert "efficiency" in done.stdout and "round 5 of 5" in done.stderr


@pytest.mark.parametrize("mode", STAGES)
def test_a_stage_alone(command: Any, digits: Path, mode: str) -> None:
    backend = "reference" if mode == "decode" else "dali"
    words = ("--data", str(digits), "--mode", mode, "--backend", backend, *SMALL)
    record = command.measure(command.read_options(list(words)), World())
    check_stages(record, STAGES[mode])
    assert (record["mode"], record["backend"], record["num_processes"]) == (mode, backend, 1)
    assert record["verdict"] is None and record["efficiency"] is None
    assert (record["model"] is None) == (mode in ("read", "decode", "loader"))
    assert (record["recipe"] is None) == (mode != "train")


@pytest.mark.parametrize("mode", ["all", *STAGES] if "PENSTOCK_SOAK_THROUGHPUT" in os.environ else ["all"])
def test_two_processes_count_together(ranks: Ranks, digits: Path, tmp_path: Path, mode: str) -> None:
    out = tmp_path / "record.json"
    words = ["--data", str(digits), "--mode", mode, "--out", str(out), *SMALL]
    group = ranks.start("script", 2, tmp_path, script=str(SCRIPT), arguments=words, port=free_port())
    ended = ranks.wait(120)
    assert [rank.status for rank in ended] == [0, 0], ended
    record = json.loads(out.read_text())
    # One process speaks: it prints the table's row of each stage, and each line of the verdict.
    format_spread = importlib.import_module("reports.records").format_spread
    lines = (group / "stdout-0").read_text().splitlines()
    starts = [re.split(r"\s{2,}", line)[:2] for line in lines]
    for name, stage in record["stages"].items():
        assert [name, format_spread(stage["images_per_second"])] in starts
    assert mode != "all" or set(record["verdict"]["says"]) <= set(lines)
    assert (group / "stdout-1").read_text() == ""
    assert record["num_processes"] == 2 and record["command"].startswith("torchrun --nproc-per-node 2 ")
    check_stages(record, STAGES.get(mode, ALL))
    if mode == "all":
        check_verdict(record)


def test_without_data_it_measures_photos_and_labels_them_not_imagenet(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "record.json"
    monkeypatch.setattr(sys, "argv", ["throughput.py", *QUICK, "--mode", "read", "--out", str(out)])
    command.main()
    record = json.loads(out.read_text())
    assert record["dataset"]["label"] == "not ImageNet" and record["dataset"]["num_images"] == 256
    assert "not ImageNet" in capsys.readouterr().out
    check_stages(record, STAGES["read"])
    assert list(tmp_path.iterdir()) == [out]


def test_every_backend_except_synthetic_can_be_measured(command: Any) -> None:
    assert list(get_args(command.MeasuredBackend)) == [name for name in BACKENDS if name != "synthetic"]


def test_a_missing_data_folder_is_one_line(tmp_path: Path) -> None:
    done = run_command(SCRIPT, "--data", tmp_path / "nowhere", *QUICK)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "nowhere" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--repetitions", "2"), "--repetitions must be at least 5, got 2"),
        (("--dollars-per-hour", "0"), "--dollars-per-hour must be greater than 0, got 0"),
        (
            ("--out", "nowhere/record.json"),
            "nowhere does not exist: create it or choose another folder for record.json",
        ),
        (("--model", "resnet1d"), "timm has no model resnet1d"),
    ],
)
def test_unusable_flags_are_refused(
    command: Any, digits: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--data", str(digits), *QUICK, "--mode", "train", *words])
    with pytest.raises(InputError, match=message) as caught:
        command.main()
    assert len(str(caught.value).splitlines()) == 1


def test_tune_writes_a_file_that_a_loader_reads(ranks: Ranks, digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"
    words = ("--data", digits, "--tune", "--minutes", "0.02", "--batch-size", "16", "--size", "32", "--device", "cpu")
    done = ranks.run_command(tmp_path, SCRIPT, *words, "--out", file)
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text())
    assert record["command"].startswith("python benchmarks/throughput.py --data ")
    taken = build_loader(Split(digits, "train"), TrainTransform(32), 16, config=LoaderConfig(tuned=file)).config
    assert {name: getattr(taken, name) for name in record["settings"]} == record["settings"]
