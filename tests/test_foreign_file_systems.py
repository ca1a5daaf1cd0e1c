"""File systems without fsync, locks, links, renames or direct writes: commands continue, or end in one line with a fix.

Network file systems, FUSE and mounts of other systems are like this; here a preloaded library has the calls fail.
"""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import CHECKOUT
from helpers.datasets import prepare_folder, tree
from helpers.no_locks import build_shim, preloading
from helpers.tars import adopt, encode_image, images, one_by_one, write_tar
from helpers.train_runs import Run

from prep import errors, files
from prep.adoption import NO_LINKS
from prep.checks import check_dataset, find_layout
from prep.dataset import Options
from prep.errors import InputError, describe_os_error
from prep.files import NO_LOCKS, hold_lock, replace_file, sync_folder, write_whole
from train.checkpoint import find_fault

SHARDS = ("--images-per-shard", "20")
LACKING = [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP]


def run_on(shim: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command on a file system of another kind."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=CHECKOUT, env=preloading(shim), timeout=300, capture_output=True, text=True, check=False
    )


def start_on(shim: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=CHECKOUT, env=preloading(shim), stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No locks, no fsync, no direct writes, no rename over a file that exists."""
    folder = tmp_path_factory.mktemp("shim")
    return build_shim(
        folder, flock=errno.ENOSYS, fsync=errno.EINVAL, fsync_folder=errno.EINVAL, rename=errno.EEXIST,
        direct=errno.EINVAL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder: 2 classes of 20 images."""
    folder = tmp_path_factory.mktemp("source")
    for i in range(40):
        path = folder / "train" / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(grey=6 * i))
    return folder


