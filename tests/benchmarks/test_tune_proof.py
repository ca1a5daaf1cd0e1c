"""The proof that tuning does no harm: what counts as harm, and the record with every figure."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from loaders import LoaderConfig
from loaders.tuned import SETTINGS

START, TUNED = LoaderConfig(), LoaderConfig(batches_ahead=4)
STARTED = LoaderConfig(placement="cpu", decode="roi")  # what the defaults mean on a CPU


@pytest.fixture(scope="module")
def command() -> Any:
    return importlib.import_module("prove_tuning")


@pytest.mark.parametrize(
    ("tuned", "ratios", "outcome"),
    [
        (START, [0.9] * 5, "the defaults"),
        (TUNED, [1.02] * 5, "faster"),
        (TUNED, [0.98] * 5, "slower"),
        (TUNED, [0.98, 1.01, 0.98, 0.98, 0.98, 0.98, 0.98, 0.98], "slower"),
        (TUNED, [0.98, 1.02, 0.97, 1.0, 1.01], "equal within the noise"),
        (TUNED, [0.999] * 5, "equal within the noise"),
    ],
)
def test_harm_is_what_the_rule_sees(command: Any, tuned: LoaderConfig, ratios: list[float], outcome: str) -> None:
    pairs = tuple((600 * ratio, 600.0) for ratio in ratios)
    assert command.describe_outcome(importlib.import_module("tuning.search").Comparison(tuned, START, pairs)) == outcome


@pytest.mark.parametrize(
    ("outcomes", "last", "passed"),
    [
        (["the defaults", "faster", "equal within the noise"], "faster", True),
        (["the defaults", "slower", "faster"], "faster", False),
        (["faster"], "equal within the noise", False),
    ],
)
def test_one_harmful_round_fails_it(command: Any, outcomes: list[str], last: str, passed: bool) -> None:
    assert command.is_passed([{"outcome": each} for each in outcomes], {"outcome": last}) == passed


def test_the_record_has_every_round(
    command: Any, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuning.json"
    sizes = ["--rounds", "1", "--minutes", "0.01", "--seconds", "0.05", "--batch-size", "8", "--size", "24"]
    flags = ["--data", str(digits), "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["prove_tuning.py", *flags, *sizes])
    status = command.main()
    record = json.loads(out.read_text())
    assert status == (0 if record["passed"] else 1)
    assert json.loads(capsys.readouterr().out) == record
    assert (record["starts_with"]["placement"], record["starts_with"]["decode"]) == ("cpu", "roi")
    (first,), last = record["rounds"], record["bad_start"]
    assert first["settings"]["placement"] == "cpu"
    is_as_it_began = first["settings"] == {name: getattr(STARTED, name) for name in SETTINGS}
    assert (first["outcome"] == "the defaults") == is_as_it_began == (not first["is_changed"])
    assert last["start"] == {"num_threads": 1, "batches_ahead": 1}
    for each in (first, last):
        for figures in (each["best"], each["check"]):
            assert len(figures["ratio"]["repetitions"]) == len(figures["candidate"]["repetitions"]) >= 5
    assert record["dataset"]["digest"] and record["command"].startswith("python benchmarks/prove_tuning.py ")


@pytest.mark.parametrize(
    ("flag", "value"), [("--data", "nowhere"), ("--rounds", "0"), ("--seconds", "0"), ("--out", "no/where.json")]
)
def test_a_refusal_is_one_line(
    command: Any, digits: Path, monkeypatch: pytest.MonkeyPatch, flag: str, value: str
) -> None:
    monkeypatch.setattr("sys.argv", ["prove_tuning.py", "--data", str(digits), "--device", "cpu", flag, value])
    with pytest.raises(command.InputError) as caught:
        command.main()
    assert "\n" not in str(caught.value)
