"""`prep/verify.py` names every damage there can be, and --repair gives back the very bytes."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.datasets import tree
from helpers.harm import (
    cut,
    empty,
    flip,
    in_image,
    in_label,
    in_padding,
    leave_work,
    lengthen,
    random_harm,
    run,
    serial,
    swap,
)
from helpers.restarts import CAN_TRANSCODE, why_not

from prep import verify
from prep.dataset import MANIFEST, Options
from prep.prepare import prepare_split
from prep.resolve import open_source
from prep.restarts import find_transcoder
from prep.store import LocalStore

NUM_FLIPS = int(os.environ.get("PENSTOCK_SOAK_FLIPS", "30"))
SPLITS = ("train", "validation")
Harm = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "local_pool", lambda _: serial)


@pytest.fixture(scope="module")
def prepared(digits_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 digits a split, in shards of 20; those of `train` have segments if they can be transcoded here."""
    out = tmp_path_factory.mktemp("prepared")
    for split in SPLITS:
        options = Options(images_per_shard=20, limit=60, restarts=split == "train" and CAN_TRANSCODE)
        prepare_split(open_source(str(digits_source)), split, LocalStore(out), options, serial)
    return out


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    """A copy to be harmed."""
    return Path(shutil.copytree(prepared, tmp_path / "dataset"))


SHARD = "train/train-000001.tar"
SEGMENTS = "train/train-000001.seg"
AGAIN, FROM_TAR = "--repair --source SRC writes it again", "--repair writes it again from its tar"
FAULTS: list[tuple[str, Harm, str]] = [
    (SHARD, in_image, "has other bytes in 1 of 20 images (00000022-digit_"),
    (SHARD, lambda path: flip(path, 3), "has another byte 3, in the header of 00000020-digit_"),
    (SHARD, in_padding, "in the padding after 00000022-digit_"),
    (SHARD, in_label, ".cls or its padding; no image is damaged"),
    (SHARD, lambda path: flip(path, path.stat().st_size - 1), "in the padding at its end; no image is damaged"),
    (SHARD, Path.unlink, f"is missing: {AGAIN}"),
    (SHARD, cut, "is cut short at byte "),
    (SHARD, empty, "is cut short at byte 0 of "),
    (SHARD, lengthen, "has 61,441 bytes, not 61,440: "),
    (SHARD, swap, "holds the bytes of train-000000.tar"),
    ("train/train-000001.idx", Path.unlink, "is missing: --repair writes it again from its tar"),
    ("train/train-000001.idx", cut, "is not the index of its tar"),
    (SEGMENTS, Path.unlink, f"is missing: {FROM_TAR}"),
    (SEGMENTS, empty, "is cut short at byte 0 of "),
    (SEGMENTS, cut, f"of 1,136: {FROM_TAR}"),
    (SEGMENTS, lengthen, "has 1,137 bytes, not 1,136: "),
    (SEGMENTS, lambda path: flip(path, 3), f"has another header: {FROM_TAR}"),
    (SEGMENTS, lambda path: flip(path, 16 + 24 * 2 + 10), "lists other segments of 00000022-digit_"),
    (SEGMENTS, lambda path: flip(path, 1135), "lists other segments of 00000039-digit_"),
    ("train/samples.arrow", lambda path: flip(path, 999), "does not match its manifest: --repair --source SRC"),
    (
        "train/samples.arrow",
        Path.unlink,
        f"is missing: {AGAIN}, with all shards of the split",
    ),
    ("train/ledger.jsonl", lengthen, "does not match its manifest"),
    ("train/.prep", leave_work, "is left of an interrupted run"),
    ("_info.json", lambda path: flip(path, 50), "does not agree with the splits: --repair writes it again"),
    ("_info.json", Path.unlink, "is missing"),
    ("leaks.jsonl", lengthen, "does not agree with the splits"),
    ("README.md", lengthen, "does not agree with the splits: --repair writes it again"),
    ("README.md", cut, "does not agree with the splits"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{name}-{words}" for name, _, words in FAULTS])
def test_a_damage_is_named_and_repaired_to_the_byte(
    fault: tuple[str, Harm, str], root: Path, prepared: Path, digits_source: Path, capsys: Any
) -> None:
    name, harm, words = fault
    if name == SEGMENTS and not CAN_TRANSCODE:
        pytest.skip(why_not(find_transcoder))
    harm(root / name)
    status, lines = run(capsys, root)
    assert status == 1
    assert any(line.startswith(f"{root / name} ") and words in line for line in lines), lines
    num_faults = 2 if harm is swap else 1
    assert lines[-1].startswith(f"{root}: {num_faults} fault")
    assert sum(not line.startswith("note: ") for line in lines) == num_faults + 1
    status, lines = run(capsys, root, "--repair", "--source", digits_source)
    assert status == 0
    assert f", {num_faults} repaired" in lines[-1]
    assert tree(root) == tree(prepared)
    assert run(capsys, root)[0] == 0


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (cut, "is damaged"),
        (empty, "is damaged"),
        (Path.unlink, "is missing"),
        (lambda path: path.write_text(path.read_text().replace('"zero"', '"null"')), "does not match its own digest"),
        (lambda path: path.write_text(path.read_text() + " "), "does not match its own digest"),
    ],
)
def test_a_damaged_manifest_is_named_and_nothing_else_touched(
    harm: Harm, words: str, root: Path, digits_source: Path, capsys: Any
) -> None:
    harm(root / "train" / MANIFEST)
    before = tree(root)
    status, lines = run(capsys, root, "--repair", "--source", digits_source)
    assert status == 1
    assert lines[0].startswith(f"{root}/train/{MANIFEST} {words}")
    assert "prepare it again" in lines[0]
    assert tree(root) == before


