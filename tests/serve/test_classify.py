"""Many pictures at once: a table and contact sheets, in the order given, complete or not written."""

import base64
import csv
import io
import re
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.served import Exported, run_here
from PIL import Image

from prep.errors import InputError
from serve import classify_files as streaming
from serve import contact_sheet, contents
from serve.artifact import Served, load_artifact
from serve.classify import check_out, guard_cell, to_text
from serve.classify_files import Answer, classify_files, name_classes
from serve.contact_sheet import ContactSheets
from serve.contents import CONTENTS
from serve.image_sources import open_images
from serve.predict import predict_rows
from serve.preprocess import Preprocessing

NUM_FILES = 40  # more than a batch
PREDICTIONS = "predictions.csv"


@pytest.fixture(scope="session")
def pictures(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of digits, named by their row."""
    folder = tmp_path_factory.mktemp("pictures")
    source = open_images(exported.data / "validation", 10, None)
    for each in source.read(range(NUM_FILES)):
        (folder / f"{each.row:03}.jpg").write_bytes(each.content)
    return folder


def classify(exported: Exported, out: Path, *words: object) -> list[dict[str, str]]:
    run_here("serve/classify.py", "--artifact", exported.artifact, *words, "--out", out, "--device", "cpu")
    with (out / PREDICTIONS).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_says_what_the_gallery_measures(exported: Exported, pictures: Path, tmp_path: Path) -> None:
    lines = classify(exported, tmp_path / "out", pictures, "--no_sheets", "--workers", 3)
    assert [Path(each["path"]).name for each in lines] == [f"{row:03}.jpg" for row in range(NUM_FILES)]
    served = load_artifact(exported.artifact)
    source = open_images(exported.data / "validation", 10, served.class_names)
    for line, expected in zip(lines, predict_rows(served, source, range(NUM_FILES)), strict=True):
        assert line["class_1"] == source.class_names[expected.guess]
        assert float(line["probability_1"]) == pytest.approx(expected.confidence, abs=1e-5)
        shares = [float(line[f"probability_{n}"]) for n in range(1, 6)]
        assert shares == sorted(shares, reverse=True) and line["error"] == ""
    assert {path.name for path in (tmp_path / "out").iterdir()} == {PREDICTIONS, CONTENTS}


def test_order_errors_and_names_are_kept(
    exported: Exported, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = tmp_path / "in" / '=1+1,"<b>\n.jpg'
    hostile.parent.mkdir()
    hostile.write_bytes((pictures / "001.jpg").read_bytes())
    (tmp_path / "in" / "cut.jpg").write_bytes((pictures / "001.jpg").read_bytes()[:200])
    (tmp_path / "in" / "._x.jpg").write_bytes(b"attributes")
    lines = classify(exported, tmp_path / "out", pictures / "003.jpg", tmp_path / "in", f"{pictures}/00[12].jpg")
    paths = [pictures / "003.jpg", hostile, tmp_path / "in" / "cut.jpg", pictures / "001.jpg", pictures / "002.jpg"]
    assert [each["path"] for each in lines] == [str(path) for path in paths]
    assert [each["error"].partition(" (")[0] for each in lines] == ["", "", "it is damaged", "", ""]
    assert lines[2]["class_1"] == lines[2]["probability_5"] == ""
    assert lines[1]["class_1"] == lines[3]["class_1"] != ""
    said = capsys.readouterr()
    assert "1 file was left out: 1 hidden" in said.out and "1 file could not be read" in said.err

    # The page needs no other file, and names are words on it.
    page = (tmp_path / "out" / "contact-sheet.html").read_text(encoding="utf-8")
    assert "<b>\n" not in page and "&lt;b&gt;" in page
    assert not re.search(r"<script|https?://|src=\"(?!data:)", page)
    thumbnails = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(thumbnails) == 4 and page.count("Could not be read") == 1
    for each in thumbnails:
        with Image.open(io.BytesIO(base64.b64decode(each))) as opened:
            assert opened.size == (contact_sheet.TILE, contact_sheet.TILE)
    with Image.open(tmp_path / "out" / "contact-sheet.png") as grid:
        grid.load()


def test_a_folder_is_replaced_only_if_it_is_ours(exported: Exported, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    classify(exported, out, pictures / "000.jpg")
    assert {path.name for path in out.iterdir()} == {PREDICTIONS, CONTENTS, "contact-sheet.html", "contact-sheet.png"}
    assert len(classify(exported, out, pictures / "001.jpg", pictures / "002.jpg", "--no_sheets")) == 2
    assert {path.name for path in out.iterdir()} == {PREDICTIONS, CONTENTS}
    (out / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"--out must be new, .* holds other files \(mine\.txt\): choose another"):
        classify(exported, out, pictures / "000.jpg")
    assert len((out / PREDICTIONS).read_text().splitlines()) == 3
    with pytest.raises(InputError, match="is not a folder: choose another --out"):
        check_out(out / "mine.txt")

    # A table of the same name that the user wrote or changed is not ours.
    (out / "mine.txt").unlink()
    (out / PREDICTIONS).write_text("mine")
    with pytest.raises(InputError, match=r"holds predictions\.csv, which is yours or was changed"):
        check_out(out)


def test_a_file_that_is_added_during_the_run_is_kept(
    exported: Exported, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "out", contents.write_contents
    classify(exported, out, pictures / "000.jpg", "--no_sheets")

    def write_and_add(folder: Path) -> None:
        write(folder)
        (out / "mine.txt").write_text("mine")

    monkeypatch.setattr(contents, "write_contents", write_and_add)
    with pytest.raises(SystemExit, match=r"holds other files \(mine\.txt\)"):
        classify(exported, out, pictures / "001.jpg", "--no_sheets")
    assert (out / "mine.txt").read_text() == "mine" and (out / PREDICTIONS).is_file()
    assert list(tmp_path.iterdir()) == [out]


def test_nothing_is_written_if_nothing_can_be_read(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(SystemExit, match="found no picture"):
        classify(exported, tmp_path / "out", tmp_path / "in")
    (tmp_path / "in" / "x.png").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"none of 1 pictures can be read.*x\.png: the file is empty \(0 bytes\)"):
        classify(exported, tmp_path / "out", tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_second_run_leaves_its_own_sheets_out(
    exported: Exported, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "1.jpg").write_bytes((pictures / "001.jpg").read_bytes())
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert [each["path"] for each in classify(exported, Path("out"), ".")] == ["1.jpg"]


def test_an_interruption_leaves_nothing(
    exported: Exported, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ContactSheets, "add", interrupt)
    with pytest.raises(SystemExit, match="interrupted: nothing was written"):
        classify(exported, tmp_path / "out", pictures)
    assert list(tmp_path.iterdir()) == []


# Streaming


def test_the_number_of_pictures_in_memory_does_not_grow(
    exported: Exported, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, num_files, lock = load_artifact(exported.artifact), 600, threading.Lock()
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0
    original = streaming.open_file

    def count(path: Path, preprocessing: Preprocessing) -> Any:
        nonlocal most
        opened = original(path, preprocessing)
        with lock:
            alive.add(opened.image_CHW)
            most = max(most, len(alive))
        return opened

    monkeypatch.setattr(streaming, "open_file", count)
    answers = classify_files(served, (pictures / "000.jpg" for _ in range(num_files)), 2)
    assert sum(1 for _ in answers) == num_files
    assert 32 <= most <= 3 * 32 + 4, "two batches and what is decoded ahead"


def test_after_an_error_files_that_wait_are_not_opened(
    exported: Exported, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    original = streaming.open_file
    monkeypatch.setattr(streaming, "open_file", lambda path, how: (opened.append(path), original(path, how))[1])
    answers = classify_files(load_artifact(exported.artifact), [pictures / "000.jpg"] * 500, 1)
    next(answers)
    answers.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(opened) < 100


def test_a_pipe_is_not_waited_for(exported: Exported, pictures: Path, tmp_path: Path) -> None:
    import os  # noqa: PLC0415

    os.mkfifo(tmp_path / "pipe.jpg")
    (answer, other) = classify_files(load_artifact(exported.artifact), [tmp_path / "pipe.jpg", pictures / "000.jpg"], 1)
    assert answer.error == "it is not a file" and other.top and other.error == ""


# Sheets and cells


def make_answers(count: int) -> Iterator[Answer]:
    for number in range(count):
        yield Answer(Path(f"{number}.jpg"), 1, ((0, 0.5),), Image.new("RGB", (16, 16), (number % 256, 0, 0)))


def test_sheets_have_a_limit_and_link_to_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "PER_PAGE", 4)
    monkeypatch.setattr(contact_sheet, "COLUMNS", 3)
    monkeypatch.setattr(contact_sheet, "ROWS", 2)
    sheets = ContactSheets(tmp_path, "title", ["a note"], 9)
    for each in make_answers(9):
        sheets.add(each, str(each.path), "name")
    sheets.close()
    pages = ["contact-sheet.html", "contact-sheet-2.html", "contact-sheet-3.html"]
    assert {path.name for path in tmp_path.iterdir()} == {*pages, "contact-sheet.png", "contact-sheet-2.png"}
    texts = [(tmp_path / name).read_text() for name in pages]
    assert [text.count("<figure>") for text in texts] == [4, 4, 1]
    assert "Pictures 5 to 8 of 9" in texts[1] and f'href="{pages[2]}"' in texts[1] and "a note" in texts[1]
    sizes = []
    for name in ("contact-sheet.png", "contact-sheet-2.png"):
        with Image.open(tmp_path / name) as grid:
            sizes.append(grid.size)
    assert sizes[0][0] == sizes[1][0] and sizes[0][1] > sizes[1][1]


def test_no_cell_is_a_formula() -> None:
    for start in "=+-@\t\r":
        assert guard_cell(f"{start}1") == f"'{start}1"
        assert to_text(Path(f"{start}1.jpg")) == f"./{start}1.jpg"
    assert guard_cell("a=1") == "a=1" and to_text(Path("a/=1")) == "a/=1"
    assert to_text(Path("\udcff.jpg")) == "\\udcff.jpg"


def test_outputs_without_names_have_numbers(exported: Exported) -> None:
    served: Served = load_artifact(exported.artifact)
    assert name_classes(served)[:2] == ("zero", "one")
    assert name_classes(replace(served, class_names=None))[:2] == ("output 0", "output 1")
    assert name_classes(replace(served, class_names=("n01443537", "x")))[0] == "goldfish, Carassius auratus"


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_a_name_that_is_not_utf8_is_written(exported: Exported, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "\udcff.jpg").write_bytes((pictures / "000.jpg").read_bytes())
    (line,) = classify(exported, tmp_path / "out", tmp_path / "in")
    assert line["path"].endswith("\\udcff.jpg") and line["class_1"]
