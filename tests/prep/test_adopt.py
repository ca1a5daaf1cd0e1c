"""Tars of other software train unchanged: indexed and linked to, never written, with the batches of prepared ones."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import CHECKOUT, run_command
from helpers.datasets import tree
from helpers.tars import adopt, state, write_shards

from loaders import EvalTransform, LoaderConfig, Sampling, TrainTransform, build_loader
from prep.dataset import Split

TRAINING = [
    *("--epochs", "0.1"),
    *("--batch-size", "32"),
    *("--transform.size", "16"),
    *("--evaluation.size", "16"),
    *("--evaluation.resize", "16"),
    *("--optim.warmup-epochs", "0.05"),
    *("--device", "cpu"),
]


@pytest.fixture(scope="module")
def tars(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The digits of each split in the order of the prepared ones, as webdataset.ShardWriter stores them."""
    found = {}
    for name in ("train", "validation"):
        split, samples = Split(digits, name), []
        rows = zip(*(split.samples.column(c).to_pylist() for c in ("shard", "offset", "size", "label")), strict=True)
        for number, (shard, offset, size, label) in enumerate(rows):
            jpeg = split.shard_paths[shard].read_bytes()[offset : offset + size]
            samples.append({"__key__": f"{number:06d}", "jpg": jpeg, "cls": label, "txt": f"a {label}"})
        found[name] = write_shards(tmp_path_factory.mktemp("tars") / name, samples, 400)
    return found


@pytest.fixture(scope="module")
def adopted(tars: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both splits as the command adopts them: one by its tars, one by its folder."""
    out = tmp_path_factory.mktemp("adopted")
    before = state(*tars["train"], *tars["validation"])
    for split, given in (("train", tars["train"]), ("validation", [tars["validation"][0].parent])):
        done = run_command("prep/adopt.py", *given, "--out", out, "--split", split, "--workers", "2")
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        assert f"{out / split}: {len(Split(out, split)):,} images of 10 classes" in done.stdout
    assert state(*tars["train"], *tars["validation"]) == before
    return out


def test_links_indexes_and_manifest_are_all_that_is_made(adopted: Path, tars: dict[str, list[Path]]) -> None:
    names = [tar.name for tar in tars["train"]]
    indexes = [f"{tar.stem}.idx" for tar in tars["train"]]
    folder = adopted / "train"
    assert sorted(os.listdir(folder)) == sorted([*names, *indexes, "ledger.jsonl", "manifest.json", "samples.arrow"])
    assert [(folder / name).readlink() for name in names] == [tar.resolve() for tar in tars["train"]]
    manifest = Split(adopted, "train").manifest
    assert (manifest.source.name, manifest.options) == ("adopted", None)
    assert manifest.size_bytes == manifest.source_size_bytes
    assert [shard.num_images for shard in manifest.shards] == [400, 400, 400, 237]


def test_dalis_own_reader_reads_the_links_by_the_indexes(adopted: Path) -> None:
    from nvidia.dali import fn  # noqa: PLC0415 - a second that only this test needs to wait
    from nvidia.dali.pipeline import Pipeline  # noqa: PLC0415

    split = Split(adopted, "train")
    pipe = Pipeline(batch_size=1437, num_threads=2)
    with pipe:
        outputs: Any = fn.readers.webdataset(
            paths=[str(path) for path in split.shard_paths],
            index_paths=[str(path.with_suffix(".idx")) for path in split.shard_paths],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
        )
        pipe.set_outputs(*outputs)
    pipe.build()
    jpegs, labels = pipe.run()
    assert [int(np.asarray(label).tobytes()) for label in labels] == split.column("label").tolist()
    assert [len(np.asarray(jpeg)) for jpeg in jpegs] == split.column("size").tolist()


def test_timm_finds_the_tars(adopted: Path) -> None:
    info = json.loads((adopted / "_info.json").read_text())["splits"]["train"]
    assert (info["num_samples"], info["shard_lengths"]) == (1437, [400, 400, 400, 237])
    assert info["filenames"] == [f"train/part-{number:02d}.tar" for number in range(4)]


@pytest.mark.parametrize("transform", [TrainTransform(size=24), EvalTransform(size=24, resize=28)])
@pytest.mark.parametrize("backend", ["reference", "dali"])
def test_batches_are_those_of_the_same_images_prepared(
    adopted: Path, digits: Path, backend: str, transform: TrainTransform | EvalTransform
) -> None:
    loaders = [
        build_loader(Split(root, "train"), transform, 100, sampling=Sampling(5), config=LoaderConfig(backend))
        for root in (adopted, digits)
    ]
    for ours, prepared in zip(*(islice(loader, 4) for loader in loaders), strict=True):
        assert torch.equal(ours.images_BCHW, prepared.images_BCHW)
        assert torch.equal(ours.labels_B, prepared.labels_B)


def test_it_trains(adopted: Path, tars: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(*tars["train"], *tars["validation"])
    command = ["train/main.py", "demo", "--data.root", str(adopted), "--run.dir", str(tmp_path / "run"), *TRAINING]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(CHECKOUT / "train/main.py"), run_name="__main__")  # in this process: its imports are done
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["kind"] == "validation"
    assert state(*tars["train"], *tars["validation"]) == before


def test_run_again_it_says_so_and_changes_nothing(adopted: Path, tars: dict[str, list[Path]]) -> None:
    before = tree(adopted)
    done = run_command("prep/adopt.py", *tars["train"], "--out", adopted)
    assert done.returncode == 0, done.stderr
    assert "was already adopted from these tars" in done.stdout
    assert tree(adopted) == before


def test_killed_at_any_moment_it_ends_the_same(adopted: Path, tars: dict[str, list[Path]], tmp_path: Path) -> None:
    command = [sys.executable, "prep/adopt.py", *map(str, tars["train"]), "--out", str(tmp_path), "--workers", "2"]
    expected = {name: data for name, data in tree(adopted).items() if name.startswith("train/")}
    for awaited in ("part-00.idx", ".prep/part-03.tar.json", "part-00.tar"):
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (tmp_path / "train" / awaited).exists():
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    split = adopt(tmp_path, *tars["train"])
    assert {name: data for name, data in tree(tmp_path).items() if name.startswith("train/")} == expected
    assert len(split) == 1437


def test_every_state_that_a_kill_can_leave_is_gone_on_from(adopted: Path, tars: dict[str, list[Path]], tmp_path: Path):
    partial = [".part-00.tar.partial", ".part-01.idx.partial", ".samples.arrow.partial", ".manifest.json.partial"]
    whole = shutil.copytree(adopted / "train", tmp_path / "train", symlinks=True)
    for name in ("manifest.json", "part-01.tar", "part-02.idx"):
        (whole / name).unlink()
    for name in partial:
        (whole / name).write_text("half")
    adopt(tmp_path, *tars["train"])
    assert tree(whole) == tree(adopted / "train")
