"""A local store: files of killed processes disappear when the lock is taken and when it is given back."""

from pathlib import Path

import pytest

from prep.files import PARTIAL
from prep.store import LocalStore

LEFT = f".train-000000.idx.{'0' * 16}{PARTIAL}"  # as `LocalStore.write` names a file before it is complete


def test_files_of_killed_runs_and_workers_are_removed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    (tmp_path / LEFT).touch()
    with store.lock():
        assert store.names() == []
        store.write("train-000000.idx", b"complete")
        (tmp_path / LEFT).touch()  # a worker of this run that was killed
        (tmp_path / f".theirs{PARTIAL}").touch()  # not a name of ours
    assert store.names() == [f".theirs{PARTIAL}", "train-000000.idx"]


def test_after_an_error_the_next_run_removes_them(tmp_path: Path) -> None:
    # Workers may still be running then.
    store = LocalStore(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.lock():
        (tmp_path / LEFT).touch()
        raise KeyboardInterrupt
    assert store.names() == [LEFT]
    with store.lock():
        assert store.names() == []
