"""The files of each split and missing files: read by their names as `datasets` does, or refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.data_files import DataFilesDict, get_data_patterns
from helpers.commands import run_command

from prep.errors import InputError
from prep.listing import check_parts
from prep.resolve import open_source
from prep.source import Reading, Source

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _write(folder: Path, *names: str, num_rows: int = 1) -> Path:
    """Write parquet files; the images in each are its name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        images = pa.array([{"bytes": name.encode(), "path": None}] * num_rows, STRUCT)
        pq.write_table(pa.table({"image": images, "label": [0] * num_rows}), path)
    return folder


def _read(source: Source) -> dict[str, list[str]]:
    """Return {split: the files that its images came from}."""
    found = {}
    for split, num_rows in source.num_rows.items():
        source.check_split(split)
        found[split] = [bytes(item.data).decode() for item in source.rows(split, 0, num_rows)]
    return found


def _refusal(folder: Path, wanted: Reading | None = None) -> str:
    with pytest.raises(InputError) as refusal:
        _read(open_source(str(folder), wanted))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def _card(folder: Path, **header: object) -> Path:
    (folder / "README.md").write_text(f"---\n{json.dumps(header)}\n---\n")  # JSON is YAML
    return folder


LAYOUTS = [
    [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/validation-00000-of-00001.parquet",
    ],
    ["data/train-00000-of-00001-0123456789abcdef.parquet", "data/test-00000-of-00001-fedcba9876543210.parquet"],
    ["data/train-00000-of-00001.parquet", "data/unsupervised-00000-of-00001.parquet", "other.parquet"],
    ["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"],
    ["train.parquet", "dev.parquet", "eval.parquet"],
    ["train/0000.parquet", "train/0001.parquet", "validation/0000.parquet", "test/0000.parquet"],
    ["default/train/0000.parquet", "default/valid/0000.parquet"],
    ["my_train_file.parquet", "my-val-file.parquet", "leftover.parquet"],
    ["train2017/a.parquet", "val2017/b.parquet"],
    ["imagenet.parquet"],
    ["part-0.parquet", "part-1.parquet"],
    ["a/b/c/0000.parquet", "a/b/c/0001.parquet"],
    ["training/x.parquet", "testing/y.parquet"],
    ["constrained.parquet", "latest.parquet"],
    ["train/label=0/0.parquet", "train/label=1/0.parquet"],
    ["sub/train.0.parquet", "sub/train.1.parquet"],
    [".hidden/train.parquet", "__pycache__/train.parquet", ".train.parquet", "x.parquet"],
]


@pytest.mark.parametrize("names", LAYOUTS, ids=lambda names: names[0])
def test_splits_are_those_of_datasets(names: list[str], tmp_path: Path) -> None:
    folder = _write(tmp_path / "d", *names)
    theirs = DataFilesDict.from_patterns(get_data_patterns(str(folder)), str(folder))
    expected = {str(split): [str(Path(file).relative_to(folder)) for file in files] for split, files in theirs.items()}
    renamed = {"training": "train", "testing": "test"}
    ours = _read(open_source(str(folder)))
    assert ours == {renamed.get(split, split): files for split, files in expected.items()}
    assert list(ours) == list(expected)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Xtrain.parquet", "Xtest.parquet"], ""),  # not a separate word
        (["trainset.parquet", "testset.parquet"], "looks like a split by its name, but is not one by the rules"),
        (["ImageNetTrain.parquet", "ImageNetVal.parquet"], "looks like a split by its name"),
        (["TESTDATA/0.parquet", "rest/0.parquet"], "TESTDATA/0.parquet looks like a split by its name"),
        (
            ["train.parquet", "valset.parquet"],
            "valset.parquet names the split validation, but not in the way that train.parquet does",
        ),
        (
            ["train/0.parquet", "validation.parquet"],
            "validation.parquet names the split validation, but not",
        ),
        (
            ["data/train-00000-of-00001.parquet", "test.parquet"],
            "names the split test, but not in the way that data/",
        ),
        (["train/val-0.parquet"], "train/val-0.parquet names the splits train and validation: rename it"),
        (["train/test/0.parquet", "train/0.parquet"], "names the splits test and train: rename it"),
        (["train_test_split.parquet"], "names the splits test and train: rename it"),
        (["val.parquet", "dev.parquet"], "dev.parquet and val.parquet both are the split validation by their names"),
        (["test/0.parquet", "eval/0.parquet"], "both are the split test by their names: move one of them away"),
    ],
)
def test_names_that_datasets_would_merge_or_drop_are_refused(names: list[str], words: str, tmp_path: Path) -> None:
    folder = _write(tmp_path / "d", *names)
    if not words:
        assert _read(open_source(str(folder))) == {"train": sorted(names)}
        return
    assert words in _refusal(folder)


