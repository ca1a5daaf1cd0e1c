"""Quick experiments on a part of the data, by the commands: trained, evaluated, and not mixed up with another part."""

import json
from pathlib import Path

import pytest
from conftest import run_command

SMALL = ["--epochs", "1", "--optim.warmup-epochs", "0.5", "--batch-size", "32", "--device", "cpu"]
PIXELS = ["--transform.size", "16", "--evaluation.size", "16", "--evaluation.resize", "16"]
PART = ["--data.fraction", "0.5", "--data.classes", "3-4", "8", "--data.order", "blocks"]


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("parts") / "run"
    done = run_command("train/main.py", "demo", "--data.root", digits, "--run.dir", run, *SMALL, *PIXELS, *PART)
    assert done.returncode == 0, done.stderr
    assert " images of 3 classes" in done.stdout
    return run


def test_a_part_is_evaluated_on_its_own_classes(trained: Path, digits: Path) -> None:
    done = run_command("train/evaluate.py", trained, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    validation = next(entry for entry in logged if entry["kind"] == "validation")
    scores = json.loads(done.stdout)
    assert scores["model"]["num_images"] == validation["num_images"] < 360
    assert scores["model"]["top1"] == pytest.approx(validation["top1"])


@pytest.mark.parametrize("part", [["--data.fraction", "0.4", *PART[2:]], PART[:-2]])
def test_another_part_or_order_does_not_go_on_with_it(trained: Path, digits: Path, part: list[str]) -> None:
    done = run_command("train/main.py", "demo", "--data.root", digits, "--run.dir", trained, *SMALL, *PIXELS, *part)
    assert done.returncode == 1
    assert "cannot go on: the saved position is of " in done.stderr and "choose another --run.dir" in done.stderr
