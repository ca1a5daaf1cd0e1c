"""Training, evaluation and export with a dataset in a bucket; the watchdog while the bucket does not answer."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.buckets import upload, using
from helpers.datasets import tree
from helpers.ranks import Ranks
from helpers.swift_server import SwiftServer
from helpers.train_runs import PATIENCE, Run, assert_ended, assert_same_end, start

from loaders import Split, Stats, World, build_loader
from loaders.plan import TrainTransform
from train.artifact import trace
from train.checkpoint import read_meta
from train.config import DataConfig, Recipe
from train.evaluate import find_data
from train.logger import _format_metric
from train.metrics import find_remedy
from train.recipe import RECIPES
from train.watchdog import WAITS, Heartbeat, LastSeen, Watchdog

URL = "s3://through-training/digits"


def test_a_run_from_a_bucket_is_that_from_a_folder(
    trainers: Ranks, calm: Callable[[int], Run], server: SwiftServer, digits: Path, tmp_path: Path
) -> None:
    """Two processes and an empty cache; then an evaluation and an export of the checkpoint, which find the cache."""
    with using(server):
        upload(server, digits, URL)
    cache = tmp_path / "cache"
    run = Run(Path("s3:/unused"), tmp_path / "run", ("--data.root", URL, "--data.cache", str(cache)))
    group = start(trainers, run, 2, environment=server.environment())
    ended = trainers.wait(PATIENCE)
    assert_ended(ended, 0)
    assert_same_end(run, calm(2))
    first = (group / "stdout-0").read_text().splitlines()[1]
    assert "  train  " in first and "  cache " in first, "the first images came from the bucket"

    # What it fetched is what prep wrote, if it had the time to fetch it.
    theirs = tree(digits)
    assert all(theirs[name] == content for name, content in tree(cache).items() if name.endswith((".tar", ".arrow")))

    # Evaluation and export need no flags.
    checkpoint = run.checkpoints[-1]
    meta = read_meta(checkpoint)
    arguments: dict[str, Any] = {"script": "train/evaluate.py", "environment": server.environment()}
    arguments["arguments"] = [str(run.folder), "--backend", "reference", "--model", "model", "--device", "cpu"]
    group = trainers.start("command", 1, tmp_path / "evaluate", **arguments)
    assert_ended(trainers.wait(PATIENCE), 0)
    scores = json.loads((group / "stdout-0").read_text())
    assert scores["model"]["top1"] == pytest.approx(meta["metrics"]["top1"])
    assert trace(meta, "ema", 10, None, None).class_names == Split(digits, "train").class_names
    with using(server):
        assert trace(meta, "ema", 10, URL, None).class_names == Split(digits, "train").class_names


def test_a_recipe_keeps_the_url_and_its_json_is_as_before() -> None:
    recipe = RECIPES["demo"]()
    assert recipe.data.root == Path("data/digits") and recipe.to_dict()["data"]["root"] == "data/digits"
    assert recipe.data.folder == Path("data/digits")
    for data, folder in (
        (DataConfig(URL, "/nvme/digits"), Path("/nvme/digits")),
        (DataConfig(Path(URL), "none"), None),
    ):
        given = replace(recipe, data=data)
        again = Recipe.from_dict(json.loads(json.dumps(given.to_dict())))
        assert again.data == data and again.data.root == URL and again.data.folder == folder
    old = recipe.to_dict()
    del old["data"]["cache"]  # of an earlier version
    assert Recipe.from_dict(old) == Recipe.from_dict(recipe.to_dict())


def test_an_evaluation_uses_the_cache_of_its_own_dataset_alone() -> None:
    usual = DataConfig(URL, "/nvme/digits")
    assert find_data(usual, None, "") == (URL, "/nvme/digits")
    assert find_data(usual, None, "none") == (URL, "none")
    assert find_data(usual, URL, "") == (URL, "/nvme/digits")
    assert find_data(usual, "data/digits", "") == (Path("data/digits"), "")
    assert find_data(usual, "s3://other/digits", "/nvme/other") == ("s3://other/digits", "/nvme/other")


def test_a_starving_run_is_told_of_the_network_while_the_cache_fills(digits: Path) -> None:
    stats = build_loader(Split(digits, "train"), TrainTransform(24), 8).stats()
    reading = replace(stats, read_seconds=9.0)
    filling: Stats = replace(reading, remote_images=5, cached_share=0.438)
    assert find_remedy(filling, "cpu").startswith("the network: the cache is at 43%")
    assert find_remedy(replace(filling, decode_seconds=10.0), "cpu").startswith("decoding")
    assert find_remedy(reading, "cpu").startswith("storage")
    assert _format_metric("cached_percent", 99.9) == "cache 99%"


class Clock:
    """An event that is never set, until its waits are used up."""

    def __init__(self, num_waits: int) -> None:
        self.num_left = num_waits

    def wait(self, seconds: float) -> bool:
        self.num_left -= 1
        return self.num_left < 0


@pytest.mark.parametrize(
    ("waits", "others", "ends"),
    [
        ("", None, True),
        ("waiting since 12:00:00: s3://bucket/x: no answer", None, False),
        ("", LastSeen(heartbeat=Heartbeat(doing=WAITS), at=float("inf")), False),
        ("", LastSeen(heartbeat=Heartbeat(doing=WAITS), at=0.0), True),  # silent: it may have ended
        ("", LastSeen(heartbeat=Heartbeat(doing="reading"), at=float("inf")), True),
    ],
)
def test_the_watchdog_waits_while_a_loader_waits_for_its_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: str, others: LastSeen | None, ends: bool
) -> None:
    class Waiting:
        def describe_wait(self) -> str:
            return waits

    ended: list[float] = []
    loader: Any = Waiting()
    dog = Watchdog(1.0, tmp_path, World(), (loader,))
    monkeypatch.setattr(dog, "stopped", Clock(100))
    monkeypatch.setattr(dog, "_end", lambda: ended.append(time.monotonic()))
    dog.seen += [others] if others else []
    dog._watch()
    assert bool(ended) == ends
