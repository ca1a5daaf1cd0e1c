"""Samples of adopted tars with several images or labels: nothing is lost or mislabelled without a line that says so."""

import json
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import run_command
from helpers.tars import Members, adopt, encode_image, ledger, one_by_one, tar_bytes, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from prep.adoption import Adoption, adopt_split
from prep.checks import check_dataset, find_layout
from prep.dataset import REJECTED, Split
from prep.errors import InputError
from prep.images import UnusableImageError
from prep.store import LocalStore
from prep.tar import Component, TarSample
from prep.tar_sample import Fields, choose_members
from prep.tar_sets import find_tars

JPEG, PNG = encode_image(), encode_image("RGB", "PNG")
GOOD: Members = [("good.jpg", encode_image(grey=7)), ("good.cls", b"0")]


def sample(members: Mapping[str, bytes]) -> TarSample:
    """A sample of members by their extensions."""
    components = [
        Component(extension, i, len(data), f"folder/photo.{extension}", b"", data)
        for i, (extension, data) in enumerate(members.items())
    ]
    return TarSample("folder/photo", tuple(components))


def taken(members: Mapping[str, bytes], fields: Fields) -> tuple[str, int, tuple[str, ...]] | str:
    """The image, the label and what was passed over; or the reason why there are none."""
    try:
        choice = choose_members(sample(members), fields)
    except UnusableImageError as reason:
        return str(reason)
    return choice.image.extension, choice.label, choice.passed_over


ANY = Fields()
DIFFERS = "label of .json where it differs from .cls"
NO_INTEGER = ".cls where it holds no integer and .json has a label"
TAKEN: list[tuple[dict[str, bytes], Fields, tuple[str, int, tuple[str, ...]]]] = [
    ({"jpg": b"", "cls": b"3"}, ANY, ("jpg", 3, ())),
    ({"JPG": b"", "CLS": b" 3\n"}, ANY, ("JPG", 3, ())),
    ({"image.jpg": b"", "label.cls": b"3"}, Fields("image.jpg", "label.cls"), ("image.jpg", 3, ())),
    ({"image.jpg": b"", "cls": b"3"}, ANY, ("image.jpg", 3, ())),
    ({"1.jpg": b"", "1.cls": b"3"}, ANY, ("1.jpg", 3, ())),
    ({"seg.png": b"", "jpg": b"", "cls": b"3"}, ANY, ("jpg", 3, (".seg.png next to .jpg",))),
    ({"png": b"", "jpg": b"", "cls": b"3"}, ANY, ("jpg", 3, (".png next to .jpg",))),
    ({"a.jpg": b"", "mask.png": b"", "cls": b"3"}, Fields("a.jpg"), ("a.jpg", 3, (".mask.png next to .a.jpg",))),
    ({"jpg": b"", "mask.jpg": b"", "cls": b"3"}, Fields("jpg"), ("jpg", 3, (".mask.jpg next to .jpg",))),
    ({"jpg": b"", "cls": b"3", "fine.cls": b"70"}, ANY, ("jpg", 3, (".fine.cls next to .cls",))),
    ({"jpg": b"", "cls": b"3", "fine.cls": b"70"}, Fields(None, "fine.cls"), ("jpg", 70, ())),
    ({"jpg": b"", "cls": b"3", "json": b'{"label": 3}'}, ANY, ("jpg", 3, ())),
    ({"jpg": b"", "cls": b"3", "json": b'{"label": 4}'}, ANY, ("jpg", 3, (DIFFERS,))),
    ({"jpg": b"", "cls": b"3", "json": b'{"label": 4}'}, Fields(label_key="label"), ("jpg", 4, ())),
    ({"jpg": b"", "cls": b"tench", "json": b'{"label": 4}'}, ANY, ("jpg", 4, (NO_INTEGER,))),
    ({"jpg": b"", "json": b'{"label": 4, "cls": 4}'}, ANY, ("jpg", 4, ())),
    ({"jpg": b"", "json": b'{"label": "x", "cls": 4}'}, ANY, ("jpg", 4, ())),
    ({"jpg": b"", "json": b'{"meta": {"class_id": 9}}'}, Fields(label_key="meta.class_id"), ("jpg", 9, ())),
    ({"jpg": b"", "txt": b"9"}, Fields(label_ext="txt"), ("jpg", 9, ())),
    ({"jpg": b"", "a.json": b'{"y": 9}', "json": b"{}"}, Fields(None, "a.json", "y"), ("jpg", 9, ())),
    ({"bin": b"", "cls": b"1"}, Fields("bin"), ("bin", 1, ())),
]  # fmt: skip


