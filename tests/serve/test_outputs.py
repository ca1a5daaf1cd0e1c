"""Commands of serve find what they cannot write first, write it whole or not at all, and say what is true."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.disks import make_disk
from helpers.served import Exported, run_here
from PIL import Image

import serve.predict
from prep.errors import InputError
from serve.artifact import load_artifact
from serve.contents import write_contents
from serve.image_sources import open_images
from serve.outputs import check_file, check_folder
from serve.pictures import Source
from serve.predict import BATCH_SIZE, decode_ahead, predict_rows

# Replaces a folder, and is killed at one of the calls that change names, sync or delete.
KILLED = """
import os, pathlib, shutil, signal, sys
from prep.files import write_folder
out, left = pathlib.Path(sys.argv[1]), int(sys.argv[2])

def count(function):
    def counted(*arguments, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return counted

os.fsync, os.unlink, os.rmdir, os.mkdir = map(count, (os.fsync, os.unlink, os.rmdir, os.mkdir))
pathlib.Path.rename = count(pathlib.Path.rename)
with write_folder(out) as partial:
    for name in "abc":
        (partial / name).write_text("new")
"""


def refuse(script: str, *arguments: object) -> str:
    """Run a command that must fail; return its message."""
    with pytest.raises(SystemExit) as ended:
        run_here(script, *arguments)
    return str(ended.value.code)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a command fail that comes as far as to load its model."""

    def load(*_: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("serve.artifact.load_artifact", load)


def make_obstacles(folder: Path) -> dict[str, Path]:
    """Return paths at which nothing can be written, by a part of the message."""
    (folder / "file").write_text("mine")
    (folder / "full").mkdir()
    (folder / "full" / "index.html").write_text("mine")
    return {
        "is not a folder": folder / "file" / "below",
        "file name too long: choose a shorter path": folder / ("n" * 300),
    }


def test_a_place_that_cannot_be_written_is_found_before_the_model(no_model: None, tmp_path: Path) -> None:
    obstacles = make_obstacles(tmp_path)
    report = ("serve/report.py", "artifact", "--data", tmp_path, "--out")
    gallery = (
        "serve/gradcam_viz.py",
        "--checkpoint_path",
        tmp_path,
        "--validation_img_path",
        tmp_path,
        "--output_path",
    )
    for words, path in obstacles.items():
        assert words in refuse(*report, path)
        assert words in refuse(*gallery, path)
    assert "is not a folder: choose another --out" in refuse(*report, tmp_path / "file")
    assert "holds index.html, which is yours" in refuse(*report, tmp_path / "full")
    assert "is a folder: give --output_path the name of a file" in refuse(*gallery, tmp_path / "full")
    assert (tmp_path / "full" / "index.html").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_a_disk_that_is_read_only_or_full_is_found_first(tmp_path: Path) -> None:
    disk = make_disk("64k", tmp_path)
    try:
        assert not check_folder(disk.seen / "report")
        (disk.seen / "full").write_bytes(bytes(60_000))
        while True:
            try:
                (disk.seen / f"more-{len(list(disk.seen.iterdir()))}").write_bytes(bytes(4096))
            except OSError:
                break
        with pytest.raises(OSError, match="No space left") as ended:
            check_file(disk.seen / "a.png", "--output_path")
        assert ended.value.filename == str(disk.seen)
        disk.remount("ro")
        with pytest.raises(OSError, match="Read-only file system"):
            check_folder(disk.seen / "report")
    finally:
        disk.holder.kill()
        disk.holder.communicate()


def test_only_an_unchanged_result_of_the_same_command_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    assert not check_folder(folder, "index.html")
    (folder / "contents.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds contents\.json, which is yours"):
        check_folder(folder, "index.html")
    (folder / "index.html").write_text("page")
    write_contents(folder)
    (folder / ".DS_Store").write_text("left by a file manager")
    assert check_folder(folder, "index.html")
    with pytest.raises(InputError, match="is yours"):  # as if it were a Space
        check_folder(folder, "app.py")
    (folder / "pictures").symlink_to(tmp_path)
    with pytest.raises(InputError, match="holds pictures"):
        check_folder(folder, "index.html")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(InputError, match="is a link"):
        check_folder(tmp_path / "link", "index.html")
    with pytest.raises(InputError, match="a disk is mounted at /"):
        check_folder(Path("/"))


def test_a_folder_of_the_users_is_refused_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it for reading would block
    with pytest.raises(InputError, match="holds pipe"):
        check_folder(tmp_path)


def test_a_killed_process_leaves_the_old_folder_the_new_one_or_none(tmp_path: Path) -> None:
    seen, status = set(), None
    for number in range(40):
        out = tmp_path / f"{number}" / "out"
        out.mkdir(parents=True)
        for name in "abc":
            (out / name).write_text("old")
        done = subprocess.run([sys.executable, "-c", KILLED, out, str(number)], check=False)
        texts = [path.read_text() for path in sorted(out.iterdir())] if out.exists() else []
        assert texts in ([], ["old"] * 3, ["new"] * 3)
        seen.add(tuple(texts[:1]))
        status = done.returncode
        if status == 0:
            break
    assert status == 0 and seen == {(), ("old",), ("new",)}
    # The next run completes what the killed one left.
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "8" / "out", "1000"], check=True)
    assert [path.name for path in (tmp_path / "8").iterdir()] == ["out"]


