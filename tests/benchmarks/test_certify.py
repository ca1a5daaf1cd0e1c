"""`benchmarks/certify.py` on class-sorted shards: ours passes, peers that shuffle in a buffer mix too little."""

import importlib
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import CHECKOUT, run_command
from helpers.datasets import prepare_folder
from PIL import Image

from loaders import LoaderConfig, Split, TrainTransform, build_loader
from prep.dataset import Options
from prep.errors import InputError

SCRIPT = CHECKOUT / "benchmarks" / "certify.py"
NUM_IMAGES, BATCH_SIZE, BUFFER, PIXELS = 1437, 64, 100, 32
SMALL = ["--size", PIXELS, "--batch-size", BATCH_SIZE, "--ranks", 2, "--buffer", BUFFER, "--parity-images", 8]
PARTS = ("streams", "pixels", "epochs")
ANYONES = ["every image once an epoch", "classes in a batch", "displacement between epochs", "ranks share nothing"]
OURS = [ANYONES[0], "pixels are those of the rows", *ANYONES[1:], "resume"]
OURS += ["parity, CPU, training", "parity, CPU, evaluation"]
ON_CPU = {"placement": "cpu", "decode": "roi", "reason": "the model is on the CPU too"}


@pytest.fixture(scope="module")
def sorted_digits(digits_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' training split as shards, one class after the other."""
    source, out = tmp_path_factory.mktemp("sorted-source"), tmp_path_factory.mktemp("sorted")
    shutil.copytree(digits_source, source, dirs_exist_ok=True)
    (file,) = (source / "data").glob("train-*.parquet")
    table = pq.read_table(file)
    rows = np.argsort(np.array(table["label"].to_pylist()), kind="stable")
    pq.write_table(table.take(pa.array(rows)), file)
    prepare_folder(source, "train", out, Options(images_per_shard=100))
    return out


def take_here(job: Any, report: Any) -> list[dict[str, np.ndarray]]:
    """Return the images of each rank, taken in this process one rank after another: a process needs 2 s to start."""
    streams = importlib.import_module("certificates.streams")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{rank}.npz") for rank in range(job.num_ranks)]
        for rank, path in enumerate(paths):
            answers = list(streams.write_images(asdict(replace(job, rank=rank, out=str(path)))))
            assert answers[-1] == "written"
        return [dict(np.load(path)) for path in paths]


@pytest.fixture
def certify(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command's `main` in this process; its words, if it ends with some."""
    for name in ("RANK", "WORLD_SIZE"):  # webdataset is told by them which rank it is
        monkeypatch.setenv(name, "0")
    for name in ("certify", "certificates.epochs"):
        monkeypatch.setattr(importlib.import_module(name), "collect", take_here)

    def run(data: Path, *more: object) -> str:
        monkeypatch.setattr(sys, "argv", ["certify.py", str(data), *map(str, [*SMALL, *more])])
        try:
            importlib.import_module("certify").main()
        except (SystemExit, InputError) as ended:
            return str(ended)
        return ""

    return run


def verdicts(record: dict[str, Any], loader: str) -> dict[str, bool]:
    return {each["name"]: each["passed"] for each in record["loaders"][loader]["certificates"]}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves tars to the collector
def test_ours_passes_and_peers_fail_by_what_they_do_not_mix(
    certify: Any, sorted_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, out = tmp_path / "picture.png", tmp_path / "record.json"
    peers = [f"webdataset {BUFFER}", f"dali-reader {BUFFER}"]
    asked = ["--loader", "penstock", "webdataset", "dali-reader", "--limit", 400, "--out", out, "--picture", picture]
    ended = certify(sorted_digits, *asked)
    record, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert list(record["loaders"]) == ["penstock", *peers]
    assert verdicts(record, "penstock") == dict.fromkeys(OURS, True)
    for peer in peers:
        assert verdicts(record, peer) == dict(zip(ANYONES, [True, False, False, True], strict=True))
        assert f"{peer}: classes in a batch; {peer}: displacement between epochs" in ended
    assert all(name in printed for name in (*OURS, *peers)) and printed.count("FAIL") == 4
    ours = record["loaders"]["penstock"]
    assert ours["num_decoded"] == 2 * 3 * BATCH_SIZE  # of each epoch the batches that fit into half of 400
    figures = {each["name"]: each["figures"] for each in ours["certificates"]}
    assert figures["every image once an epoch"]["num_taken"] == 2 * NUM_IMAGES
    assert figures["pixels are those of the rows"]["num_images"] == 200
    assert figures["pixels are those of the rows"]["median_to_another"] > 10
    assert record["dataset"]["label"] == "not ImageNet" and "[not ImageNet]" in printed
    with Image.open(picture) as opened:
        assert opened.format == "PNG" and min(opened.size) > 500


def test_as_a_user_runs_it_with_a_process_a_rank_and_everything_decoded(digits: Path, tmp_path: Path) -> None:
    asked = ["--split", "validation", "--epochs", 3, "--device", "cpu", "--out", tmp_path / "record.json"]
    done = run_command(SCRIPT, digits, *SMALL, *asked)
    told = [line.split(": ")[:3] for line in done.stderr.splitlines()]
    assert (done.returncode, told) == (0, [["penstock", name, "pass"] for name in OURS])
    record = json.loads((tmp_path / "record.json").read_text())
    assert verdicts(record, "penstock") == dict.fromkeys(OURS, True)
    assert record["loaders"]["penstock"]["decoded_percent"] == 100
    assert record["loaders"]["penstock"]["placement"] == ON_CPU
    words = " ".join(done.stdout.split())
    assert "100% of its epochs" in words and "(random weights: ignored)" in words
    assert "images decoded on the CPU (roi; the model is on the CPU too)" in words


def test_a_loader_that_fails_loses_no_earlier_one(
    certify: Any, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, epochs = importlib.import_module("certify"), importlib.import_module("certificates.epochs")
    lost = epochs.Certificate("every image once an epoch", False, "2 images lost", "0", "0: counted")

    def measure(options: Any, split: Any, job: Any) -> list[Any]:
        if job.loader == "dali-reader":
            raise InputError("dali-reader, rank 0 of 1: no memory")
        return [lost]

    monkeypatch.setattr(module, "certify_stream", measure)
    out = tmp_path / "record.json"
    asked = ["--split", "validation", "--loader", "webdataset", "dali-reader", "--out", out]
    assert certify(digits, *asked) == "dali-reader, rank 0 of 1: no memory"
    assert verdicts(json.loads(out.read_text()), f"webdataset {BUFFER}") == {lost.name: False}
    assert f"webdataset {BUFFER}: every image once an epoch: FAIL: 2 images lost" in capsys.readouterr().err


def test_full_images_are_certified_where_they_are_asked_for_and_pixels_are_not_judged_if_nothing_is_decoded(
    certify: Any, digits: Path, tmp_path: Path
) -> None:
    asked = ["--split", "validation", "--decode", "full", "--device", "cpu", "--out", tmp_path / "record.json"]
    for limit, passed in ((128, True), (0, None)):
        assert certify(digits, *asked, "--limit", limit) == ""
        record = json.loads((tmp_path / "record.json").read_text())
        assert verdicts(record, "penstock") == dict.fromkeys(OURS, True) | {"pixels are those of the rows": passed}
        assert record["loaders"]["penstock"]["placement"] == ON_CPU | {"decode": "full"}


def test_rows_that_lie_are_found(digits: Path) -> None:
    streams, pixels, epochs = (importlib.import_module(f"certificates.{each}") for each in PARTS)
    split = Split(digits, "validation")
    loader = build_loader(split, TrainTransform(PIXELS), 60, config=LoaderConfig("reference"))
    work = epochs.Job("penstock", str(digits), "validation", 60, seed=0, threads=1, kept=tuple(range(0, 60, 3)))
    part = streams.describe_batch(work, loader, next(iter(loader)))
    assert pixels.certify_pixels(part, split, decodes_on_gpu=False).passed
    lying = part | {"kept_rows": np.roll(part["kept_rows"], 1)}
    assert not pixels.certify_pixels(lying, split, decodes_on_gpu=False).passed
    unflipped = part | {"kept_flips": ~part["kept_flips"]}
    assert not pixels.certify_pixels(unflipped, split, decodes_on_gpu=False).passed


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--epochs", 1], "--epochs must be at least 2, got 1: displacement is between two epochs"),
        (["--ranks", 3, 1], "--ranks must all be at least 2, got 1"),
        (["--ranks", 2, 65], "must be at least 130 to be divided among 2 and 65 ranks, got 64"),
        (["--ranks", 7, 11], "must be at least 77 to be divided among 7 and 11 ranks"),
        (["--ranks"], "--ranks needs at least one value"),
        (["--buffer"], "--buffer needs at least one value"),
        (["--loader", "ours"], "unknown name 'ours': choose from penstock, webdataset, dali-reader"),
        (["--loader"], "--loader needs at least one value"),
        (["--buffer", 0], "--buffer must be at least 1, got 0"),
        (["--parity-images", 0], "--parity-images must be at least 1, got 0"),
        (["--out", "nowhere/record.json"], "nowhere does not exist"),
        (["--model", "nowhere"], "nowhere is not a folder"),
        (["--split", "test"], "or prepare test too"),
        (["--device", "cpu", "--placement", "gpu"], "placement gpu needs a GPU"),
        (["--placement", "hybrid"], "placement must be one of auto, cpu, gpu, got 'hybrid'"),
    ],
)
def test_what_cannot_be_certified_is_refused_in_a_line(
    certify: Any, digits: Path, arguments: list[Any], words: str
) -> None:
    ended = certify(digits, *arguments)
    assert words in ended and "\n" not in ended


def test_a_process_that_fails_is_named_with_its_reason(digits_copy: Path) -> None:
    shard = next((digits_copy / "validation").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[1536:60000] = bytes(len(content[1536:60000]))
    shard.write_bytes(content)
    epochs = importlib.import_module("certificates.epochs")
    spans = (epochs.Span(0, 360, True),)
    work = epochs.Job("penstock", str(digits_copy), "validation", 60, seed=0, threads=1, size=PIXELS, spans=spans)
    with pytest.raises(InputError, match=f"^penstock, rank 0 of 1: .*{shard.name}: .*prep/verify.py"):
        epochs.collect(work, lambda _: None)
