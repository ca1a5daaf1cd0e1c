"""Unusable parts of adopted tars are listed with their reason, or refused in one line that names them."""

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest
from helpers.commands import run_command
from helpers.datasets import tree
from helpers.tars import Members, adopt, encode_image, images, ledger, state, write_tar
from PIL import Image

from prep.adoption import read_class_names
from prep.dataset import REJECTED, Split
from prep.errors import InputError
from prep.ledger import PROGRESSIVE

JPEG, CMYK, PNG = encode_image(), encode_image("CMYK"), encode_image("RGB", "PNG")


def test_moved_tars_and_lost_indexes_are_restored(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", images(0, 1))
    before = tree(adopt(tmp_path / "out", tar).folder)
    (tmp_path / "b").mkdir()
    moved = tar.rename(tmp_path / "b" / "a.tar")
    with pytest.raises(InputError, match=r"a\.tar is missing"):
        Split(tmp_path / "out", "train")
    (tmp_path / "out" / "train" / "a.idx").unlink()
    assert tree(adopt(tmp_path / "out", moved).folder) == before
    (tmp_path / "out" / "train" / "a.idx").unlink()
    write_tar(moved, images(0, 0))
    with pytest.raises(InputError, match=r"b/a\.tar has changed since it was adopted"):
        adopt(tmp_path / "out", moved)


def test_timms_layout_is_adopted_with_the_names_of_its_classes(tmp_path: Path) -> None:
    """timm/imagenet-1k-wds: n01440764_10026.jpg, .cls, .json; here from links, as the hub's cache has them."""
    (tmp_path / "blobs").mkdir()
    fields = json.dumps({"filename": "n01440764_10026.JPEG", "label": 7, "class_name": "tench"}).encode()
    folders = [("n01443537/", b""), ("n01443537/n01443537_2.JPEG", JPEG), ("n01443537/n01443537_2.json", b'{"cls": 1}')]
    blob = write_tar(
        tmp_path / "blobs" / "5f3a",
        [("n01440764_10026.cls", b"0"), ("n01440764_10026.jpg", JPEG), ("n01440764_10026.json", fields), *folders],
    )
    link = tmp_path / "imagenet1k-train-0000.tar"
    link.symlink_to(blob)
    (tmp_path / "names.txt").write_text("tench\ngoldfish\ngreat white shark\n")
    split = adopt(tmp_path / "out", link, names=read_class_names(tmp_path / "names.txt"))
    assert split.keys([0, 1]) == ["n01440764_10026", "n01443537/n01443537_2"]
    assert split.column("label").tolist() == [0, 1]
    assert split.class_names == ("tench", "goldfish", "great white shark")
    assert split.shard_paths[0].readlink() == blob


def test_what_cannot_be_trained_on_in_place_is_listed_with_its_reason(tmp_path: Path) -> None:
    cut = JPEG[:150]
    members: Members = [
        *[
            m
            for key, image in (("png", PNG), ("cmyk", CMYK), ("cut", cut))
            for m in ((f"{key}.jpg", image), (f"{key}.cls", b"1"))
        ],
        *[("text.cls", b"1"), ("text.txt", b"no image")],
        *[("unlabelled.jpg", JPEG), ("unlabelled.cls", b"tench"), ("unlabelled.json", b'{"label": "1"}')],
        *[("negative.jpg", JPEG), ("negative.cls", b"-1")],
        *[("twice.jpg", JPEG), ("twice.JPG", JPEG), ("twice.cls", b"1")],
        *[("good.seg.png", PNG), ("good.JPG", JPEG), ("good.cls", b" 02\n")],
    ]
    split = adopt(tmp_path / "out", write_tar(tmp_path / "a.tar", members))
    assert split.keys([0]) == ["good"] and len(split) == 1
    assert split.column("label").tolist() == [2]
    assert split.class_names == ("0", "1", "2")
    assert {found["event"] for found in ledger(split)} == {REJECTED}
    assert [(found["row"], found["name"], found["reason"].split(":")[0]) for found in ledger(split)] == [
        (0, "a.tar/png.jpg", "PNG RGB is not an RGB or grey JPEG"),
        (1, "a.tar/cmyk.jpg", "JPEG CMYK baseline CMYK is not an RGB or grey JPEG"),
        (2, "a.tar/cut.jpg", "damaged"),
        (3, "a.tar/text.cls", "no image among its members"),
        (4, "a.tar/unlabelled.jpg", "no label"),
        (5, "a.tar/negative.jpg", "label -1 is outside 0 to 999,999"),
        (6, "a.tar/twice.jpg", "two members of one name"),
        (6, "a.tar/twice.JPG", "two members of one name"),
    ]
    assert "prep/shard.py" in ledger(split)[0]["reason"]
    assert (split.folder / "a.idx").read_text().startswith("v1.2 8\n")


def test_findings_that_reject_nothing_are_kept_in_the_order_of_the_split(tmp_path: Path) -> None:
    progressive = tmp_path / "p.jpg"
    Image.new("RGB", (16, 16)).save(progressive, progressive=True)
    first = write_tar(tmp_path / "a.tar", images(0, 1))
    last = write_tar(tmp_path / "b.tar", [("p.jpg", progressive.read_bytes()), ("p.cls", b"1")])
    split = adopt(tmp_path / "out", first, last)
    assert [(found["row"], found["name"], found["event"]) for found in ledger(split)] == [
        (1, "1", "duplicate"),
        (2, "b.tar/p.jpg", PROGRESSIVE),
    ]


def test_a_tar_without_a_usable_image_is_listed_and_not_linked(tmp_path: Path) -> None:
    bad = write_tar(tmp_path / "a.tar", [("1.jpg", PNG), ("1.cls", b"0")])
    good = write_tar(tmp_path / "b.tar", images(0))
    split = adopt(tmp_path / "out", bad, good)
    assert [path.name for path in split.shard_paths] == ["b.tar"]
    assert [(found["row"], found["name"]) for found in ledger(split)] == [(0, "a.tar/1.jpg")]
    assert not (split.folder / "a.tar").is_symlink() and not (split.folder / "a.idx").exists()
    before = tree(split.folder)
    assert tree(adopt(tmp_path / "out", bad, good).folder) == before


def test_keys_get_their_tars_name_where_they_repeat(tmp_path: Path) -> None:
    first, second = (write_tar(tmp_path / f"{name}.tar", images(0, 1)) for name in ("a", "b"))
    assert adopt(tmp_path / "1", first).keys([0, 1]) == ["0", "1"]
    assert adopt(tmp_path / "2", first, second).keys([0, 1, 2, 3]) == ["a/0", "a/1", "b/0", "b/1"]
    write_tar(second, [*images(0, 1, start=5), *images(1, start=5)])
    found = adopt(tmp_path / "3", first, second).keys(range(5))
    assert found == ["a/00000000/0", "a/00000001/1", "b/00000000/5", "b/00000001/6", "b/00000002/5"]


def test_shards_are_in_the_order_given(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{name}.tar", images(0, start=i)) for i, name in enumerate("ba")]
    assert [shard.name for shard in adopt(tmp_path / "1", *paths).manifest.shards] == ["b.tar", "a.tar"]
    assert [shard.name for shard in adopt(tmp_path / "2", tmp_path).manifest.shards] == ["a.tar", "b.tar"]
    revisions = {Split(tmp_path / out, "train").manifest.source.revision for out in "12"}
    assert len(revisions) == 2


def _refused(out: Path, *given: object, names: tuple[str, ...] | None = None) -> str:
    with pytest.raises(InputError) as error:
        adopt(out, *given, names=names)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_damaged_and_unusable_tars_are_refused_by_name(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", images(0, 1))
    content, out = tar.read_bytes(), tmp_path / "out"
    for damaged, reason in ((content[:1536], "is cut off"), (gzip.compress(content), "unpack it"), (b"", "is empty")):
        tar.write_bytes(damaged)
        assert f"{tar} " in _refused(out, tar) and reason in _refused(out, tar)
    write_tar(tar, [("1.jpg", PNG), ("1.cls", b"0"), ("2.jpg", JPEG)])
    assert "no image of train is usable (a.tar/1.jpg: PNG RGB is not an RGB or grey JPEG" in _refused(out, tar)
    assert not (out / "train" / "manifest.json").exists()
    tar.write_bytes(content)
    assert len(adopt(out, tar)) == 2


def test_the_command_refuses_in_one_line_what_a_worker_finds(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", images(0))
    (tmp_path / "b.tar").write_bytes(gzip.compress(bytes(1000)))
    done = run_command("prep/adopt.py", tmp_path, "--out", tmp_path / "out", "--workers", "2")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: .*/b\.tar is compressed \(gzip\): unpack it [^\n]*\n", done.stderr)


def test_what_is_given_wrongly_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    tar, twin = (write_tar(folder / "a.tar", images(0, 1)) for folder in (tmp_path, tmp_path / "b"))
    (tmp_path / "a.tgz").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    assert f"{tar} and {twin} have the same base name" in _refused(tmp_path / "out", tar, twin)
    assert "is not a file" in _refused(tmp_path / "out", tmp_path / "z.tar")
    assert "is not named *.tar" in _refused(tmp_path / "out", tmp_path / "a.tgz")
    assert "holds no *.tar" in _refused(tmp_path / "out", tmp_path / "empty")
    assert "1 in " in (message := _refused(tmp_path / "out", tar, names=("one",)))
    assert "has label 1, but the class names end at 0" in message
    with pytest.raises(InputError, match=r"line 2 of .*gap\.txt is empty"):
        read_class_names(tmp_path / "gap.txt")


def test_a_folder_that_holds_anything_else_is_refused(tmp_path: Path, digits: Path) -> None:
    tar, other = (write_tar(tmp_path / f"{name}.tar", images(0, 1)) for name in "ab")
    adopt(tmp_path / "out", tar)
    assert "was adopted from other tars" in _refused(tmp_path / "out", other)
    assert "was adopted from other tars" in _refused(tmp_path / "out", tar, other)
    assert "other class names" in _refused(tmp_path / "out", tar, names=("no", "yes"))
    copied = shutil.copytree(digits / "train", tmp_path / "digits" / "train")
    assert "was prepared from" in _refused(tmp_path / "digits", tar)
    (copied / "manifest.json").unlink()
    assert "holds train-000000.idx, which does not belong to these tars" in _refused(tmp_path / "digits", tar)
    (tmp_path / "train").mkdir()
    inside = Path(shutil.copy(tar, tmp_path / "train" / "a.tar"))
    before = state(inside)
    assert "holds a.tar" in _refused(tmp_path, inside)
    assert state(inside) == before
