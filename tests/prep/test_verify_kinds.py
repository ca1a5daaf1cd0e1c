"""`prep/verify.py` on other datasets: adopted, in an object store, with images that do not decode; and by processes."""

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import run_command
from helpers.datasets import tree
from helpers.harm import cut, flip, run, serial
from helpers.tars import adopt, encode_image, write_tar
from PIL import Image

from prep import verify
from prep.checks import list_jobs, open_split
from prep.dataset import Options
from prep.prepare import prepare_split
from prep.resolve import open_source
from prep.store import LocalStore, open_store


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "local_pool", lambda _: serial)


@pytest.fixture
def undecodable(tmp_path: Path) -> Path:
    """Two images, of which one has an impossible Huffman table, kept by --no-decode-check."""
    folder = tmp_path / "images" / "train" / "one"
    folder.mkdir(parents=True)
    encoded = io.BytesIO()
    Image.new("RGB", (64, 48)).save(encoded, "JPEG")
    (folder / "whole.jpg").write_bytes(encoded.getvalue())
    data = bytearray(encoded.getvalue())
    data[data.index(b"\xff\xc4") + 21] ^= 0x10  # the first symbol after its 16 counts: no DC code is of 16 bits
    (folder / "impossible.jpg").write_bytes(data)
    source = open_source(str(tmp_path / "images"))
    prepare_split(source, "train", LocalStore(tmp_path / "out"), Options(decode_check=False), serial)
    return tmp_path / "out"


def test_an_image_that_does_not_decode_is_named(undecodable: Path, capsys: Any) -> None:
    status, lines = run(capsys, undecodable, "--decode", "all")
    assert (status, len(lines)) == (1, 2)
    assert "train-000000.tar is complete, but 0000000" in lines[0]
    assert "-impossible does not decode (" in lines[0]
    assert "2 decoded" in lines[1]
    assert run(capsys, undecodable, "--decode", "0")[0] == 0


def test_the_decoded_images_are_spread_evenly(digits: Path) -> None:
    split = open_split("validation", LocalStore(digits / "validation"))
    assert [sorted(job.decoded) for job in list_jobs(split, 7)] == [[0, 59, 119, 179, 239, 299], [59]]
    assert [len(job.decoded) for job in list_jobs(split, None)] == [300, 60]


def test_a_split_in_an_object_store_is_verified_and_repaired(digits: Path, digits_source: Path, capsys: Any) -> None:
    url = "memory://verify"
    for name, content in tree(digits).items():
        folder, _, file = name.rpartition("/")
        open_store(url).child(folder).write(file, content) if folder else open_store(url).write(file, content)
    assert run(capsys, url)[0] == 0
    store = open_store(url).child("train")
    store.write("train-000001.tar", b"\0" * 700)
    store.remove("train-000002.idx")
    status, lines = run(capsys, url, "--repair", "--source", digits_source)
    assert (status, len(lines)) == (0, 3), lines
    assert lines[0].startswith(f"{url}/train/train-000001.tar is cut short at byte 700 of ")
    assert {name: store.read(name) for name in store.names()} == tree(digits / "train")


@pytest.fixture
def adopted(tmp_path: Path) -> Path:
    """Two tars of another's, with folders in names, a JSON label, a text, and an image that is not a JPEG."""
    (tmp_path / "tars").mkdir()
    for number in range(2):
        members = []
        for i in range(3):
            image, fields = encode_image(grey=30 * number + i), b'{"label": 1}'
            members += [(f"n{number}/a{i}.{kind}", data) for kind, data in (("jpeg", image), ("json", fields))]
            members.append((f"n{number}/a{i}.txt", b"a text"))
        members += [("z.png", encode_image(format_name="PNG")), ("z.cls", b"0")]
        write_tar(tmp_path / "tars" / f"{number}.tar", members)
    adopt(tmp_path / "out", tmp_path / "tars")
    return tmp_path / "out"


def test_an_adopted_split_is_verified(adopted: Path, capsys: Any) -> None:
    status, lines = run(capsys, adopted)
    assert (status, len(lines)) == (0, 1), lines
    assert "complete; 6 images in 2 shards of 1 splits" in lines[0]
    assert "6 decoded" in lines[0]


def test_an_adopted_splits_index_is_written_again_and_its_tars_never(adopted: Path, capsys: Any) -> None:
    before = tree(adopted)
    (adopted / "train" / "0.idx").write_bytes(b"")
    status, lines = run(capsys, adopted, "--repair")
    assert (status, len(lines)) == (0, 2), lines
    assert tree(adopted) == before
    flip(adopted.parent / "tars" / "1.tar", 513)
    status, lines = run(capsys, adopted, "--repair")
    assert status == 1
    assert "1.tar has other bytes in 1 of 3 images (" in lines[0]
    assert "fetch that tar again" in lines[0]
    (adopted.parent / "tars" / "1.tar").unlink()
    assert f"{adopted}/train/1.tar is missing: fetch that tar again" in run(capsys, adopted)[1][0]


def test_the_command_verifies_with_processes_and_repairs(digits: Path, digits_source: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(digits, tmp_path / "dataset"))
    done = run_command("prep/verify.py", root, "--workers", "2")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    assert done.stdout.startswith(f"{root}: complete; 1,797 images in 7 shards of 2 splits, ")
    cut(root / "train" / "train-000003.tar")
    done = run_command("prep/verify.py", root / "train", "--repair", "--source", digits_source)
    assert (done.returncode, done.stdout.count("\n")) == (0, 2), done.stderr
    assert tree(root) == tree(digits)


def test_a_folder_with_nothing_prepared_is_refused_in_one_line(tmp_path: Path) -> None:
    done = run_command("prep/verify.py", tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (1, "")
    fix = "give a folder that prep/shard.py wrote"
    assert done.stderr == f"error: {tmp_path / 'nothing'} holds no prepared split: {fix}\n"
