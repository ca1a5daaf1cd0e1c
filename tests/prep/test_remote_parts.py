"""Objects that are read in parts, by several threads: what was read, errors, and Ctrl-C."""

import threading
from concurrent.futures import Future

import pytest
from helpers.ctrl_c import press_while_reading

from prep.remote import MissingObjectError, Remote
from prep.staging import fetch_matching

pytest.importorskip("obstore", reason="needs obstore")
SECONDS = 60.0  # to wait for an event on a busy machine


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Remote:
    """A prefix of which nothing is ever requested."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "name")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return Remote("s3://bucket/prefix")


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 95, 100])
def test_the_parts_cover_the_object_once(remote: Remote, size: int) -> None:
    parts: list[tuple[int, int]] = []
    remote.read_in_parts(lambda start, stop: parts.append((start, stop)), size, 10, 3)
    assert [each for start, stop in sorted(parts) for each in range(start, stop)] == list(range(size))
    assert all(0 < stop - start <= 10 for start, stop in parts)


def see_the_rest_cancelled(monkeypatch: pytest.MonkeyPatch, num_parts: int) -> threading.Event:
    """Return an event that is set when all parts that were not begun have been left out."""
    event, tried, cancel = threading.Event(), [], Future.cancel

    def cancel_and_count(future: Future[None]) -> bool:
        tried.append(future)
        is_cancelled = cancel(future)
        if len(tried) == num_parts:
            event.set()
        return is_cancelled

    monkeypatch.setattr(Future, "cancel", cancel_and_count)
    return event


def test_after_an_error_parts_that_were_not_begun_are_left_out(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    goes_on = see_the_rest_cancelled(monkeypatch, 1000)

    def read_part(start: int, _: int) -> None:
        begun.append(start)
        if start == 0:
            raise MissingObjectError("it is gone")
        assert goes_on.wait(SECONDS)

    # One of two threads fails with part 0; both hold another part until the rest is given up.
    with pytest.raises(MissingObjectError, match="it is gone"):
        remote.read_in_parts(read_part, 1000, 1, 2)
    assert sorted(begun) in ([0, 1], [0, 1, 2])
    assert not remote.patience.stopped.is_set()


@pytest.mark.parametrize("is_lost", [False, True])
def test_ctrl_c_ends_the_parts_that_were_begun_before_an_error(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    """The first of two parts fails; the other one waits for S3, and its waiting begins after the error."""
    failed, begun = see_the_rest_cancelled(monkeypatch, 2), threading.Event()

    def read_part(start: int, stop: int) -> None:
        if start == 0:
            assert begun.wait(SECONDS)
            raise MissingObjectError("it is gone")
        begun.set()
        assert failed.wait(SECONDS)
        remote.read_range("a", start, stop, bytearray())

    press_while_reading(monkeypatch, remote, lambda: remote.read_in_parts(read_part, 2, 1, 2), is_lost)


@pytest.mark.parametrize("is_lost", [False, True])
def test_ctrl_c_ends_the_fetch_of_an_index_that_waits_for_s3(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    press_while_reading(monkeypatch, remote, lambda: fetch_matching(remote, "samples.arrow", 100, "digest"), is_lost)