@pytest.mark.parametrize(
    "names",
    [
        ["trainset.parquet", "testset.parquet"],
        ["train.parquet", "testset.parquet"],
        ["train/0.parquet", "test.parquet"],
        ["data/train-00000-of-00001.parquet", "test.parquet"],
    ],
)
def test_a_refused_name_is_taken_when_it_is_changed_as_the_line_says(names: list[str], tmp_path: Path) -> None:
    folder = _write(tmp_path / "d", *names)
    for _ in names:
        try:
            found = _read(open_source(str(folder)))
        except InputError as error:
            name = re.search(r"(\S+\.parquet) (looks|names)", str(error))
            assert name
            if renamed := re.search(r"rename it, for example to ([\w.-]+)", str(error)):
                (folder / name[1]).rename(folder / renamed[1])
            elif moved := re.search(r"move it into a folder (\w+)", str(error)):
                (folder / moved[1]).mkdir()
                (folder / name[1]).rename(folder / moved[1] / name[1])
            else:
                assert "move the others out of data/ to where it is" in str(error)
                (folder / names[0]).rename(folder / Path(names[0]).name)
    found = _read(open_source(str(folder)))
    assert found == {"train": [names[0]], "test": [names[1]]}


@pytest.mark.parametrize("case", [str.lower, str.title, str.upper])
def test_the_case_of_a_split_name_does_not_matter(case: Callable[[str], str], tmp_path: Path) -> None:
    for number, pattern in enumerate(("{}.parquet", "{}/0.parquet", "data/{}-00000-of-00001.parquet")):
        folder = _write(tmp_path / str(number), *(pattern.format(case(name)) for name in ("train", "val", "test")))
        found = _read(open_source(str(folder)))
        assert {split: len(rows) for split, rows in found.items()} == {"train": 1, "validation": 1, "test": 1}


def test_folders_that_hold_the_same_split_are_configurations_to_choose_from(tmp_path: Path) -> None:
    names = [f"{config}/{split}-00000-of-00001.parquet" for config in ("coarse", "fine") for split in ("train", "test")]
    folder = _write(tmp_path / "d", *names)
    line = _refusal(folder)
    assert "holds the same split in the folders coarse, fine: choose one with --config coarse, or move" in line
    source = open_source(str(folder), Reading(config="coarse"))
    assert _read(source) == {split: [f"coarse/{split}-00000-of-00001.parquet"] for split in ("train", "test")}
    assert source.reading("train")["passed_over"] == ["configuration fine"]
    assert "unknown configuration 'coars', it has coarse, fine; did you mean 'coarse'?" in _refusal(
        folder, Reading("coars")
    )
    assert "only one configuration: leave out --config x" in _refusal(_write(tmp_path / "e", "0.parquet"), Reading("x"))
    merged = _write(tmp_path / "f", "a/train/0.parquet", "b/val/0.parquet")
    assert _read(open_source(str(merged))) == {"train": ["a/train/0.parquet"], "validation": ["b/val/0.parquet"]}


CONFIGS = [
    {"config_name": "small", "data_files": [{"split": "train", "path": "small/*.parquet"}]},
    {
        "config_name": "large",
        "data_files": [{"split": "train", "path": ["large/a*", "large/b*"]}, {"split": "dev", "path": "large/v*"}],
    },
]
FILES = ["small/0.parquet", "large/a.parquet", "large/b.parquet", "large/v.parquet", "stray.parquet"]


def test_configurations_of_the_card_are_chosen_by_name_or_by_its_default(tmp_path: Path) -> None:
    folder = _card(_write(tmp_path / "d", *FILES), configs=CONFIGS)
    assert f"{folder}: it has the configurations small, large: choose one with --config small" == _refusal(folder)
    source = open_source(str(folder), Reading(config="large"))
    assert _read(source) == {"train": ["large/a.parquet", "large/b.parquet"], "validation": ["large/v.parquet"]}
    assert source.reading("validation")["split_map"] == {"dev": "validation"}
    passed_over = source.reading("train")["passed_over"]
    assert passed_over == ["configuration small", "file stray.parquet, which no split's name fits"]
    _card(folder, configs=[CONFIGS[0], CONFIGS[1] | {"default": True}])
    again = open_source(str(folder))
    assert (_read(again), again.reading("train")) == (_read(source), source.reading("train"))
    assert "did you mean 'small'?" in _refusal(folder, Reading(config="Small"))