@pytest.mark.parametrize(("members", "fields", "expected"), TAKEN)
def test_the_documented_member_is_taken_and_others_are_reported(
    members: dict[str, bytes], fields: Fields, expected: tuple[str, int, tuple[str, ...]]
) -> None:
    assert taken(members, fields) == expected
    backwards = dict(reversed(members.items()))
    found = taken(backwards, fields)
    assert found[:2] == expected[:2] and sorted(found[2]) == sorted(expected[2])


CLS = {"cls": b"3"}
REFUSED: list[tuple[dict[str, bytes], str]] = [
    ({"1.jpg": b"", "2.jpg": b"", "3.jpg": b"", **CLS}, "3 images in one sample (photo.1.jpg, photo.2.jpg, photo.3."),
    ({"1.jpg": b"", "1.cls": b"1", "2.jpg": b"", "2.cls": b"2"}, "2 images in one sample (photo.1.jpg, photo.2.jpg): "),
    ({"jpg": b"", "1.jpg": b"", **CLS}, "2 images in one sample (photo.jpg, photo.1.jpg): "),
    ({"jpg": b"", "1.png": b"", **CLS}, "2 images in one sample (photo.jpg, photo.1.png): "),
    ({"jpg": b"", "jpeg": b"", **CLS}, "2 images in one sample (photo.jpg, photo.jpeg): "),
    ({"image.jpg": b"", "mask.png": b"", **CLS}, "2 images in one sample (photo.image.jpg, photo.mask.png): "),
    ({"png": b"", "webp": b"", **CLS}, "2 images in one sample (photo.png, photo.webp): "),
    ({"jpg": b"", "JPG": b"", **CLS}, "two members of one name"),
    ({"jpg": b"", "a.cls": b"1", "b.cls": b"1"}, "2 labels in one sample (photo.a.cls, photo.b.cls): "),
    ({"jpg": b"", "a.json": b'{"label": 1}', "b.json": b"{}"}, "2 labels in one sample (photo.a.json, photo.b.json): "),
    ({"jpg": b"", "json": b'{"label": 1, "cls": 2}'}, "labels differ in photo.json (label 1, cls 2): "),
    ({"1.jpg": b"", "2.cls": b"1"}, "photo.1.jpg and photo.2.cls are in one sample and have different names: "),
    ({"jpg": b"", "2.cls": b"1"}, "photo.jpg and photo.2.cls are in one sample and have different names: "),
    ({"00001.jpg": b"", "00002.json": b'{"label": 1}'}, "photo.00001.jpg and photo.00002.json are in one sample"),
    ({"jpg": b"", "cls": b"n01440764"}, "no label: an integer is needed, photo.cls holds 'n01440764'"),
    ({"jpg": b"", "cls": b"3.0"}, "no label: an integer is needed, photo.cls holds '3.0'"),
    ({"jpg": b"", "cls": b""}, "no label: an integer is needed, photo.cls holds ''"),
    ({"jpg": b"", "cls": b"-1"}, "label -1 is outside 0 to 999,999"),
    ({"jpg": b"", "json": b'{"label": true}'}, "no label: an integer is needed, photo.json holds"),
    ({"jpg": b"", "json": b'{"label": 3.0}'}, "no label: an integer is needed, photo.json holds"),
    ({"jpg": b"", "json": b'{"label": "3"}'}, "no label: an integer is needed, photo.json holds"),
    ({"jpg": b"", "json": b'[{"label": 3}]'}, "no label: an integer is needed, photo.json holds"),
    ({"jpg": b""}, "no label: it has neither a .cls nor a .json"),
    ({"heic2": b"", **CLS}, "no image among its members: it has photo.heic2, photo.cls"),
]  # fmt: skip


