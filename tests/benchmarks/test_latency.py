"""latency.py: its measurements end in records of their kinds, and one that fails ends the command in one line."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import recorded

from prep.errors import InputError


@pytest.fixture
def latency() -> Any:
    return importlib.import_module("latency")


def run(latency: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["latency.py", *map(str, words)])
    latency.main()


def test_the_error_line_of_a_measurement_is_that_of_the_benchmark(tmp_path: Path) -> None:
    worker = importlib.import_module("worker")
    with pytest.raises(InputError) as refusal:
        worker.ask_once("latency:time_opening", {"root": str(tmp_path), "share": 0.0}, 60)
    assert str(refusal.value).startswith(f"{tmp_path}/train/manifest.json does not exist: ")
    assert "\n" not in str(refusal.value)


def test_a_file_keeps_the_other_measurement_and_its_kind(latency: Any, tmp_path: Path) -> None:
    assert latency.read_kept(None) == latency.read_kept(tmp_path / "new.json") == {"what": "startup"}
    path = tmp_path / "record.json"
    path.write_text('{"what": "startup", "bucket": {}}')
    assert latency.read_kept(path) == {"what": "startup", "bucket": {}}
    path.write_text('{"what": "feeding"}')
    with pytest.raises(InputError, match="is a record of feeding: choose another --out"):
        latency.read_kept(path)


def test_the_measurements_take_turns(latency: Any) -> None:
    order: list[str] = []

    def measure(name: str) -> dict[str, float]:
        order.append(name)
        return {"seconds": float(len(order))}

    found = latency.measure_in_turns({name: lambda name=name: measure(name) for name in "ab"}, 2)
    assert order == ["a", "b", "a", "b"]
    assert found["a"]["seconds"]["repetitions"] == [1.0, 3.0] and found["b"]["seconds"]["median"] == 3.0


def test_the_dataset_is_enlarged_and_timed_at_both_moments(
    latency: Any, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for the processes: their jobs name a dataset of the right size, and their times are the record."""
    dataset, asked = importlib.import_module("prep.dataset"), []

    def ask_once(entry: str, job: dict[str, Any], limit_seconds: float) -> dict[str, float]:
        split = dataset.Split(Path(job["root"]), "train")
        asked.append((entry, job["share"], len(split), all(path.exists() for path in split.shard_paths)))
        return {"open_seconds": 1.0, "first_batch_seconds": float(len(asked))}

    monkeypatch.setattr(latency, "ask_once", ask_once)
    out = recorded.write(
        tmp_path, "startup.json", {"what": "startup", "bucket": recorded.read("startup.json")["bucket"]}
    )
    run(latency, monkeypatch, "first-batch", "--data", digits, "--images", 5000, "--out", out)
    assert asked == 5 * [("latency:time_opening", share, 5000, True) for share in (0.0, 0.9)]
    record = json.loads(out.read_text())
    assert record.keys() >= {"bucket", "placement", "commit", "hardware"} and record["dataset"]["num_images"] == 5000
    assert record["moments"]["90%"]["first_batch_seconds"]["repetitions"] == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert record["command"].startswith("python benchmarks/latency.py first-batch --data")


def test_a_record_of_a_bucket_alone_has_its_table() -> None:
    kinds, bucket = importlib.import_module("reports.kinds"), recorded.read("startup.json")["bucket"]
    rows = [row[0] for table in kinds.make_tables({"what": "startup", "bucket": bucket}) for row in table.rows]
    assert rows == list(bucket["starts"]) == ["a folder", "a full cache", "an empty cache"]


def test_an_answer_of_the_app_is_timed_in_its_parts(
    latency: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "serving.json"
    words = ("--model", "resnet10t", "--size", 64, "--photo", 160, 120, "--repetitions", 5, "--out", out)
    run(latency, monkeypatch, "app", *words)
    record = json.loads(out.read_text())
    assert record["what"] == "serving" and record["model"] | {"size": 64, "name": "resnet10t"} == record["model"]
    assert record["photo"]["pixels"] == [160, 120] and record["photo"]["size_bytes"] > 1000
    parts = [record[f"{name}_seconds"]["repetitions"] for name in ("decode", "answer", "whole")]
    assert all(decode + answer < whole for decode, answer, whole in zip(*parts, strict=True)) and len(parts[0]) == 5
    assert "resnet10t at 64 px" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("app", "--repetitions", "4"), "--repetitions must be at least 5, got 4"),
        (("first-batch", "--data", ".", "--repetitions", "1"), "--repetitions must be at least 5, got 1"),
        (("app", "--out", "nowhere/out.json"), "nowhere does not exist"),
        (("app", "--repetition", "5"), "unknown flag --repetition; did you mean --repetitions"),
    ],
)
def test_bad_flags_are_refused(
    latency: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        run(latency, monkeypatch, *words)