def test_an_unfinished_preparation_is_told_apart(root: Path, capsys: Any) -> None:
    (root / "train" / MANIFEST).unlink()
    leave_work(root / "train" / ".prep")
    status, lines = run(capsys, root)
    assert status == 1
    assert "the preparation did not finish: run prep/shard.py (or prep/adopt.py) again" in lines[0]


def test_both_splits_may_be_damaged_at_once(root: Path, prepared: Path, digits_source: Path, capsys: Any) -> None:
    for split in SPLITS:
        flip(root / split / "samples.arrow", 5000)
    (root / "validation" / "ledger.jsonl").unlink()
    assert run(capsys, root, "--repair", "--source", digits_source)[0] == 0
    assert tree(root) == tree(prepared)


def test_a_lone_split_is_verified_and_repaired(root: Path, prepared: Path, digits_source: Path, capsys: Any) -> None:
    cut(root / SHARD)
    cut(root / "validation" / "validation-000000.tar")
    status, lines = run(capsys, root / "train", "--repair", "--source", digits_source)
    assert (status, len(lines)) == (0, 2)
    assert tree(root / "train") == tree(prepared / "train")
    assert run(capsys, root)[0] == 1


def test_without_a_source_the_line_asks_for_it(root: Path, capsys: Any) -> None:
    cut(root / SHARD)
    status, lines = run(capsys, root, "--repair")
    assert status == 1
    assert any(line.startswith("not repaired: ") and line.endswith("give its path with --source") for line in lines)


def test_another_source_is_refused(root: Path, tmp_path: Path, digits_source: Path, capsys: Any) -> None:
    cut(root / SHARD)
    before = tree(root)
    other = Path(shutil.copytree(digits_source, tmp_path / "other"))
    status, lines = run(capsys, root, "--repair", "--source", other)
    assert status == 1
    assert f"not repaired: {root}/train was begun with name" in lines[1]
    assert tree(root) == before


def test_strangers_are_notes_and_a_lost_split_is_a_fault(root: Path, capsys: Any) -> None:
    (root / "train" / "README").write_text("hello")
    (root / "notes.txt").write_text("hello")
    status, lines = run(capsys, root)
    assert status == 0
    assert {line.partition(" does not belong ")[0] for line in lines[:2]} == {
        f"note: {root}/train/README",
        f"note: {root}/notes.txt",
    }
    shutil.rmtree(root / "validation")
    status, lines = run(capsys, root)
    assert status == 1
    assert any(line.startswith(f"{root}/validation does not exist: prepare it again") for line in lines)


@pytest.mark.parametrize("seed", range(NUM_FLIPS))
def test_no_random_damage_goes_unnoticed(
    seed: int, root: Path, prepared: Path, digits_source: Path, capsys: Any
) -> None:
    draw = random.Random(seed)
    names = sorted(name for name in tree(root) if name != "README.md")  # without it, or with another, all is whole
    chosen = draw.choices(names, k=draw.choice((1, 1, 2)))
    harmed = {name: random_harm(root / name, draw) for name in dict.fromkeys(chosen)}
    status, lines = run(capsys, root)
    assert status == 1, harmed
    for name in harmed:
        assert any(f"{root}/{name.partition('/')[0]}" in line for line in lines[:-1]), (harmed, lines)
    status, _ = run(capsys, root, "--repair", "--source", digits_source)
    if all(MANIFEST not in name for name in harmed):
        assert status == 0, harmed
        assert tree(root) == tree(prepared), harmed
    else:
        assert status == 1, harmed
