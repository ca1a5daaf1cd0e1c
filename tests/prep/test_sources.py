"""Real image folders: every file is read or reported, none is lost silently, and none blocks."""

import errno
import hashlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from prep.errors import InputError
from prep.folder_tree import list_folder
from prep.image_folder import open_image_folder
from prep.resolve import open_source
from prep.source import MAX_IMAGE_BYTES, Item, Reading, Source


def _write(path: Path, data: bytes = b"image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _items(source: Source, split: str = "train") -> dict[str, Item]:
    items = list(source.rows(split, 0, source.num_rows[split]))
    found = {item.name: item for item in items}
    assert len(found) == len(items)
    return found


def _faults(root: Path) -> dict[str, str]:
    return {name: item.fault for name, item in _items(open_source(str(root))).items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write a single train split with one good image."""
    _write(tmp_path / "root" / "cat" / "good.jpg")
    return tmp_path / "root"


def test_every_file_of_a_class_is_offered_whatever_its_name(root: Path) -> None:
    names = ["cat/notes.txt", "cat/no_suffix", "cat/deep/er/image.JPEG", "cat/a..jpg", "cat/a\nb.jpg"]
    names += ["cat/..dots.jpg", "cat/.cache/image.jpg"]
    for name in names:
        _write(root / name, b"x")
    _write(root / ".git" / "config.jpg")
    items = _items(open_source(str(root)))
    assert items == {name: Item(name, b"x", 0) for name in names} | {"cat/good.jpg": Item("cat/good.jpg", b"image", 0)}


def test_names_that_are_not_utf8_are_read(root: Path) -> None:
    _write(root / os.fsdecode(b"d\xf6g") / os.fsdecode(b"\xff\xfe.jpg"), b"dog")
    source = open_source(str(root))
    assert source.class_names == ("cat", "d\udcf6g")
    assert _items(source)["d\udcf6g/\udcff\udcfe.jpg"].data == b"dog"


def test_something_that_is_not_a_file_is_a_fault_and_does_not_block(root: Path) -> None:
    os.mkfifo(root / "cat" / "pipe.jpg")
    (root / "cat" / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "cat" / "socket.jpg"))
    assert _faults(root) == {
        "cat/good.jpg": "",
        "cat/pipe.jpg": "a pipe, not a file",
        "cat/device.jpg": "a device, not a file",
        "cat/socket.jpg": "a socket, not a file",
    }


def test_links_to_nothing_and_to_themselves_are_faults(root: Path) -> None:
    (root / "cat" / "dangling.jpg").symlink_to("nowhere.jpg")
    (root / "cat" / "circle.jpg").symlink_to("circle.jpg")
    assert _faults(root) == {
        "cat/good.jpg": "",
        "cat/dangling.jpg": "a link to nothing",
        "cat/circle.jpg": "cannot be read: too many levels of symbolic links",
    }


def test_links_to_files_and_folders_are_followed_also_out_of_the_root(root: Path, tmp_path: Path) -> None:
    outside = _write(tmp_path / "outside" / "dog" / "1.jpg", b"dog").parent
    (root / "dog").symlink_to(outside)
    (root / "cat" / "linked").symlink_to(outside)
    (root / "cat" / "copy.jpg").symlink_to("good.jpg")
    source = open_source(str(root))
    assert source.class_names == ("cat", "dog")
    assert {name: (bytes(item.data), item.label) for name, item in _items(source).items()} == {
        "cat/good.jpg": (b"image", 0),
        "cat/copy.jpg": (b"image", 0),
        "cat/linked/1.jpg": (b"dog", 0),
        "dog/1.jpg": (b"dog", 1),
    }
    assert source.size_bytes == {"train": 5 + 5 + 3 + 3}


def test_links_upwards_do_not_loop(root: Path, tmp_path: Path) -> None:
    for name, target in (("self", "."), ("parent", ".."), ("top", "/"), ("deep/up", "..")):
        (root / "cat" / name).parent.mkdir(exist_ok=True)
        (root / "cat" / name).symlink_to(target)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "back").symlink_to(root)
    (root / "dog").symlink_to(tmp_path / "other")
    assert set(_items(open_source(str(root), Reading(allow_missing=True)))) == {"cat/good.jpg"}


def test_a_file_over_the_bound_is_not_read(root: Path) -> None:
    with (root / "cat" / "huge.jpg").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)  # sparse
    source = open_source(str(root))
    started = time.process_time()
    item = _items(source)["cat/huge.jpg"]
    assert item == Item("cat/huge.jpg", b"", 0, "268,435,457 bytes is over the bound of 268,435,456")
    assert time.process_time() - started < 1
    assert source.size_bytes == {"train": 5 + MAX_IMAGE_BYTES + 1}


def test_what_changes_after_the_listing_is_a_fault(root: Path) -> None:
    for name in ("gone", "pipe", "folder"):
        _write(root / "cat" / f"{name}.jpg")
    source = open_source(str(root))
    for name in ("gone", "pipe", "folder"):
        (root / "cat" / f"{name}.jpg").unlink()
    os.mkfifo(root / "cat" / "pipe.jpg")
    (root / "cat" / "folder.jpg").mkdir()
    faults = {name: item.fault for name, item in _items(source).items()}
    assert faults == {
        "cat/good.jpg": "",
        "cat/gone.jpg": "no such file",
        "cat/pipe.jpg": "a pipe, not a file",
        "cat/folder.jpg": "a folder that cannot be listed, not a file",
    }


def test_a_file_that_becomes_a_pipe_as_it_is_opened_does_not_block(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(root))
    status = (root / "cat" / "good.jpg").stat()
    (root / "cat" / "good.jpg").unlink()
    os.mkfifo(root / "cat" / "good.jpg")
    monkeypatch.setattr(Path, "stat", lambda *_, **__: status)
    found: list[Item] = []
    reader = threading.Thread(target=lambda: found.extend(source.rows("train", 0, 1)), daemon=True)
    reader.start()
    reader.join(10)
    assert [item.fault for item in found] == ["a pipe, not a file"]


def test_a_folder_and_a_file_without_permission_are_faults(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(root / "cat" / "private" / "image.jpg")
    scandir, open_file = os.scandir, os.open

    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "scandir", lambda p: refuse(p) if str(p).endswith("private") else scandir(p))
    source = open_image_folder(list_folder(root), Reading())
    monkeypatch.setattr(os, "open", lambda p, *a: refuse(p) if str(p).endswith("good.jpg") else open_file(p, *a))
    assert {name: item.fault for name, item in _items(source).items()} == {
        "cat/good.jpg": "cannot be read: permission denied",
        "cat/private": "a folder that cannot be listed, not a file",
    }


def test_too_few_descriptors_is_not_a_fault_of_the_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        _items(open_source(str(root)))


def test_an_empty_class_folder_keeps_its_label(root: Path) -> None:
    (root / "ant").mkdir()
    source = open_source(str(root), Reading(allow_missing=True))
    assert source.class_names == ("ant", "cat")
    assert _items(source)["cat/good.jpg"].label == 1


@pytest.mark.parametrize("name", ["loose.jpg", "train/loose.PNG", "val/loose.webp"])
def test_an_image_outside_of_class_folders_is_refused(name: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        _write(tmp_path / split / "cat" / "a.jpg")
    for harmless in ("README.md", "train/LOC_list.txt", ".hidden.jpg"):
        _write(tmp_path / harmless)
    assert open_source(str(tmp_path)).num_rows == {"train": 1, "validation": 1}
    _write(tmp_path / name)
    with pytest.raises(InputError) as refusal:
        open_source(str(tmp_path))
    assert str(refusal.value) == f"{tmp_path / name} is not in a class folder: move it into one or away"


def test_a_class_folder_that_is_a_link_to_nothing_is_refused(root: Path) -> None:
    (root / "dog").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"root/dog is a link to nothing: repair it or remove it"):
        open_source(str(root))


def test_a_split_without_a_file_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "train" / "cat" / "a.jpg")
    (tmp_path / "val" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match="val holds no image: put back what is missing, remove it, or continue with"):
        open_source(str(tmp_path))


def test_the_revision_changes_with_a_size_and_a_name(root: Path, tmp_path: Path) -> None:
    revisions = [open_source(str(root)).origin.revision]
    _write(root / "cat" / "good.jpg", b"other")
    assert open_source(str(root)).origin.revision == revisions[0]
    _write(root / "cat" / "good.jpg", b"longer")
    revisions.append(open_source(str(root)).origin.revision)
    (root / "cat" / "good.jpg").rename(root / "cat" / "better.jpg")
    revisions.append(open_source(str(root)).origin.revision)
    assert len(set(revisions)) == 3
    assert open_source(str(root.rename(tmp_path / "moved"))).origin.revision == revisions[-1]


def test_a_revision_is_as_it_ever_was(root: Path) -> None:
    """Check the revision: a run that an older version began continues only if it is the same."""
    golden = hashlib.sha256("\0".join(["train", "cat/good.jpg", "0", "5\n"]).encode()).hexdigest()
    assert open_source(str(root)).origin.revision == golden


def test_many_files_are_listed_in_good_time(tmp_path: Path) -> None:
    for label in range(20):
        (tmp_path / f"class{label:02d}").mkdir()
        for number in range(500):
            (tmp_path / f"class{label:02d}" / f"{number}.jpg").touch()
    started = time.process_time()
    assert open_source(str(tmp_path)).num_rows == {"train": 10_000}
    assert time.process_time() - started < 2  # 0.05 s; with 1,281,167 files 7 s