def test_ctrl_c_leaves_the_earlier_report_and_says_so(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("serve/report.py", exported.artifact, "--data", exported.data / "validation", "--limit", 64, "--anyway")
    run_here(*command, "--out", tmp_path / "out", "--num_show", 1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    # While the model is measured.
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(serve.predict, "_predict_batch", press)
        assert refuse(*command, "--out", tmp_path / "out") == "interrupted: nothing was written"
        gallery = tmp_path / "gallery.png"
        flags = ("--checkpoint_path", exported.artifact, "--validation_img_path", exported.data / "validation")
        said = refuse("serve/gradcam_viz.py", *flags, "--output_path", gallery)
        assert said == "interrupted: nothing was written"
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]

    # After the report got its name.
    with monkeypatch.context() as patch:
        patch.setattr("prep.files.sync_folder", lambda folder: press() if folder == tmp_path else None)
        assert refuse(*command, "--out", tmp_path / "out") == f"interrupted: {tmp_path}/out/index.html is complete"


@pytest.mark.parametrize("flags", [("--seed", "-1"), ("--workers", "0"), ("--device", "tpu")])
def test_wrong_flags_are_one_line(
    flags: tuple[str, str], no_model: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery = ("serve/gradcam_viz.py", "--checkpoint_path", tmp_path, "--validation_img_path", tmp_path)
    for command in (("serve/report.py", tmp_path, "--data", tmp_path, "--out", tmp_path / "out"), gallery):
        said = refuse(str(command[0]), *command[1:], *flags) + capsys.readouterr().err
        assert "must be" in said and f"got {flags[1]}" in said and "Traceback" not in said


# Measuring


@pytest.fixture(scope="module")
def mixed(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Digits of several sizes, some damaged: three batches and a part of one."""
    folder = tmp_path_factory.mktemp("mixed")
    source = open_images(exported.data / "validation", 10, None)
    for each in source.read(range(3 * BATCH_SIZE + 5)):
        path = folder / source.class_names[each.label] / f"{each.key}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(each.content[:150] if each.row % 9 == 4 else each.content)
    for name in source.class_names:
        Image.effect_noise((900, 700), 60).save(folder / name / "large.png", compress_level=1)
    return open_images(folder, 10, source.class_names)


def test_predictions_do_not_depend_on_the_number_of_workers(exported: Exported, mixed: Source) -> None:
    served = load_artifact(exported.artifact)
    rows = range(mixed.num_images)
    alone = predict_rows(served, mixed, rows, workers=1)
    assert [each.row for each in alone] == list(rows) and sum(each.guess < 0 for each in alone) == 11
    for workers in (2, 7, None):
        assert predict_rows(served, mixed, rows, workers=workers) == alone


def test_decoding_runs_ahead_of_the_model_but_not_far(exported: Exported, mixed: Source) -> None:
    num_read = 0

    def read() -> Iterator[serve.predict.Encoded]:
        nonlocal num_read
        for _ in range(5):
            for each in mixed.read(range(mixed.num_images)):
                num_read += 1
                yield each

    decoded = decode_ahead(read(), load_artifact(exported.artifact).preprocessing, 2)
    for _ in range(10):
        next(decoded)
    assert num_read == serve.predict.BATCHES_AHEAD * BATCH_SIZE + 2 + 10
    decoded.close()
