"""A folder of some 200 hostile files: nothing crashes, nothing is lost silently, and what is repaired is right."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from helpers.commands import run_command
from helpers.datasets import prepare_folder
from helpers.hostile import repairable, write_hostile_folder

from loaders import EvalTransform, LoaderConfig, Split, TrainTransform, build_loader

MOST_MEAN_DIFFERENCE = 1.5  # of 255, between the backends


@dataclass(frozen=True)
class Outcome:
    """The result of preparing the hostile folder."""

    num_offered: int
    result: CompletedProcess[str]
    split: Split
    ledger: list[dict[str, Any]]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = tmp_path_factory.mktemp("hostile")
    num_offered = write_hostile_folder(root / "source")
    arguments = ["--source", root / "source", "--out", root / "out", "--images-per-shard", 16, "--workers", 2]
    arguments.append("--allow-missing")  # a class folder is empty
    result = run_command("prep/shard.py", *arguments)
    split = Split(root / "out", "train")
    lines = (split.folder / "ledger.jsonl").read_text().splitlines()
    return Outcome(num_offered, result, split, [json.loads(line) for line in lines])


def test_nothing_stops_the_run_and_it_says_what_it_left_out_in_one_line(outcome: Outcome) -> None:
    assert outcome.num_offered >= 200
    assert outcome.result.returncode == 0
    assert outcome.result.stderr.startswith("warning: ")
    assert outcome.result.stderr.count("\n") == 1


def test_kept_and_repaired_and_rejected_are_all_that_was_offered(outcome: Outcome) -> None:
    events = Counter(entry["event"] for entry in outcome.ledger)
    assert len(outcome.split) + events["rejected"] == outcome.num_offered
    rows = {int(key[:8]) for key in outcome.split.keys(range(len(outcome.split)))}
    rejected = {entry["row"] for entry in outcome.ledger if entry["event"] == "rejected"}
    assert rows | rejected == set(range(outcome.num_offered))
    assert not rows & rejected
    assert outcome.split.manifest.findings == events
    kept = len(outcome.split) - events["repaired"]
    sums = (
        f"{outcome.num_offered} offered = {kept} kept + {events['repaired']} repaired + {events['rejected']} rejected"
    )
    assert sums in outcome.result.stdout


def test_every_kind_of_finding_is_there_with_its_reason(outcome: Outcome) -> None:
    events = Counter(entry["event"] for entry in outcome.ledger)
    assert events["repaired"] == len(list(repairable()))
    assert events["exif_orientation"] == 7
    assert events["progressive"] == 3
    assert events["trailing_bytes"] >= 4
    digests = outcome.split.samples.column("sha256").to_pylist()
    assert events["duplicate"] == len(digests) - len(set(digests)) >= 2  # a copy and a link, at least
    assert events["suspect"] > 0
    reasons = " ".join(entry["reason"] for entry in outcome.ledger if entry["event"] == "rejected")
    for words in (
        "0 bytes",
        "not an image",
        "truncated",
        "over the bound",
        "exceeds limit",
        "link",
        "a pipe, not a file",
    ):
        assert words in reasons


def test_an_empty_class_keeps_its_label(outcome: Outcome) -> None:
    assert outcome.split.class_names == ("n01 hostile", "n02-ünï", "n03-empty")
    assert set(outcome.split.column("label").tolist()) == {0, 1}


@pytest.mark.parametrize("transform", [TrainTransform(size=96), EvalTransform(size=96, resize=110)], ids=str)
def test_every_repaired_image_is_the_same_picture_to_dali_and_to_the_reference(
    transform: TrainTransform | EvalTransform, tmp_path: Path
) -> None:
    (tmp_path / "source" / "train" / "thing").mkdir(parents=True)
    for name, data in repairable():
        (tmp_path / "source" / "train" / "thing" / name).write_bytes(data)
    manifest = prepare_folder(tmp_path / "source", "train", tmp_path / "out")
    assert manifest.findings["repaired"] == manifest.num_images == len(list(repairable()))
    split, seen = Split(tmp_path / "out", "train"), 0
    loaders = [build_loader(split, transform, 7, config=LoaderConfig(backend)) for backend in ("dali", "reference")]
    for batch, reference in zip(*loaders, strict=False):
        apart_BCHW = (batch.images_BCHW.cpu().int() - reference.images_BCHW.int()).abs().float()
        assert apart_BCHW.mean(dim=(1, 2, 3)).max() <= MOST_MEAN_DIFFERENCE
        seen += len(batch.rows_B)
        if seen >= len(split):
            break
    assert seen >= len(split)