@pytest.mark.parametrize("entry", [{"data_files": "x/**"}, {"data_dir": "x"}])
def test_a_cards_patterns_are_read_as_datasets_reads_them(entry: dict[str, str], tmp_path: Path) -> None:
    folder = _card(_write(tmp_path / "d", "x/0.parquet", "y/1.parquet"), configs=[{"config_name": "one", **entry}])
    assert _read(open_source(str(folder))) == {"train": ["x/0.parquet"]}
    builder = datasets.load_dataset_builder(str(folder), cache_dir=str(tmp_path / "cache"))
    assert builder.config.data_files is not None
    assert [Path(str(file)).name for file in builder.config.data_files["train"]] == ["0.parquet"]


def test_a_card_that_describes_several_configurations_of_the_same_files_is_refused(tmp_path: Path) -> None:
    names = {"fine": ["a", "b"], "coarse": ["c"]}
    infos = [
        {
            "config_name": config,
            "features": [{"name": "label", "dtype": {"class_label": {"names": names[config]}}}],
        }
        for config in names
    ]
    folder = _card(_write(tmp_path / "d", "train.parquet"), dataset_info=infos)
    assert "README.md describes the configurations fine, coarse: choose one with --config fine" in _refusal(folder)
    source = open_source(str(folder), Reading(config="fine"))
    assert source.class_names == ("a", "b")
    assert source.reading("train")["config"] == "fine"
    assert source.reading("train")["passed_over"] == ["configuration coarse"]


def test_a_link_to_nothing_is_one_line(tmp_path: Path) -> None:
    folder = _write(tmp_path / "d", "train-0.parquet")
    (folder / "train-1.parquet").symlink_to(tmp_path / "blobs" / "0123")  # as a cache of the hub keeps its files
    assert "train-1.parquet is a link to nothing: download it again" in _refusal(folder)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"],
            "1 of 3 files: train-00001-of-00003.parquet",
        ),
        (["data/train-00001-of-00002-0123456789abcdef.parquet"], "1 of 2 files: data/train-00000-of-00002-*.parquet"),
        (
            ["train/00000-of-00009.parquet"],
            "8 of 9 files: train/00001-of-00009.parquet, train/00002-of-00009.parquet, ",
        ),
        (["TRAIN-00000-OF-00002.PARQUET", "x.parquet"], "1 of 2 files: TRAIN-00001-of-00002.PARQUET"),
        (["train-1-of-3.parquet", "train-3-of-3.parquet"], "1 of 3 files: train-2-of-3.parquet"),
        (
            ["train_0000.parquet", "train_0001.parquet", "train_0003.parquet"],
            "1 of 4 numbered files: train_0002.parquet",
        ),
        (["default/partial-train/0000.parquet"], "the folder partial-train holds only the first part of its split"),
        (["train-0.parquet", "train-1.parquet.crdownload"], "train-1.parquet.crdownload is an unfinished download"),
        (["train-0.parquet", "sub/train-1.parquet.incomplete"], "sub/train-1.parquet.incomplete is an unfinished"),
    ],
)
def test_files_that_are_not_there_stop_the_run_unless_allowed(names: list[str], words: str, tmp_path: Path) -> None:
    folder = _write(tmp_path / "d", *names)
    line = _refusal(folder)
    assert line.startswith(f"{folder} is not complete: ")
    assert words in line
    assert line.endswith("; get what is missing, or continue without it with --allow-missing")
    source = open_source(str(folder), Reading(allow_missing=True))
    assert _read(source)["train"] == [
        name for name in names if name.lower().endswith(".parquet") and name != "x.parquet"
    ]
    assert any(words in found for found in source.reading("train")["missing"])
    again = open_source(str(folder), Reading.from_manifest(source.reading("train")))
    assert again.reading("train") == source.reading("train")


