"""Prepared with --restarts: the files of format 3, the same bytes for any workers; without, the same as before."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import run_command
from helpers.datasets import prepare_folder, tree
from helpers.hostile import encode, photo
from helpers.restarts import KINDS, make_jpeg, needs_transcoder
from helpers.tars import one_by_one

from prep.dataset import Manifest, Options, Split
from prep.errors import InputError
from prep.prepare import prepare_split
from prep.resolve import open_source
from prep.restarts import add_restarts
from prep.segments import find_segments, lengths_of, parse_records
from prep.store import LocalStore

OPTIONS = Options(images_per_shard=5, restarts=True)
# A grey JPEG of 1 x 1 pixel.
TINY = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb00430050373c463c32504641465a55505f78c882786e6e78f5afb991"
    "c8ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffc0000b08000100010101"
    "1100ffc40014000100000000000000000000000000000004ffc40014100100000000000000000000000000000000ffda0008"
    "010100003f001bffd9"
)


def _prepare(images: Path, out: Path, options: Options) -> Manifest:
    """Prepare the split train in this process."""
    return prepare_split(open_source(str(images)), "train", LocalStore(out), options, one_by_one)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with every kind of JPEG, a PNG, a progressive JPEG and a file that is not an image."""
    folder = tmp_path_factory.mktemp("source") / "images"
    (folder / "train" / "a").mkdir(parents=True)
    (folder / "train" / "b").mkdir()
    for number, kind in enumerate(KINDS):
        for label, name in enumerate("ab"):
            data = make_jpeg(kind, 60 + 40 * number, 50 + label, seed=number, interval=label)
            (folder / "train" / name / f"{number}.jpg").write_bytes(data)
    (folder / "train" / "a" / "png.jpg").write_bytes(encode(photo("china.jpg"), "PNG"))
    (folder / "train" / "b" / "progressive.jpg").write_bytes(encode(photo("china.jpg"), "JPEG", progressive=True))
    (folder / "train" / "b" / "text.jpg").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def prepared(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("restarts")
    _prepare(images, out, OPTIONS)
    return out


def _stored(folder: Path) -> dict[str, bytes]:
    """Return the stored JPEGs of a split by key."""
    split = Split(folder, "train")
    rows = split.samples.to_pylist()
    return {
        row["key"]: split.shard_paths[row["shard"]].read_bytes()[row["offset"] : row["offset"] + row["size"]]
        for row in rows
    }


# With restarts.


@needs_transcoder
def test_the_manifest_and_the_files_say_where_all_segments_are(prepared: Path) -> None:
    split = Split(prepared, "train")
    assert split.manifest.format_version == 3
    assert split.manifest.has_segments
    assert split.manifest.options == OPTIONS
    assert split.manifest.findings == {"no_restarts": 1, "progressive": 1, "rejected": 1, "repaired": 1}
    stored = list(_stored(prepared).values())
    for number, shard in enumerate(split.manifest.shards):
        path = split.segments_path(number)
        assert path == prepared / "train" / f"train-{number:06d}.seg"
        content = path.read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard.segments_sha256
        records = parse_records(content, path.name, shard.num_images)
        for record, data in zip(records, stored[: shard.num_images], strict=True):
            found = find_segments(data)
            if found is None:
                assert b"\xff\xc2" in data  # progressive
                assert not any(record.tolist())
            else:
                assert np.array_equal(lengths_of(content, record), found.lengths)
                assert record["interval"] == found.interval
        del stored[: shard.num_images]
    assert stored == []


@needs_transcoder
def test_each_image_is_what_transcoding_makes_of_the_image_without_restarts(
    images: Path, prepared: Path, tmp_path: Path
) -> None:
    _prepare(images, tmp_path, Options(images_per_shard=5))
    plain, with_restarts = _stored(tmp_path), _stored(prepared)
    assert len(plain) == 2 * len(KINDS) + 2
    assert with_restarts == {key: bytes(add_restarts(data).data) for key, data in plain.items()}
    assert sum(plain[key] == with_restarts[key] for key in plain) == 1  # the progressive one


@needs_transcoder
def test_two_workers_give_the_same_bytes(images: Path, prepared: Path, tmp_path: Path) -> None:
    prepare_folder(images, "train", tmp_path, OPTIONS, num_workers=2)
    assert tree(tmp_path) == tree(prepared)


@needs_transcoder
def test_the_command_reports_restarts_and_the_card_lists_the_flag(images: Path, prepared: Path, tmp_path: Path) -> None:
    command = ["prep/shard.py", "--source", images, "--out", tmp_path, "--images-per-shard", 5, "--restarts"]
    result = run_command(*command)
    assert result.returncode == 0, result.stderr
    before, after = (sum(map(len, _stored(folder).values())) for folder in (tmp_path, prepared))
    assert before == after
    assert tree(tmp_path) == tree(prepared)
    assert "\n  13 images transcoded to have restart markers\n" in result.stdout
    assert "\n          1 no_restarts       kept as it was: could not be transcoded\n" in result.stdout
    assert " bytes per image before, " in result.stdout
    card = (tmp_path / "README.md").read_text()
    assert "Prepared by Penstock, format 3: " in card
    assert card.count("| `--restarts` |") == 1


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _lose_segments(path: Path) -> None:
    path.with_suffix(".seg").unlink()


@needs_transcoder
@pytest.mark.parametrize("harm", [Path.unlink, _truncate, _lose_segments])
def test_a_shard_that_lost_a_file_is_written_again(
    harm: Callable[[Path], None], images: Path, prepared: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(prepared, tmp_path / "out"))
    harm(out / "train" / "train-000001.tar")
    _prepare(images, out, OPTIONS)
    assert tree(out) == tree(prepared)


@needs_transcoder
def test_a_folder_is_not_continued_with_or_without_restarts(images: Path, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was begun with restarts True, not False: use the same value"):
        _prepare(images, prepared, Options(images_per_shard=5))
    _prepare(images, tmp_path, Options(images_per_shard=5))
    with pytest.raises(InputError, match="was begun with restarts False, not True: use the same value"):
        _prepare(images, tmp_path, OPTIONS)


@needs_transcoder
def test_shards_without_a_usable_image_have_no_files(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "train" / "a"
    folder.mkdir(parents=True)
    (folder / "0.jpg").write_bytes(TINY)
    (folder / "1.jpg").write_bytes(b"")
    manifest = _prepare(tmp_path / "images", tmp_path / "out", Options(1, restarts=True))
    assert manifest.has_segments
    assert len(manifest.shards) == 1
    assert sorted(path.suffix for path in (tmp_path / "out" / "train").glob("train-*")) == [".idx", ".seg", ".tar"]


# Without.


def _prepare_tiny(tmp_path: Path) -> Path:
    for label, name in enumerate("ab"):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        for number in range(2):
            data = TINY + bytes(number + 2 * label)
            (tmp_path / "images" / "train" / name / f"{number}.jpg").write_bytes(data)
    _prepare(tmp_path / "images", tmp_path / "out", Options(images_per_shard=3))
    return tmp_path / "out"


def test_without_the_option_nothing_changed(tmp_path: Path) -> None:
    files = tree(_prepare_tiny(tmp_path))
    manifest = json.loads(files["train/manifest.json"])
    # The digest of these is golden: prepared data of another form is another dataset. Arrow may change its own bytes.
    del files["train/samples.arrow"], manifest["samples_sha256"], manifest["manifest_sha256"]
    files["train/manifest.json"] = json.dumps(manifest).encode()
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    assert sorted(files) == [
        *("README.md", "_info.json", "leaks.jsonl", "train/ledger.jsonl", "train/manifest.json"),
        *("train/train-000000.idx", "train/train-000000.tar", "train/train-000001.idx", "train/train-000001.tar"),
    ]
    assert digest.hexdigest() == "a6212a7d7e5e7cc81d4ccd9c07ac5f7f1dcb154ac1fe3005c4fd6a2b888fe876"
    assert not Split(tmp_path / "out", "train").manifest.has_segments


def test_a_folder_that_an_older_version_began_is_continued(tmp_path: Path) -> None:
    """Its job file and its records do not know of restarts."""
    whole = tree(_prepare_tiny(tmp_path))
    out = tmp_path / "begun"

    def stop_after_one(write: Callable[[Any], Any], jobs: list[Any]) -> Iterator[tuple[Any, Any]]:
        yield from one_by_one(write, jobs[:1])
        raise KeyboardInterrupt

    options = Options(images_per_shard=3)
    with pytest.raises(KeyboardInterrupt):
        prepare_split(open_source(str(tmp_path / "images")), "train", LocalStore(out), options, stop_after_one)
    for name, part in (("job.json", None), ("train-000000.tar.json", "shard")):
        path = out / "train" / ".prep" / name
        fields = json.loads(path.read_text())
        del (fields[part] if part else fields)["segments_sha256" if part else "restarts"]
        path.write_text(json.dumps(fields))
    _prepare(tmp_path / "images", out, options)
    assert tree(out) == whole


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    path = _prepare_tiny(tmp_path) / "train" / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 4'))
    with pytest.raises(InputError, match="has format 4, this version of Penstock reads formats 2 and 3: prepare"):
        Split(tmp_path / "out", "train")
