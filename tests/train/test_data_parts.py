"""Quick experiments on a part of the data, by the commands: trained, evaluated, and not mixed up with another part."""

import json
from pathlib import Path

import pytest
from helpers.ranks import Ranks

SMALL = ["--epochs", "1", "--optim.warmup-epochs", "0.5", "--batch-size", "32", "--device", "cpu"]
PIXELS = ["--transform.size", "16", "--evaluation.size", "16", "--evaluation.resize", "16"]
PART = ["--data.fraction", "0.5", "--data.classes", "3-4", "8", "--data.order", "blocks"]


@pytest.fixture(scope="module")
def trained(ranks: Ranks, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    run = folder / "run"
    flags = ("--data.root", digits, "--run.dir", run, *SMALL, *PIXELS, *PART)
    done = ranks.run_command(folder, "train/main.py", "demo", *flags)
    assert done.returncode == 0, done.stderr
    assert " images of 3 classes" in done.stdout
    return run


def test_a_part_is_evaluated_on_its_own_classes(ranks: Ranks, trained: Path, tmp_path: Path) -> None:
    done = ranks.run_command(tmp_path, "train/evaluate.py", trained, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    validation = next(entry for entry in logged if entry["kind"] == "validation")
    scores = json.loads(done.stdout)
    assert scores["model"]["num_images"] == validation["num_images"] < 360
    assert scores["model"]["top1"] == pytest.approx(validation["top1"])


@pytest.mark.parametrize("part", [["--data.fraction", "0.4", *PART[2:]], PART[:-2]])
def test_another_part_or_order_does_not_go_on_with_it(
    ranks: Ranks, trained: Path, digits: Path, tmp_path: Path, part: list[str]
) -> None:
    flags = ("--data.root", digits, "--run.dir", trained, *SMALL, *PIXELS, *part)
    done = ranks.run_command(tmp_path, "train/main.py", "demo", *flags)
    assert done.returncode == 1
    assert (
        "cannot be resumed: the saved position belongs to " in done.stderr and "choose another --run.dir" in done.stderr
    )