@pytest.mark.parametrize(("members", "reason"), REFUSED)
def test_what_is_not_certain_is_refused_with_the_candidates(members: dict[str, bytes], reason: str) -> None:
    found = taken(members, ANY)
    assert isinstance(found, str) and found.startswith(reason)


EXTENSIONS = ["jpg", "1.jpg", "2.jpg", "b.jpg", "png", "seg.png", "1.png", "cls", "1.cls", "b.cls", "json", "b.json"]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.sampled_from(EXTENSIONS), min_size=1, unique=True), min_size=1, max_size=5))
def test_every_image_of_a_tar_is_kept_listed_or_reported(drawn: list[list[str]]) -> None:
    """kept + rejected + passed over = the images in the tar, whatever samples it holds."""
    contents = {"jpg": JPEG, "png": PNG, "cls": b"1", "json": b'{"label": 1}'}
    members = [*GOOD, *((f"s{i}.{e}", contents[e.rpartition(".")[2]]) for i, each in enumerate(drawn) for e in each)]
    num_images = sum(name.endswith((".jpg", ".png")) for name, _ in members)
    with tempfile.TemporaryDirectory() as folder:
        split = adopt(Path(folder) / "out", write_tar(Path(folder) / "a.tar", members))
        rejected = [found["name"] for found in ledger(split) if found["event"] == REJECTED]
        assert len(set(rejected)) == len(rejected)
        lines = [line for line in split.manifest.reading.get("passed_over", []) if " next to .jpg" in line]
        passed_over = sum(int(line.split(", in ")[1].split()[0]) for line in lines)
        num_rejected = sum(name.endswith((".jpg", ".png")) for name in rejected)
        assert len(split) + num_rejected + passed_over == num_images


