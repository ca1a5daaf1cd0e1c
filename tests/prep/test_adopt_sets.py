"""Only complete sets of the tars of one split are adopted, and only tars of samples."""

import gzip
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import run_command
from helpers.datasets import tree
from helpers.tars import adopt, encode_image, images, one_by_one, tar_bytes, write_tar

from prep.adopt import parse_arguments
from prep.adoption import Adoption, adopt_split
from prep.dataset import Split
from prep.errors import InputError
from prep.store import LocalStore
from prep.tar_sets import find_tars

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Make a folder of tars, each with an image or more."""

    def make(*names: str, num_images: int = 1) -> Path:
        for i, name in enumerate(names):
            write_tar(tmp_path / "in" / name, images(*[0] * num_images, start=i * num_images))
        return tmp_path / "in"

    return make


def refusal(out: Path, *given: object, split: str | None = None) -> str:
    with pytest.raises(InputError) as error:
        adopt(out, *given, split=split)
    assert "\n" not in str(error.value)
    assert not (out / "train" / "manifest.json").exists()
    return str(error.value)


def run_advice(text: str, out: Path) -> list[Split]:
    """Do what each `prep/adopt.py …` that a refusal names would; the splits."""
    found = []
    for advice in re.findall(r"`prep/adopt\.py ([^`]*)`", text):
        arguments = parse_arguments(shlex.split(advice.replace("DIR", str(out))))
        found.append(adopt(arguments.out, *arguments.tars, split=arguments.split))
    return found


# Several splits.


def test_a_folder_of_two_splits_is_refused_with_a_command_for_each(folder: Folder, tmp_path: Path) -> None:
    """timm/imagenet-1k-wds is one folder of both."""
    train, validation = [f"imagenet1k-train-{i:04d}.tar" for i in range(3)], ["imagenet1k-validation-00.tar"]
    given = folder(*train, *validation)
    text = refusal(tmp_path / "out", given)
    assert (
        f"{given} holds tars of 2 splits, train: 3 (imagenet1k-train-0000.tar to imagenet1k-train-0002.tar); " in text
    )
    for advice in re.findall(r"`([^`]*)`", text):
        done = run_command(*shlex.split(advice.replace("DIR", str(tmp_path / "out"))))
        assert done.returncode == 0, done.stderr
    splits = [Split(tmp_path / "out", name) for name in ("train", "validation")]
    assert [[shard.name for shard in split.manifest.shards] for split in splits] == [train, validation]
    assert [split.manifest.split for split in splits] == ["train", "validation"]
    expected = "1 tars of validation (imagenet1k-validation-00.tar)"
    assert splits[0].manifest.reading == {"passed_over": [expected]}


@pytest.mark.parametrize(
    "names",
    [
        ("train-0.tar", "val-0.tar"),
        ("a_Train_0.tar", "a_Valid_0.tar"),
        ("training0.tar", "testing0.tar"),
        ("cifarTrain.tar", "cifarTest.tar"),
        ("train2017-0.tar", "dev2017-0.tar"),
        ("shard-0.tar", "shard-1.tar", "val-0.tar"),
    ],
)
def test_names_of_two_splits_in_any_spelling_are_told_apart(
    names: tuple[str, ...], folder: Folder, tmp_path: Path
) -> None:
    text = refusal(tmp_path / "out", folder(*names))
    assert " holds tars of 2 splits" in text and all(name in text for name in names)
    assert sum(map(len, run_advice(text, tmp_path / "out"))) == (1 if "shard-0.tar" in names else 2)


def test_info_json_tells_splits_apart_where_names_do_not(folder: Folder, tmp_path: Path) -> None:
    given = folder(*(f"part-{i}.tar" for i in range(4)))
    write_info(given, {"train": {f"part-{i}.tar": 1 for i in range(3)}, "holdout": {"part-3.tar": 1}})
    text = refusal(tmp_path / "out", given)
    assert "holds tars of 2 splits, train: 3 (part-0.tar to part-2.tar); holdout: 1 (part-3.tar)" in text
    assert list(map(len, run_advice(text, tmp_path / "out"))) == [3, 1]


def test_tars_of_two_splits_given_one_by_one_are_refused(folder: Folder, tmp_path: Path) -> None:
    given = folder("train-0.tar", "val-0.tar")
    for split in (None, "train", "val"):
        text = refusal(tmp_path / "out", given / "train-0.tar", given / "val-0.tar", split=split)
        assert text.endswith("give the tars of one split at a time")
    assert len(adopt(tmp_path / "out", given / "val-0.tar", split="validation")) == 1


def test_another_name_joins_splits(folder: Folder, tmp_path: Path) -> None:
    given = folder("train-0.tar", "val-0.tar")
    assert len(adopt(tmp_path / "out", given, split="everything")) == 2


def test_validation_tars_do_not_become_train_by_default(folder: Folder, tmp_path: Path) -> None:
    given = folder("imagenet-val-0.tar", "imagenet-val-1.tar")
    for tars in ([given], sorted(given.iterdir())):
        assert "the names say validation; give --split validation, or --split train" in refusal(tmp_path / "out", *tars)
    assert len(adopt(tmp_path / "out", given, split="validation")) == 2


def test_a_contradiction_that_is_meant_is_warned_of(folder: Folder, tmp_path: Path) -> None:
    done = run_command("prep/adopt.py", folder("train-0.tar"), "--out", tmp_path / "out", "--split", "validation")
    assert done.returncode == 0
    assert done.stderr == "warning: train-0.tar: the names say train, but --split says validation\n"


def test_folders_of_splits_are_named(tmp_path: Path) -> None:
    for name, num_tars in (("train", 2), ("val", 1)):
        for i in range(num_tars):
            write_tar(tmp_path / "in" / name / f"{i}.tar", images(0))
    text = refusal(tmp_path / "out", tmp_path / "in")
    assert f"{tmp_path / 'in'} holds no *.tar, its folders do: train (2), val (1): adopt each, " in text
    assert list(map(len, run_advice(text, tmp_path / "out"))) == [2, 1]


def test_tars_deeper_in_a_folder_are_reported(folder: Folder, tmp_path: Path) -> None:
    given = folder("a.tar", "more/b.tar", "more/c.tar")
    assert adopt(tmp_path / "out", given).manifest.reading == {"passed_over": [f"2 tars in {given / 'more'}"]}


# Parts that are not there.


def write_info(folder: Path, splits: dict[str, dict[str, int]]) -> None:
    described = {
        split: {"name": split, "filenames": list(counts), "shard_lengths": list(counts.values())}
        for split, counts in splits.items()
    }
    (folder / "_info.json").write_text(json.dumps({"splits": described}))


def numbered(form: str, *numbers: int) -> list[str]:
    return [form.format(number) for number in numbers]


GAPS = [
    (numbered("train-{:06d}.tar", 0, 1, 2, 4, 5, 6, 7), "1 of 8 numbered tars: train-000003.tar"),
    (numbered("train-{:06d}.tar", 1, 2, 5), "2 of 5 numbered tars: train-000003.tar, train-000004.tar"),
    (numbered("train-{:06d}.tar", 2, 3), "2 of 4 numbered tars: train-000000.tar, train-000001.tar"),
    (numbered("part{}.tar", 0, 1, 10, 3, 4, 5, 6, 7, 8, 9), "1 of 11 numbered tars: part2.tar"),
    (numbered("{:05d}.tar", 0, 2), "1 of 3 numbered tars: 00001.tar"),
    (numbered("a-224px-{:03d}.tar", 0, 3), "2 of 4 numbered tars: a-224px-001.tar, a-224px-002.tar"),
    (numbered("{:03d}-224px.tar", 0, 2), "1 of 3 numbered tars: 001-224px.tar"),
    (numbered("train-{:05d}-of-00004.tar", 0, 1, 3), "1 of 4 numbered tars: train-00002-of-00004.tar"),
    (numbered("train-{:05d}-of-00004.tar", 0, 1, 2), "1 of 4 numbered tars: train-00003-of-00004.tar"),
    (numbered("train_{}_of_3.tar", 1, 3), "1 of 3 numbered tars: train_2_of_3.tar"),
    (numbered("train-{:05d}-of-00900.tar", 7), "899 of 900 numbered tars: train-00000-of-00900.tar, "),
    ([*numbered("a-{:02d}.tar", 0, 1), *numbered("b-{:02d}.tar", 0, 2)], "1 of 3 numbered tars: b-01.tar"),
    (["e0-s00.tar", "e0-s01.tar", "e1-s00.tar", "e1-s02.tar"], "1 of 3 numbered tars: e1-s01.tar"),
]


@pytest.mark.parametrize(("names", "missing"), GAPS, ids=[text for _, text in GAPS])
def test_a_gap_in_numbered_names_stops_the_run_unless_allowed(
    names: list[str], missing: str, folder: Folder, tmp_path: Path
) -> None:
    given = folder(*names)
    text = refusal(tmp_path / "out", given)
    assert text.startswith(f"parts are missing, {missing}")
    assert text.endswith(": fetch them, or give --allow-missing to continue without them")
    assert not (tmp_path / "out").exists()
    allowed = Adoption(find_tars([str(given)]), allow_missing=True)
    adopt_split(allowed, LocalStore(tmp_path / "out"), one_by_one)
    (line,) = Split(tmp_path / "out", "train").manifest.reading["missing"]
    assert line.startswith(missing)


WHOLE = [
    numbered("train-{:06d}.tar", *range(12)),
    numbered("part-{}.tar", *range(1, 12)),
    ["train-00000-of-00002.tar", "train-00001-of-00002.tar"],
    ["train-1-of-2.tar", "train-2-of-2.tar"],
    ["n01440764.tar", "n01443537.tar", "n02085620.tar"],
    ["2019-01-31.tar", "2024-12-01.tar"],
    ["a1b2.tar", "c9d8.tar"],
    ["train-000003.tar"],
    ["x.tar"],
]


@pytest.mark.parametrize("names", WHOLE, ids=[names[0] for names in WHOLE])
def test_sets_without_a_gap_and_names_that_count_nothing_are_complete(
    names: list[str], folder: Folder, tmp_path: Path
) -> None:
    assert len(adopt(tmp_path / "out", folder(*names))) == len(names)


def test_the_flag_goes_on_and_fetching_the_part_does_too(folder: Folder, tmp_path: Path) -> None:
    given = folder("a-000.tar", "a-002.tar")
    command = ["prep/adopt.py", given, "--out", tmp_path / "1", "--workers", "1"]
    done = run_command(*command)
    assert (done.returncode, done.stdout) == (1, "") and "--allow-missing" in done.stderr
    done = run_command(*command, "--allow-missing")
    assert done.returncode == 0, done.stderr
    line = "1 of 3 numbered tars: a-001.tar"
    assert f"missing, allowed: {line}" in done.stdout
    write_tar(given / "a-001.tar", images(0, start=50))
    assert len(adopt(tmp_path / "2", given)) == 3


def test_some_tars_of_a_whole_folder_may_be_given(folder: Folder, tmp_path: Path) -> None:
    given = folder(*numbered("a-{:03d}.tar", *range(4)))
    assert len(adopt(tmp_path / "out", given / "a-001.tar", given / "a-003.tar")) == 2


def test_patterns_that_the_shell_left_are_expanded(folder: Folder, tmp_path: Path) -> None:
    given = folder(*numbered("a-{:03d}.tar", *range(4)))
    assert len(adopt(tmp_path / "1", given / "a-{000..003}.tar")) == 4
    assert len(adopt(tmp_path / "2", given / "a-00[12].tar")) == 2
    text = refusal(tmp_path / "3", given / "a-{000..005}.tar")
    assert f"parts are missing, {given}/a-004.tar of {given}/a-{{000..005}}.tar; {given}/a-005.tar of " in text
    assert "matches no file" in refusal(tmp_path / "3", given / "b-{000..003}.tar")
    (given / "{1,2}.tar").write_bytes((given / "a-000.tar").read_bytes())
    assert len(adopt(tmp_path / "4", given / "{1,2}.tar")) == 1


def test_what_info_json_lists_must_be_there_and_hold_as_many_samples(folder: Folder, tmp_path: Path) -> None:
    given = folder("x.tar", "y.tar", num_images=3)
    write_info(given, {"train": {"train/x.tar": 3, "train/y.tar": 3, "train/z.tar": 3}})
    text = refusal(tmp_path / "out", given)
    assert text.startswith("parts are missing, 1 of 3 tars that _info.json lists for train: z.tar: fetch them")
    write_info(given, {"train": {"x.tar": 3, "y.tar": 4}})
    assert "y.tar holds 3 samples, 4 are listed" in refusal(tmp_path / "out", given)
    write_info(given, {"train": {"x.tar": 3, "y.tar": 3}})
    assert len(adopt(tmp_path / "out", given)) == 6


def test_numbers_that_info_json_leaves_out_are_no_gap(folder: Folder, tmp_path: Path) -> None:
    given = folder("train-000000.tar", "train-000002.tar")  # as prep/shard.py leaves them where all images are rejected
    write_info(given, {"train": {"train-000000.tar": 1, "train-000002.tar": 1}})
    assert len(adopt(tmp_path / "out", given)) == 2


def test_a_list_that_is_no_json_is_told(folder: Folder, tmp_path: Path) -> None:
    given = folder("x.tar")
    (given / "_info.json").write_text('{"splits": ')
    assert f"{given}/_info.json is not JSON (" in refusal(tmp_path / "out", given)


def test_webdatasets_sizes_json_is_read(folder: Folder, tmp_path: Path) -> None:
    given = folder("x.tar", "y.tar")
    (given / "sizes.json").write_text(json.dumps({"x.tar": 1, "y.tar": 2, "z.tar": 1}))
    assert "1 of 3 tars that sizes.json lists: z.tar" in refusal(tmp_path / "out", given)
    (given / "sizes.json").write_text(json.dumps({"x.tar": 1, "y.tar": 2}))
    assert "y.tar holds 1 samples, 2 are listed" in refusal(tmp_path / "out", given)


def test_what_img2dataset_writes_for_each_tar_is_read(folder: Folder, tmp_path: Path) -> None:
    given = folder("00000.tar", "00001.tar", num_images=2)
    for i in range(3):
        (given / f"{i:05d}_stats.json").write_text(json.dumps({"count": 9, "successes": 2}))
    assert "1 tars that files such as 00002_stats.json describe: 00002" in refusal(tmp_path / "out", given)
    (given / "00002_stats.json").unlink()
    (given / "00001_stats.json").unlink()
    assert "1 tars are not finished, they have no _stats.json: 00001" in refusal(tmp_path / "out", given)
    (given / "00001_stats.json").write_text(json.dumps({"count": 9, "successes": 3}))
    assert "00001.tar holds 2 samples, 3 are listed" in refusal(tmp_path / "out", given)
    for path in given.glob("*_stats.json"):
        path.unlink()
    for i in range(2):
        statuses = pa.table({"status": ["success", "failed", *["success"] * (1 + i)]})
        pq.write_table(statuses, given / f"{i:05d}.parquet")
    assert "00001.tar holds 2 samples, 3 are listed" in refusal(tmp_path / "out", given)


@pytest.mark.parametrize("suffix", [".part", ".aria2", ".incomplete", ".crdownload"])
def test_what_is_still_being_fetched_is_told(suffix: str, folder: Folder, tmp_path: Path) -> None:
    given = folder("x.tar", "y.tar")
    (given / f"y.tar{suffix}").write_bytes(b"")
    assert f"y.tar is still being fetched, y.tar{suffix} is next to it" in refusal(tmp_path / "out", given)
    (given / "y.tar").unlink()
    assert f"parts are missing, y.tar{suffix} is not complete" in refusal(tmp_path / "out", given)


# Files that are not tars of samples.


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
            "a Git LFS pointer, not a tar: run `git",
        ),
        (b"<!DOCTYPE html><html>Sign in", "an HTML page, not a tar: fetch it again (its address may need a login)"),
        (
            b'<?xml version="1.0"?><Error>AccessDenied</Error>' * 20,
            "an XML page, as servers send for an error, not a t",
        ),
        (b'{"error": "gated"}', "JSON, as servers send for an error, not a tar: fetch it again"),
        (b"", "empty (0 bytes): fetch or write it again"),
        (gzip.compress(bytes(5000), mtime=0), "compressed (gzip): unpack it to a plain .tar"),
        (b'\x04"M\x18' + bytes(900), "compressed (lz4): unpack it"),
    ],
)
def test_what_lies_in_place_of_a_tar_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    assert f"{tmp_path}/x.tar is {words}" in refusal(tmp_path / "out", tmp_path / "x.tar")


def test_compressed_tars_in_a_folder_are_told(folder: Folder, tmp_path: Path) -> None:
    given = folder("a.tar")
    shutil.copy(given / "a.tar", given / "b.tar.gz")
    assert adopt(tmp_path / "out", given).manifest.reading == {"passed_over": ["1 compressed tars (b.tar.gz, ...)"]}
    (given / "a.tar").unlink()
    assert "holds no *.tar, only b.tar.gz: unpack them" in refusal(tmp_path / "out2", given)


def prepare(folder: Path, out: Path) -> Any:
    done = run_command("prep/shard.py", "--source", folder, "--out", out, "--workers", "1")
    assert done.returncode == 0, done.stderr
    return Split(out, "train")


def test_a_tar_of_tars_is_unpacked_as_advised(tmp_path: Path) -> None:
    """ILSVRC2012_img_train.tar holds a tar for each class."""
    inner = [
        (f"n0{c}.tar", tar_bytes([(f"n0{c}_{i}.JPEG", encode_image(grey=9 * c + i)) for i in range(2)])) for c in (1, 2)
    ]
    text = refusal(tmp_path / "out", write_tar(tmp_path / "ILSVRC2012_img_train.tar", inner), split="train")
    assert text.endswith("unpack each to FOLDER/train/NAME/ and run prep/shard.py --source FOLDER")
    for name, content in inner:
        into = tmp_path / "in" / "train" / name.removesuffix(".tar")
        into.mkdir(parents=True)
        subprocess.run(["tar", "-xC", into], input=content, check=True)
    assert prepare(tmp_path / "in", tmp_path / "out").class_names == ("n01", "n02")


@pytest.mark.parametrize("name", ["n01440764.tar", "ILSVRC2012_img.tar"])
def test_a_tar_of_images_without_labels_is_unpacked_as_advised(name: str, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / name, [(f"n01440764_{i}.JPEG", encode_image(grey=i)) for i in range(3)])
    text = refusal(tmp_path / "out", tar)
    assert f"{tar} holds 3 images and no labels, neither a .cls nor a .json" in text
    assert text.endswith("unpack its images to FOLDER/train/CLASS/ and run prep/shard.py --source FOLDER")
    into = tmp_path / "in" / "train" / "n01440764"
    into.mkdir(parents=True)
    subprocess.run(["tar", "-xf", tar, "-C", into], check=True)
    assert len(prepare(tmp_path / "in", tmp_path / "out")) == 3


def test_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.tar").symlink_to(tmp_path / "gone")
    assert f"{tmp_path}/x.tar is a broken link" in refusal(tmp_path / "out", tmp_path / "x.tar")


def test_adopting_with_other_flags_leaves_the_tars_as_they_are(folder: Folder, tmp_path: Path) -> None:
    given = folder("train-0.tar", "val-0.tar")
    before = tree(given)
    refusal(tmp_path / "out", given)
    adopt(tmp_path / "out", given, split="train")
    assert tree(given) == before


def test_a_list_of_another_folders_tars_tells_nothing(folder: Folder, tmp_path: Path) -> None:
    """Penstock's own `_info.json` lies a folder above the tars; that of a neighbour may list the same names."""
    given = folder("x.tar", "y.tar")
    write_info(tmp_path, {"train": {"other/x.tar": 9, "other/z.tar": 9}})
    assert len(adopt(tmp_path / "out", given)) == 2
    write_info(tmp_path, {"train": {"in/x.tar": 1, "in/z.tar": 1}})
    assert "1 of 2 tars that _info.json lists for train: z.tar" in refusal(tmp_path / "out2", given)


def test_an_out_in_the_folder_of_the_tars_is_no_part_of_it(folder: Folder) -> None:
    given = folder("x.tar")
    first = adopt(given, given).manifest
    assert first.reading == {} and adopt(given, given).manifest == first


@pytest.mark.parametrize("name", ["{a", "a}b{", "x[.tar", "*.tar"])
def test_a_pattern_of_nothing_is_one_line(name: str, tmp_path: Path) -> None:
    assert "matches no file" in refusal(tmp_path / "out", tmp_path / name)
