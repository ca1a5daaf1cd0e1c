"""The tools of the stages: cold reads are cold, throttles hold, smaller files equal those of preparation."""

import importlib
import json
import os
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import CHECKOUT, run_command
from helpers.datasets import prepare_folder

from loaders import Split, TrainTransform, build_loader
from prep.dataset import Options

BENCHMARKS = CHECKOUT / "benchmarks"
SOAK = "PENSTOCK_SOAK_VERDICT"  # a folder of real photographs to prove the verdict on


def part(name: str) -> Any:
    return importlib.import_module(name)


def test_a_dropped_file_is_out_of_memory_until_it_is_read(tmp_path: Path) -> None:
    page_cache = part("stages.page_cache")
    path = tmp_path / "shard.tar"
    with path.open("wb") as file:
        file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    assert page_cache.share_resident([path]) == 1
    page_cache.drop_from_cache([path])
    if page_cache.share_resident([path]) == 1:
        pytest.skip(f"{tmp_path} is kept in memory, as on tmpfs")
    assert page_cache.share_resident([path]) == 0
    path.read_bytes()
    assert page_cache.share_resident([path]) == 1


def test_reading_that_finds_the_shards_in_memory_is_not_called_cold(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, reading, setting = part("stages.rounds"), part("stages.reading"), part("stages.setting")
    monkeypatch.setattr(reading, "drop_from_cache", lambda _: None)
    for path in Split(digits, "train").shard_paths:
        path.read_bytes()
    loader = build_loader(Split(digits, "train"), TrainTransform(32), 16)
    with rounds.open_stages("read", loader, setting.Setting(seconds=0.02)) as stages:
        assert [stage.name for stage in stages] == ["read warm"]


def test_cold_windows_read_no_image_twice(digits: Path) -> None:
    loader = build_loader(Split(digits, "train"), TrainTransform(32), 16)
    with part("stages.reading").ColdReading(loader, 1e9) as cold:
        cold.calibrate(0.05)
        rows = np.concatenate([plan.rows_B for plan in cold.plans])
        assert cold.num_steps >= 1 and len(rows) == len(set(rows.tolist()))
    with part("stages.reading").ColdReading(loader, 0) as cold:
        assert cold.most_steps == 1  # no room in memory: one batch


def test_slow_storage_is_as_slow_as_it_says_and_gives_the_same_bytes(digits: Path) -> None:
    throttles, path = part("proof.throttles"), Split(digits, "train").shard_paths[0]
    content, real = path.read_bytes()[:200_000], os.preadv
    with throttles.slow_storage(1.0), path.open("rb", buffering=0) as file:
        started, buffer = time.perf_counter(), bytearray(len(content))
        done = 0
        while done < len(buffer):
            done += os.preadv(file.fileno(), [memoryview(buffer)[done : done + 10_000]], done)
        seconds = time.perf_counter() - started
    assert bytes(buffer) == content and os.preadv is real
    assert seconds >= len(content) / 1e6 - throttles.QUEUE_SECONDS


def test_few_cores_hold_for_what_is_started_under_them_and_no_longer() -> None:
    before = os.sched_getaffinity(0)
    with part("proof.throttles").few_cores(1):
        assert len(os.sched_getaffinity(0)) == 1 and part("stages.machine").count_cores() <= 1
    assert os.sched_getaffinity(0) == before


def test_delays_come_before_each_convolution_and_before_batches_of_one_size(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a sleep takes no time; it is only counted."""
    throttles, slept = part("proof.throttles"), list[float]()
    monkeypatch.setattr(throttles.time, "sleep", slept.append)
    convolution, images = torch.nn.Conv2d(3, 4, 3), torch.rand(2, 3, 8, 8)
    expected = convolution(images)
    with throttles.slow_launches(0.5):
        assert torch.equal(convolution(images), expected) and slept.count(0.5) == 1
    convolution(images)
    assert slept.count(0.5) == 1

    # The first batch of a loader of 32 pixels waits, one of 48 pixels does not; the pixels are the same.
    def take(size: int) -> torch.Tensor:
        loader = build_loader(Split(digits, "train"), TrainTransform(size), 16)
        with closing(loader._produce(0)) as batches:
            return next(batches).batch.images_BCHW.clone()

    free = take(32)
    with throttles.slow_loader(32, 0.25):
        assert torch.equal(take(32), free) and slept.count(0.25) == 1
        take(48)
    assert slept.count(0.25) == 1


def test_the_slow_resolution_must_be_named_and_no_other() -> None:
    cases, judge = part("proof.cases"), part("proof.phases").judge_phases

    def record(rate: float, *bottlenecks: str) -> dict[str, Any]:
        phases = [
            {
                "measured_size": size,
                "bottleneck": name,
                "stages": {"train": {"total": {"median": rate}}},
                "bounds": {"decode": 100.0, "model": 600.0, "cores": 300.0},
                "num_images": 300 if size == 40 else 100,
            }
            for size, name in zip((40, 48), bottlenecks, strict=True)
        ]
        return {"phases": phases, "total": {"images_per_second": rate}, "placement": {}}

    after = record(190.0, "the model", "the model")
    right = judge(cases.PHASES, record(100.0, "the loader", "the model"), after, 0.2)
    assert right["is_named"] and right["is_kept"] and right["binds"] == "the loader at 40 px, the model at 48 px"
    # 300 images at 100 and 100 at 100 images/s take 4 s; without the loader's bound the first ones take a third.
    assert right["followed"][0]["promised_gain"] == pytest.approx(4 / 2)
    assert right["followed"][0]["error"] == pytest.approx(2.0 / 1.9 - 1)
    for wrong in (("the model", "the model"), ("the loader", "the loader"), ("the model", "the loader")):
        assert not judge(cases.PHASES, record(100.0, *wrong), after, 0.2)["is_named"]
    # The bounds allow at most twice the rate.
    for rate, is_kept in ((150.0, True), (230.0, True), (260.0, False)):
        found = judge(cases.PHASES, record(100.0, "the loader", "the model"), record(rate, "", ""), 0.2)
        assert found["is_kept"] == is_kept


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Split]]:
    """scikit-learn's two photographs as shards, as they are and as preparation makes them smaller in two ways."""
    folder = tmp_path_factory.mktemp("photos")
    images = Path(str(importlib.import_module("sklearn.datasets").__file__)).parent / "images"
    for name in ("china", "flower"):
        (folder / "source" / "train" / name).mkdir(parents=True)
        (folder / "source" / "train" / name / f"{name}.jpg").write_bytes((images / f"{name}.jpg").read_bytes())
    prepare_folder(folder / "source", "train", folder / "original")
    prepare_folder(folder / "source", "train", folder / "smaller files", Options(max_side=500, quality=90))
    prepare_folder(folder / "source", "train", folder / "files of 256 px", Options(short_side=256, quality=90))
    yield {name: Split(folder / name, "train") for name in ("original", "smaller files", "files of 256 px")}


@pytest.mark.parametrize("name", ["smaller files", "files of 256 px"])
def test_files_made_smaller_in_memory_are_those_of_preparation(photos: dict[str, Split], name: str) -> None:
    decoding, smaller = part("stages.decoding"), part("stages.smaller")
    original, prepared = (build_loader(photos[each], TrainTransform(32), 2) for each in ("original", name))
    made = smaller.shrink_batches(original, decoding.hold_batches(original), name)
    (plan, encoded), (wanted_plan, wanted) = made[0], decoding.hold_batches(prepared)[0]
    assert np.array_equal(plan.windows_B4, wanted_plan.windows_B4)
    for ours, theirs in zip(encoded.images, wanted.images, strict=True):
        assert np.array_equal(ours, theirs)
    with decoding.Decoding(original, made) as stage:
        stage.take()  # windows are inside the smaller images


@pytest.mark.skipif("PENSTOCK_SOAK_THROUGHPUT" not in os.environ, reason="measures: needs a quiet machine, a soak")
def test_slow_storage_is_named_and_its_advice_is_followed(digits: Path, tmp_path: Path) -> None:
    """Run the real code in separate processes: the digits (600 bytes each) at 0.07 MB/s, 116 images/s."""
    proof, cases = part("prove_verdict"), part("proof.cases")
    (tmp_path / proof.ORIGINAL).symlink_to(digits)
    slow = cases.Conditions(size=32, batch_size=8, megabytes_per_second=0.07)
    case = replace(cases.CASES[0], conditions=slow)
    result = proof.run_case(case, Namespace(seconds=0.1, repetitions=5, cases=None), tmp_path)
    assert result["binds"] == "storage" and result["is_named"]
    lifted = [each for each in result["followed"] if "megabytes_per_second" in each["change"]]
    assert len(lifted) == 1 and lifted[0]["change"]["megabytes_per_second"] > 0.07
    assert lifted[0]["promised_gain"] > 1.03 and lifted[0]["measured_gain"] > 1
    assert lifted[0]["error"] == pytest.approx(lifted[0]["promised_gain"] / lifted[0]["measured_gain"] - 1)


def test_every_advice_leads_to_conditions_or_is_beyond_this_machine() -> None:
    cases, advice = part("proof.cases"), part("verdict.advice")
    here = cases.Conditions(num_cores=1)

    def follow(num_cores: int = 2, **change: Any) -> Any:
        return cases.follow_advice(advice.Advice("", 1.0, change), here, num_cores)

    assert follow(megabytes_per_second=5.0) == replace(here, megabytes_per_second=5.0)
    assert follow(num_threads=2).num_threads == 2 and follow(size=32).size == 32 and follow(max_side=500).is_smaller
    assert follow(batch_size=128).batch_size == 128
    assert follow(cores=2.0).num_cores is None and follow(cores=2.0, num_cores=4).num_cores == 2
    assert follow(cores=4.0) is None and follow(gpu=2) is None and follow(placement="gpu", decode="full") is None


@pytest.mark.skipif(
    SOAK not in os.environ, reason=f"takes minutes of a quiet machine: set {SOAK} to a folder of photos"
)
def test_the_verdict_is_right_and_its_promises_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "proof.json"
    run_command(BENCHMARKS / "prove_verdict.py", "--source", os.environ[SOAK], "--out", out, timeout=3600)
    record = json.loads(out.read_text())
    assert record["num_named"] == record["num_kept"] == len(part("prove_verdict").NAMES)