def test_dots_in_names_are_told_and_renaming_is_enough(tmp_path: Path) -> None:
    """Names such as n01440764.00001.jpg share the part before the first dot."""
    dotted = [(f"n0.{i:03d}.{e}", d) for i in range(5) for e, d in (("jpg", encode_image(grey=i)), ("cls", b"1"))]
    done = run_command("prep/adopt.py", write_tar(tmp_path / "a.tar", [*GOOD, *dotted]), "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "6 offered = 1 kept + 0 repaired + 5 rejected" in done.stdout
    assert "5 images in one sample (n0.000.jpg, n0.001.jpg, n0.002.jpg, ...): " in done.stderr
    assert "rename files that have more dots" in done.stderr and done.stderr.count("\n") == 1
    renamed = [(name.replace("n0.", "n0_"), data) for name, data in dotted]
    assert len(adopt(tmp_path / "2", write_tar(tmp_path / "a.tar", [*GOOD, *renamed]))) == 6


def test_a_tar_of_nothing_else_stops_the_run(tmp_path: Path) -> None:
    dotted = [(f"n0.{i}.{e}", d) for i in range(5) for e, d in (("jpg", JPEG), ("cls", b"1"))]
    tar = write_tar(tmp_path / "a.tar", dotted)
    with pytest.raises(InputError, match=r"a\.tar has no usable image: 5 images in one sample \(n0\.0\.jpg, "):
        adopt(tmp_path / "out", tar)
    assert not (tmp_path / "out" / "train" / "manifest.json").exists()


def _run(tar: Path, out: Path, *flags: str) -> Any:
    return run_command("prep/adopt.py", tar, "--out", out, "--workers", "1", *flags)


def test_the_flag_that_a_refusal_names_chooses_and_is_kept_in_the_manifest(tmp_path: Path) -> None:
    """image.jpg with depth.jpg, and two labels: refused with both flags' names; with them it is taken and verified."""
    contents = {"image.jpg": JPEG, "depth.jpg": encode_image(grey=9), "coarse.cls": b"1", "fine.cls": b"7"}
    tar = write_tar(tmp_path / "a.tar", [(f"{key}.{e}", data) for key in "xy" for e, data in contents.items()])
    out = tmp_path / "out"
    done = _run(tar, out)
    assert done.returncode == 1 and "--image-ext" in done.stderr and done.stderr.count("\n") == 1
    done = _run(tar, out, "--image-ext", "image.jpg")
    assert done.returncode == 1 and "--label-ext" in done.stderr
    done = _run(tar, out, "--image-ext", "image.jpg", "--label-ext", ".fine.CLS")
    assert done.returncode == 0, done.stderr
    line = ".depth.jpg next to .image.jpg, in 2 samples (a.tar/x.image.jpg)"
    assert done.stderr == "" and line in done.stdout
    split = Split(out, "train")
    assert split.column("label").tolist() == [7, 7]
    assert split.manifest.reading == {"image_ext": "image.jpg", "label_ext": "fine.cls", "passed_over": [line]}
    assert check_dataset(find_layout(str(out)), None, one_by_one).faults == []
    with pytest.raises(InputError, match=r"adopted with --image-ext image\.jpg --label-ext fine\.cls: do the same"):
        adopt(out, tar)


def test_a_json_label_key_chooses_and_other_flags_index_again(tmp_path: Path) -> None:
    members = [m for i in range(3) for m in ((f"{i}.jpg", JPEG), (f"{i}.json", json.dumps({"a": {"b": i}}).encode()))]
    tar = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(InputError, match=r"no label: an integer is needed, 0\.json holds"):
        adopt(tmp_path / "out", tar)
    chosen = Adoption(find_tars([str(tar)]), fields=Fields(label_key="a.b"))
    adopt_split(chosen, LocalStore(tmp_path / "out"), one_by_one)
    assert Split(tmp_path / "out", "train").column("label").tolist() == [0, 1, 2]
    assert check_dataset(find_layout(str(tmp_path / "out")), None, one_by_one).faults == []


def test_labels_that_differ_are_reported_with_the_first(tmp_path: Path) -> None:
    members = [
        m for i in range(3)
        for m in ((f"{i}.jpg", JPEG), (f"{i}.cls", b"1"), (f"{i}.json", json.dumps({"label": min(i, 1)}).encode()))
    ]  # fmt: skip
    split = adopt(tmp_path / "out", write_tar(tmp_path / "a.tar", members))
    assert split.column("label").tolist() == [1, 1, 1]
    expected = "label of .json where it differs from .cls, in 1 samples (a.tar/0.jpg)"
    assert split.manifest.reading["passed_over"] == [expected]


def test_members_apart_are_told_and_the_command_that_is_named_joins_them(tmp_path: Path) -> None:
    members = [(f"{i}.jpg", encode_image(grey=i)) for i in range(3)] + [(f"{i}.cls", b"1") for i in range(3)]
    tar = write_tar(tmp_path / "a.tar", members)
    done = _run(tar, tmp_path / "out")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"{tar} has the members of a sample in separate places (0.jpg, 0.cls)" in done.stderr
    (tmp_path / "unpacked").mkdir()
    for advice in done.stderr.split("`")[1::2]:
        command = advice.replace("TAR", shlex.quote(str(tar))).replace("FOLDER", str(tmp_path / "unpacked"))
        subprocess.run(shlex.split(command), check=True)
    assert len(adopt(tmp_path / "out", tar)) == 3


def test_keys_that_repeat_are_no_samples_torn_apart(tmp_path: Path) -> None:
    members = [("1.jpg", JPEG), ("1.cls", b"0"), ("2.jpg", JPEG), ("2.cls", b"0"), ("1.jpg", JPEG), ("1.cls", b"1")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    assert len(adopt(tmp_path / "out", tmp_path / "a.tar")) == 3
