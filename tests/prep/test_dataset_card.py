"""README.md next to the splits: `datasets` finds the images by it; the same splits give the same bytes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from helpers.commands import CHECKOUT
from helpers.datasets import tree
from helpers.harm import run, serial
from helpers.tars import adopt, images, write_tar

from prep import shard, verify
from prep.adopt import main as adopt_command
from prep.card import read_card
from prep.checks import check_dataset, find_layout
from prep.dataset import Manifest, Options, Origin, Shard
from prep.dataset_card import make_dataset_card
from prep.object_store import open_object_store
from prep.prepare import prepare_split
from prep.resolve import open_source
from prep.store import LocalStore, Store

Row = tuple[bytes, int]
SPLITS = ("train", "validation")
LICENSE = {"license": "other", "license_details": "imagenet-agreement"}


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (verify, shard):
        monkeypatch.setattr(command, "local_pool", lambda _: serial)


def prepare(source: Path, out: Store, *splits: str) -> None:
    for split in splits:
        prepare_split(open_source(str(source)), split, out, Options(images_per_shard=20, limit=40), serial)


def read_header(card: bytes) -> dict[str, Any]:
    return yaml.safe_load(card.decode().split("---\n")[1])


# The reader.


def load(folder: Path, cache: Path, *, streaming: bool = False) -> dict[str, list[Row]]:
    """Return (JPEG, label) of each image of each split, as `datasets.load_dataset(DIR)` delivers them."""
    import datasets  # noqa: PLC0415 - a second and a half

    found: Any = datasets.load_dataset(str(folder), cache_dir=str(cache), streaming=streaming)
    plain = {split: rows.cast_column("jpg", datasets.Image(decode=False)) for split, rows in found.items()}
    return {split: [(row["jpg"]["bytes"], row["cls"]) for row in rows] for split, rows in plain.items()}


@pytest.fixture(scope="module")
def rows(digits_source: Path) -> dict[str, list[Row]]:
    """The source, read by pyarrow alone."""
    tables = {split: pq.read_table(digits_source / "data" / f"{split}-00000-of-00001.parquet") for split in SPLITS}
    return {split: [(r["image"]["bytes"], r["label"]) for r in table.to_pylist()] for split, table in tables.items()}


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_the_images_and_labels_of_each_split(
    streaming: bool, digits: Path, rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    assert load(digits, tmp_path / "cache", streaming=streaming) == rows


def test_datasets_reads_adopted_tars_too(digits: Path, rows: dict[str, list[Row]], tmp_path: Path) -> None:
    adopt(tmp_path / "out", *sorted((digits / "train").glob("*.tar")), split="train")
    adopt(tmp_path / "out", *sorted((digits / "validation").glob("*.tar")), split="val-2")
    found = load(tmp_path / "out", tmp_path / "cache")
    assert found == {"train": rows["train"], "val_2": rows["validation"]}


def test_without_the_card_datasets_takes_the_index_for_the_data(digits_source: Path, tmp_path: Path) -> None:
    import datasets  # noqa: PLC0415

    options = Options(limit=20)  # one shard
    prepare_split(open_source(str(digits_source)), "train", LocalStore(tmp_path / "out"), options, serial)
    (tmp_path / "out" / "README.md").rename(tmp_path / "README.md")
    found: Any = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert "sha256" in found["train"].features and "jpg" not in found["train"].features
    (tmp_path / "README.md").rename(tmp_path / "out" / "README.md")
    assert len(load(tmp_path / "out", tmp_path / "cache")["train"]) == 20


@pytest.mark.parametrize("folder", ["all", "t[1]*", "ä b", "-"])
def test_datasets_reads_a_split_of_any_name(folder: str, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "validation", tmp_path / "out" / folder)
    manifest = Manifest.from_json((digits / "validation" / "manifest.json").read_text())
    (tmp_path / "out" / "README.md").write_bytes(make_dataset_card({folder: manifest}))
    (found,) = load(tmp_path / "out", tmp_path / "cache").values()
    assert len(found) == 360


# Its bytes.


def test_the_splits_may_be_prepared_in_any_order_and_again(digits_source: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    prepare(digits_source, LocalStore(first), "train")
    assert [each["split"] for each in read_header((first / "README.md").read_bytes())["configs"][0]["data_files"]] == [
        "train"
    ]
    prepare(digits_source, LocalStore(first), "validation")
    prepare(digits_source, LocalStore(second), "validation", "train", "train")
    assert tree(first) == tree(second)
    (first / "README.md").unlink()  # as if it was killed before it wrote it, or by an older version
    prepare(digits_source, LocalStore(first), "validation")
    assert tree(first) == tree(second)


def test_the_card_names_source_revision_and_counts(digits_source: Path, tmp_path: Path) -> None:
    prepare(digits_source, LocalStore(tmp_path / "out"), *SPLITS)
    text = (tmp_path / "out" / "README.md").read_text()
    revision = json.loads((tmp_path / "out" / "train" / "manifest.json").read_text())["source"]["revision"]
    for split in SPLITS:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {split} ")]
        assert row.startswith(f"| {split} | 40 | 10 | 2 | 0.0 | `{digits_source.name}` | `{revision}` | `--limit 40`")
    assert str(tmp_path) not in text and str(digits_source) not in text


def test_the_document_shows_the_header_that_is_written(digits: Path) -> None:
    header = (digits / "README.md").read_text().split("---\n")[1]
    shown = (CHECKOUT / "docs" / "format.md").read_text()
    assert "\n".join(f"    {line}" for line in header.splitlines()) in shown


@pytest.mark.parametrize("memory", [False, True], ids=["folder", "object store"])
def test_a_card_in_any_store_is_whole(memory: bool, digits_source: Path, tmp_path: Path) -> None:
    MemoryFileSystem.store.clear()
    out = open_object_store("memory://bucket/prefix") if memory else LocalStore(tmp_path)
    prepare(digits_source, out, *SPLITS)
    assert (out.read("README.md") or b"").startswith(b"---\n# Written by Penstock")
    report = check_dataset(find_layout(str(out)), 0, serial)
    assert (report.faults, report.notes) == ([], [])
    out.write("README.md", b"mine")
    prepare(digits_source, out, "train")
    assert out.read("README.md") == b"mine"


# A card that is missing, and one of the user.


@pytest.fixture
def root(digits_source: Path, tmp_path: Path) -> Path:
    prepare(digits_source, LocalStore(tmp_path / "out"), *SPLITS)
    return tmp_path / "out"


def test_a_dataset_of_an_older_version_is_whole_and_gets_its_card(root: Path, capsys: Any) -> None:
    before = tree(root)
    (root / "README.md").unlink()
    status, lines = run(capsys, root)
    assert status == 0
    assert lines[0] == f"note: {root}/README.md is missing, as in datasets of older versions: --repair writes it"
    assert lines[1].startswith(f"{root}: complete; ")
    assert run(capsys, root, "--repair")[0] == 0
    assert tree(root) == before
    assert len(run(capsys, root)[1]) == 1


def test_a_readme_of_the_user_is_kept_and_noted(root: Path, digits_source: Path, capsys: Any) -> None:
    (root / "README.md").write_text("# My digits\n")
    (root / "_info.json").unlink()
    status, lines = run(capsys, root, "--repair")
    assert status == 0
    assert f"note: {root}/README.md was not written by Penstock, and is kept" in lines
    assert (root / "README.md").read_text() == "# My digits\n"


def test_an_edited_card_is_the_users_without_its_first_line(root: Path, capsys: Any) -> None:
    lines = (root / "README.md").read_text().splitlines(keepends=True)
    (root / "README.md").write_text("".join([lines[0], *lines[2:], "More.\n"]))
    assert read_header((root / "README.md").read_bytes())["configs"]
    assert run(capsys, root, "--repair")[0] == 0
    assert (root / "README.md").read_text().endswith("More.\n")


def test_the_commands_say_that_they_keep_a_readme(
    digits_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    tar = write_tar(tmp_path / "a.tar", images(0, 1))
    for arguments, command in (
        (["--source", digits_source, "--splits", "train", "--limit", "5"], shard.main),
        ([tar, "--split", "other"], adopt_command),
    ):
        monkeypatch.setattr("sys.argv", ["x", *map(str, arguments), "--out", str(tmp_path / "out"), "--workers", "1"])
        command()
        warning = capsys.readouterr().err
        assert f"warning: {tmp_path}/out/README.md was not written by Penstock and is kept: for `datasets" in warning
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


# The licence.


def make_manifest(**reading: object) -> Manifest:
    shards = (Shard("a.tar", 1, 2, "00"),)
    return Manifest(
        "train", Origin("a|b\n/c", "1"), Options(), ("x",), 1, 1, 1, {}, "", "", shards, reading=dict(reading)
    )


def test_no_licence_is_invented(root: Path) -> None:
    card = (root / "README.md").read_bytes()
    assert read_header(card)["license"] == "unknown"
    assert b"Licence: unknown, the source declares none." in card


def test_the_licence_of_a_card_in_the_source_is_copied(digits_source: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(digits_source, tmp_path / "source"))
    link = {"license_link": "LICENSE.txt"}  # a file that is not copied
    (source / "README.md").write_text(f"---\n{json.dumps(LICENSE | link)}\n---\n# About\n")
    prepare(source, LocalStore(tmp_path / "out"), "train")
    card = (tmp_path / "out" / "README.md").read_bytes()
    assert {key: read_header(card).get(key) for key in (*LICENSE, "license_link")} == {**LICENSE, "license_link": None}
    assert b"as the source declares it: `license: other`, `license_details: imagenet-agreement`" in card
    assert read_card({"README.md": card.decode()}).license == LICENSE


def test_splits_of_different_licences_have_one_line_each() -> None:
    card = make_dataset_card({"b": make_manifest(license=LICENSE), "a": make_manifest(license={"license": ["mit"]})})
    assert "license" not in read_header(card)
    assert b"- Licence of a: as the source declares it: `license: ['mit']`\n- Licence of b: " in card
    assert b"`a\\|b /c`" in card


@pytest.mark.parametrize("declared", [None, "mit", {"license": 7}, {"license": ""}, {"other": "x"}])
def test_what_is_no_licence_is_unknown(declared: object) -> None:
    assert read_header(make_dataset_card({"a": make_manifest(license=declared)}))["license"] == "unknown"


def test_repair_leaves_a_manifest_of_an_older_version_as_it_is(root: Path, digits_source: Path, capsys: Any) -> None:
    """Its source may declare a licence that the older version did not record."""
    before = tree(root)
    source = Path(shutil.copytree(digits_source, root.parent / digits_source.name))
    (source / "README.md").write_text(f"---\n{json.dumps(LICENSE)}\n---\n")
    (root / "train" / "samples.arrow").unlink()
    assert run(capsys, root, "--repair", "--source", source)[0] == 0
    assert tree(root) == before