@pytest.mark.parametrize(
    "names",
    [
        [f"train-{part:05d}-of-00003.parquet" for part in range(3)],
        [f"train-{part}-of-3.parquet" for part in (1, 2, 3)],
        [f"train-{part:05d}-of-00002-{hex(part)[2:] * 16}.parquet" for part in range(2)],
        ["train_01.parquet", "train_02.parquet"],
        ["train_2019.parquet", "train_2021.parquet"],
        ["cifar10_train.parquet", "cifar100_train.parquet"],
        ["train-00000-of-00001.parquet", "extra-train-00000-of-00002.parquet", "extra-train-00001-of-00002.parquet"],
    ],
)
def test_complete_sets_are_taken(names: list[str], tmp_path: Path) -> None:
    assert sorted(_read(open_source(str(_write(tmp_path / "d", *names))))["train"]) == sorted(names)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["train-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
            "sets of 1 and of 2 files (train-00000-of-00001.parquet, train-00000-of-00002.parquet)",
        ),
        (
            [f"data/train-00000-of-00001-{digit * 16}.parquet" for digit in "ab"],
            "the same part twice (data/train-00000-of-00001-aaaaaaaaaaaaaaaa.parquet, data/train-00000-of-00001-b",
        ),
        (["train-00000-of-00002.parquet", "train-00002-of-00002.parquet"], "a part beyond the last (train-00002-of-"),
    ],
)
def test_two_sets_of_one_split_are_refused_whatever_is_allowed(names: list[str], words: str, tmp_path: Path) -> None:
    folder = _write(tmp_path / "d", *names)
    for wanted in (Reading(), Reading(allow_missing=True)):
        assert words in _refusal(folder, wanted)
    (tmp_path / "away").mkdir()
    shutil.move(folder / names[0], tmp_path / "away" / "moved.parquet")
    _read(open_source(str(folder), Reading(allow_missing=True)))


def test_many_files_of_a_large_set_are_named_briefly() -> None:
    found = check_parts([f"train-{part:05d}-of-01024.parquet" for part in range(0, 1024, 2)])
    named = ", ".join(f"train-{part:05d}-of-01024.parquet" for part in (1, 3, 5))
    assert found.missing == (f"512 of 1,024 files: {named} and 509 more",)


@pytest.mark.parametrize("legacy", [False, True], ids=["README.md", "dataset_infos.json"])
@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"train": 5, "validation": 2}, "the split train: 3 rows are there, 5 are declared"),
        ({"train": 3, "val": 9}, "the split validation: 2 rows are there, 9 are declared"),
        ({"train": 3, "validation": 2, "extra": 4}, "the split extra, declared in"),
        ({"train": 2, "validation": 2}, "the split train: 3 rows are there, 2 are declared"),
        ({"train": 3, "validation": 2, "test": 9}, ""),  # not prepared by default, so nothing is lost
        ({"train": 3}, ""),
    ],
)
def test_rows_and_splits_are_compared_with_the_card(
    declared: dict[str, int], words: str, legacy: bool, tmp_path: Path
) -> None:
    folder = _write(tmp_path / "d", "train.parquet", num_rows=3)
    _write(folder, "validation.parquet", num_rows=2)
    splits = [{"name": name, "num_examples": count} for name, count in declared.items()]
    if legacy:
        infos = {"user--d": {"splits": {each["name"]: each for each in splits}}}
        (folder / "dataset_infos.json").write_text(json.dumps(infos))
    else:
        _card(folder, dataset_info={"splits": splits})
    if not words:
        assert [len(rows) for rows in _read(open_source(str(folder))).values()] == [3, 2]
        return
    assert words in _refusal(folder)
    source = open_source(str(folder), Reading(allow_missing=True))
    assert [len(rows) for rows in _read(source).values()] == [3, 2]
    assert words in " ".join(
        line for split in ("train", "validation") for line in source.reading(split).get("missing", ())
    )


def test_a_split_of_the_card_whose_files_are_not_there_is_missing(tmp_path: Path) -> None:
    patterns = [{"split": split, "path": f"{split}/*"} for split in ("train", "validation", "test")]
    folder = _card(_write(tmp_path / "d", "train/0.parquet"), configs=[{"config_name": "one", "data_files": patterns}])
    assert "is not complete: the split validation, declared in README.md; get what is missing" in _refusal(folder)
    assert _read(open_source(str(folder), Reading(allow_missing=True))) == {"train": ["train/0.parquet"]}


@pytest.mark.parametrize(
    ("names", "mapped", "expected"),
    [
        (["train", "val"], {}, {"train": "train", "val": "validation"}),
        (["training", "Dev"], {}, {"training": "train", "Dev": "validation"}),
        (["train", "validation_matched"], {}, {"train": "train", "validation_matched": "validation_matched"}),
        (["val", "validation"], {}, {"val": "val", "validation": "validation"}),
        (["val", "validation"], {"val": "validation"}, {"val": "validation"}),
        (["val", "validation"], {"val": "validation", "validation": "x"}, {"val": "validation", "validation": "x"}),
        (["val", "valid"], {"valid": "validation"}, {"val": "val", "valid": "validation"}),
        (["a", "b"], {"a": "train"}, {"a": "train", "b": "b"}),
    ],
)
def test_splits_get_documented_names_or_those_of_the_flag(
    names: list[str], mapped: dict[str, str], expected: dict[str, str], tmp_path: Path
) -> None:
    folder = _write(tmp_path / "d", *(f"data/{name}-00000-of-00001.parquet" for name in names))
    source = open_source(str(folder), Reading(split_map=tuple(mapped.items())))
    found = {files[0].split("/")[1].split("-")[0]: split for split, files in _read(source).items()}
    assert found == expected
    for split in found.values():  # as a repair of this split opens the source again
        again = open_source(str(folder), Reading.from_manifest(source.reading(split)))
        again.check_split(split)
        assert again.reading(split) == source.reading(split)
        assert list(again.rows(split, 0, 9)) == list(source.rows(split, 0, 9))