@pytest.fixture(scope="module")
def prepared(lacking: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images prepared on such a file system, with one warning of each kind."""
    out = tmp_path_factory.mktemp("prepared")
    done = run_on(lacking, "prep/shard.py", "--source", source, "--out", out, *SHARDS, "--workers", "2")
    assert done.returncode == 0, done.stderr
    _check_warnings(done.stderr, out)
    return out


def _check_warnings(stderr: str, out: Path) -> None:
    lines = stderr.splitlines()
    assert len(lines) == 2, stderr
    assert lines[0].startswith(f"warning: {out}/train is on a file system without locks (flock: Function not impl")
    assert lines[1].startswith(f"warning: {out}/train") and "(fsync: Invalid argument); continuing" in lines[1]


def test_preparing_goes_on_and_gives_the_same_bytes(prepared: Path, source: Path, tmp_path: Path) -> None:
    prepare_folder(source, "train", tmp_path, Options(images_per_shard=20))
    assert tree(prepared) == tree(tmp_path)


def test_verifying_and_repairing_go_on(lacking: Path, prepared: Path, source: Path) -> None:
    before = tree(prepared)
    with (prepared / "train" / "train-000000.tar").open("r+b") as file:
        file.write(b"harm")
    (prepared / "train" / "train-000000.idx").write_bytes(b"harm")
    done = run_on(lacking, "prep/verify.py", prepared, "--workers", "1", "--repair", "--source", source)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tree(prepared) == before


def test_adopting_goes_on(lacking: Path, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", images(0, 1))
    done = run_on(lacking, "prep/adopt.py", tar, "--out", tmp_path / "out", "--workers", "1")
    assert done.returncode == 0, done.stderr
    _check_warnings(done.stderr, tmp_path / "out")
    assert find_faults(tmp_path / "out") == []


def test_training_saves_checkpoints_and_goes_on_from_them(lacking: Path, digits: Path, tmp_path: Path) -> None:
    run = Run(digits, tmp_path / "run", ("--epochs", "0.3", "--optim.warmup-epochs", "0.1", "--data.fraction", "0.2"))
    done = run_on(lacking, "train/main.py", *run.arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("(fsync: Invalid argument); continuing") == 1
    assert run.checkpoints and not list(run.folder.glob("**/*partial*"))
    assert [find_fault(path) for path in run.checkpoints] == [None]


def test_two_runs_at_once_without_locks_end_in_a_complete_split(lacking: Path, tmp_path: Path) -> None:
    """Each succeeds or ends in one line; nothing is damaged, and running it again is enough."""
    for i in range(4):
        write_tar(tmp_path / "tars" / f"a-{i}.tar", images(*range(10), start=10 * i))
    command = ["prep/adopt.py", tmp_path / "tars", "--out", tmp_path / "out", "--workers", "2"]
    for process in [start_on(lacking, *command) for _ in range(2)]:
        _, stderr = process.communicate(timeout=120)
        errors = [line for line in stderr.splitlines() if not line.startswith("warning: ")]
        assert len(errors) == process.returncode and all(line.startswith("error: ") for line in errors), stderr
    adopt(tmp_path / "out", tmp_path / "tars")
    assert find_faults(tmp_path / "out") == []


def test_a_disk_that_fails_ends_in_one_line_with_the_path_and_a_fix(tmp_path: Path) -> None:
    tar, out = write_tar(tmp_path / "a.tar", images(0, 1)), tmp_path / "out"
    shim = build_shim(tmp_path, fsync=errno.EDQUOT)
    done = run_on(shim, "prep/adopt.py", tar, "--out", out, "--workers", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"error: {out}/train/")
    assert "disk quota exceeded: free some space or raise the quota, then run the same command again" in done.stderr
    assert len(adopt(out, tar)) == 2


@pytest.mark.parametrize("number", sorted(NO_LINKS))
def test_where_no_links_can_be_another_folder_is_advised(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = write_tar(tmp_path / "a.tar", images(0, 1))
    with monkeypatch.context() as patch, pytest.raises(InputError) as refusal:
        patch.setattr(os, "symlink", _fail(number))
        adopt(tmp_path / "out", tar)
    assert str(refusal.value).startswith(f"{tmp_path}/out/train is on a file system without symbolic links (")
    assert "choose an --out on another one" in str(refusal.value)
    assert not (tmp_path / "out" / "train" / "manifest.json").exists()
    assert len(adopt(tmp_path / "on another", tar)) == 2


def find_faults(dataset: Path) -> list[str]:
    """Return what `prep/verify.py --decode all` reports for a dataset."""
    return [fault.line for fault in check_dataset(find_layout(str(dataset)), None, one_by_one).faults]


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_warned", set())


def _fail(number: int):
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.usefixtures("warned")
@pytest.mark.parametrize("number", sorted(NO_LOCKS))
def test_a_lock_that_cannot_be_had_is_warned_of_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files.fcntl, "flock", _fail(number))
    for _ in range(2):
        with hold_lock(tmp_path) as is_held:
            assert not is_held
    assert capsys.readouterr().err.count(f"warning: {tmp_path} is on a file system without locks") == 1


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_that_another_process_holds_is_no_missing_lock(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.fcntl, "flock", _fail(number))
    with pytest.raises(BlockingIOError), hold_lock(tmp_path):
        pass


@pytest.mark.parametrize("number", [*LACKING, errno.EBADF, errno.EACCES, errno.EPERM])
def test_a_folder_that_cannot_be_synced_needs_no_word(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "fsync", _fail(number))
    sync_folder(tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("warned")
@pytest.mark.parametrize("number", LACKING)
def test_a_file_that_cannot_be_synced_is_written_and_warned_of(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "fsync", _fail(number))
    write_whole(tmp_path / "a", b"1")
    write_whole(tmp_path / "b", b"2")
    assert tree(tmp_path) == {"a": b"1", "b": b"2"}
    assert capsys.readouterr().err.count("warning: ") == 1


def test_a_disk_that_fails_is_never_taken_for_one_that_lacks_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", _fail(errno.EIO))
    with pytest.raises(OSError, match=f"{tmp_path}/a"):
        write_whole(tmp_path / "a", b"1")
    with pytest.raises(OSError, match=f"{tmp_path}"):
        sync_folder(tmp_path)
    assert not (tmp_path / "a").exists()


def test_a_file_that_cannot_be_renamed_over_replaces_the_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    monkeypatch.setattr(os, "replace", _fail(errno.EEXIST))
    replace_file(tmp_path / "new", tmp_path / "old")
    assert tree(tmp_path) == {"old": b"new"}


@pytest.mark.parametrize("number", sorted(errors.ADVICE))
def test_an_error_of_the_disk_says_where_what_and_what_to_do(number: int) -> None:
    text = describe_os_error(OSError(number, os.strerror(number), "/data/x"))
    assert text.startswith("/data/x: ") and os.strerror(number)[1:] in text and text.endswith(errors.ADVICE[number])
