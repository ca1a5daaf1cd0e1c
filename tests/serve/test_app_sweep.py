"""Visitors' pictures do not stay, whatever became of their upload."""

import os
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gradio.state_holder import StateHolder

from serve.app import uploads
from serve.app.leftovers import forget_answers, make_private_folder
from serve.app.uploads import delete_old_uploads, start_cleaner


def write(path: Path, size_bytes: int, age_seconds: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size_bytes))
    then = time.time() - age_seconds
    for each in (path, path.parent):
        os.utime(each, (then, then))
    return path


def test_old_pictures_go_and_new_ones_stay(tmp_path: Path) -> None:
    old, new = write(tmp_path / "a" / "old.png", 9, 301), write(tmp_path / "b" / "new.png", 9, 270)
    broken_off = write(tmp_path / "tmpq3x", 9, 301)
    os.utime(tmp_path)
    delete_old_uploads(tmp_path)
    assert (old.exists(), broken_off.exists(), new.exists()) == (False, False, True)
    os.utime(old.parent, (0, 0))  # its folder is as old as what last became of it
    delete_old_uploads(tmp_path)
    assert (old.parent.exists(), new.parent.exists()) == (False, True)


def test_of_too_many_bytes_the_oldest_go_first(tmp_path: Path) -> None:
    paths = [write(tmp_path / str(number) / "x.png", 100, number) for number in range(5)]
    delete_old_uploads(tmp_path, keep_bytes=250)
    assert [path.exists() for path in paths] == [True, True, False, False, False]


def test_the_cleaner_runs_repeatedly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "CLEAN_SECONDS", 0.01)
    start_cleaner(tmp_path)
    for _ in range(2):
        path = write(tmp_path / "a" / "old.png", 9, 301)
        for _ in range(500):
            if not path.exists():
                break
            time.sleep(0.01)
        assert not path.exists()


def test_the_folder_of_a_killed_server_is_deleted_by_the_next_and_a_living_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = write(tmp_path / "penstock-app-dead" / "uploads" / "x.png", 9, 0).parent.parent
    (dead / "lock").touch()
    starting = tmp_path / "penstock-app-starting"
    starting.mkdir()
    with make_private_folder() as living:
        assert not dead.exists() and starting.exists()
        with make_private_folder() as other:
            assert living.exists() and other.exists()
        assert living.exists() and not other.exists()
    assert not living.exists()


def test_answers_are_forgotten_after_a_minute() -> None:
    holder: Any = StateHolder()  # Gradio's; a whole app would leave event loops open in this process
    for session, age in (("old", 61), ("new", 59)):
        holder.session_data[session] = "the last answer"
        holder.time_last_used[session] = datetime.now() - timedelta(seconds=age)
    forget_answers(SimpleNamespace(state_holder=holder))  # pyright: ignore[reportArgumentType]
    assert list(holder.session_data) == ["new"] == list(holder.time_last_used)
    forget_answers(SimpleNamespace())  # pyright: ignore[reportArgumentType]  # before the launch