@pytest.mark.parametrize(
    ("mapped", "words"),
    [
        ({"dev": "validation"}, "has no split dev for --split-map validation=dev: it has train, val, valid"),
        ({"val": "x", "valid": "x"}, "--split-map names valid or x twice"),
    ],
)
def test_a_split_map_that_does_not_fit_is_one_line(mapped: dict[str, str], words: str, tmp_path: Path) -> None:
    folder = _write(tmp_path / "d", *(f"data/{name}-00000-of-00001.parquet" for name in ("train", "val", "valid")))
    assert words in _refusal(folder, Reading(split_map=tuple(mapped.items())))


def test_two_splits_that_could_be_validation_are_refused_when_they_are_asked_for(tmp_path: Path) -> None:
    folder = _write(tmp_path / "d", *(f"data/{name}-00000-of-00001.parquet" for name in ("train", "val", "valid")))
    source = open_source(str(folder))
    source.check_split("train")
    line = _refusal(folder)
    assert "has splits val, valid, each of which could be validation: choose with --split-map validation=val" in line
    assert list(_read(open_source(str(folder), Reading(split_map=(("val", "validation"),))))) == [
        "train",
        "validation",
        "valid",
    ]


STRAYS = ("classes.json", "stats.json", "a.csv", "preview.jpg", "README.txt", "x.tar", "_SUCCESS", "run.py")


@pytest.mark.parametrize("name", ["d", "a[1]", "a*b?", "50%", "a b#c", "ümläut", "a::b", "{x}"])
def test_other_files_and_odd_paths_change_nothing(name: str, tmp_path: Path) -> None:
    folder = _write(tmp_path / name, "sub [x]/train-0.parquet", "sub [x]/val #1.parquet")
    for stray in STRAYS:
        (folder / stray).parent.mkdir(exist_ok=True)
        (folder / stray).write_bytes(b"{}")
    expected = {"train": ["sub [x]/train-0.parquet"], "validation": ["sub [x]/val #1.parquet"]}
    assert _read(open_source(str(folder))) == expected


def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    _write(tmp_path / "elsewhere", "train.parquet")
    folder = _write(tmp_path / "d", "validation.parquet")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "d")
    assert _read(open_source(str(folder))) == {"train": ["train.parquet"], "validation": ["validation.parquet"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a Git LFS pointer, not the file itself: run",
        ),
        (b"", "is empty (0 bytes): download it again"),
        (b"<!doctype html><html>", "is not a parquet file (it starts with b'<!doctyp'): download it again"),
        (b"PAR1" + bytes(100), "is not a complete parquet file ("),
    ],
)
def test_a_file_that_is_not_parquet_is_one_line(content: bytes, words: str, tmp_path: Path) -> None:
    folder = _write(tmp_path / "d", "train.parquet")
    (folder / "validation.parquet").write_bytes(content)
    assert f"validation.parquet {words}" in _refusal(folder)


def test_missing_parts_stop_the_command_and_are_told_in_its_summary(digits_source: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    shutil.copy(
        digits_source / "data" / "validation-00000-of-00001.parquet", tmp_path / "d" / "train-00001-of-00002.parquet"
    )
    command = ("prep/shard.py", "--source", tmp_path / "d", "--out", tmp_path / "out", "--limit", "50")
    refused = run_command(*command)
    missing = "the split train lacks 1 of 2 files: train-00000-of-00002.parquet"
    assert refused.stderr == (
        f"error: {tmp_path / 'd'} is not complete: {missing}; "
        "get what is missing, or continue without it with --allow-missing\n"
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    assert not (tmp_path / "out").exists()
    done = run_command(*command, "--allow-missing")
    assert done.returncode == 0, done.stderr
    assert f"  missing, allowed: {missing}\n" in done.stdout
    assert json.loads((tmp_path / "out" / "train" / "manifest.json").read_text())["reading"]["missing"] == [missing]
    verified = run_command("prep/verify.py", tmp_path / "out")
    assert verified.returncode == 0, verified.stderr
