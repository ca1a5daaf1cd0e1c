"""A spot notice reaches the trainer: against a local server that plays EC2's metadata service (IMDSv2)."""

import logging
import queue
import threading
from collections.abc import Iterator

import pytest
from helpers.imds import INSTANCE, Instance, metadata_service
from helpers.train_runs import await_that

from loaders import World
from prep.metadata import ENDPOINT
from train.preemption import Notices, Reason, SpotWatch, find_instance_id

PATIENCE = 20.0  # seconds


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    """A spot instance with a metadata service of this test."""
    with metadata_service() as instance:
        monkeypatch.setenv(ENDPOINT, instance.url)
        yield instance


def refuse(reason: Reason) -> None:
    pytest.fail(f"{reason.name} came")


@pytest.mark.parametrize("kind", ["auto", "on"])
def test_a_notice_is_given_once_it_is_there(instance: Instance, kind: str) -> None:
    found: queue.SimpleQueue[Reason] = queue.SimpleQueue()
    with SpotWatch(kind, found.put, poll_seconds=0.01):  # pyright: ignore[reportArgumentType]
        for _ in range(3):
            assert instance.polled.acquire(timeout=PATIENCE)
        assert found.empty()
        instance.has_notice = True
        assert found.get(timeout=PATIENCE) == Reason.SPOT_NOTICE
    assert set(instance.asked) == {"PUT 200", "GET 404", "GET 200"}
    assert instance.asked[-1] == "GET 200"
    assert found.empty()


def test_a_recommendation_to_leave_is_given_once_and_a_notice_after_it(instance: Instance) -> None:
    found: queue.SimpleQueue[Reason] = queue.SimpleQueue()
    instance.has_rebalance = True
    with SpotWatch("on", found.put, poll_seconds=0.01):
        assert found.get(timeout=PATIENCE) == Reason.REBALANCE
        for _ in range(3):
            assert instance.polled.acquire(timeout=PATIENCE)
        assert found.empty()
        instance.has_notice = True
        assert found.get(timeout=PATIENCE) == Reason.SPOT_NOTICE


def test_a_recommendation_is_a_reason_to_save_once_and_not_to_leave(instance: Instance) -> None:
    instance.has_rebalance = True
    with Notices("auto", World()) as notices:
        await_that(lambda: notices.agreed() or notices.should_save, "a recommendation")
        assert (notices.agreed(), notices.should_save) == (Reason.NONE, True)
        notices.should_save = False  # as the trainer does when it saves
        assert (notices.agreed(), notices.should_save) == (Reason.NONE, False)
        notices.record(Reason.SIGTERM)
        assert notices.agreed() == Reason.SIGTERM


def test_the_instance_has_a_name(instance: Instance) -> None:
    assert find_instance_id() == INSTANCE


def test_the_trainer_hears_of_it(instance: Instance) -> None:
    instance.has_notice = True
    with Notices("auto", World()) as notices:
        await_that(notices.agreed, "a notice")
        assert notices.agreed() == Reason.SPOT_NOTICE


def test_off_asks_nothing(instance: Instance) -> None:
    before = set(threading.enumerate())
    with SpotWatch("off", refuse):
        assert set(threading.enumerate()) <= before


def test_auto_gives_up_where_there_is_no_metadata_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    with SpotWatch("auto", refuse):
        for thread in threading.enumerate():
            if thread.name == "penstock-spot":
                thread.join(PATIENCE)
                assert not thread.is_alive()


def test_on_warns_where_there_is_no_metadata_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    warned = threading.Event()
    monkeypatch.setattr(logging.getLogger("penstock"), "warning", lambda *_: warned.set())
    with SpotWatch("on", refuse, poll_seconds=0.01):
        assert warned.wait(PATIENCE)
