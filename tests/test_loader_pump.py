"""The pump: a producer in a thread of its own whose errors reach the consumer, and who stops when told."""

import threading
from collections.abc import Generator

import pytest

from loaders.pump import Pump
from loaders.stats import Counters

PATIENCE_SECONDS = 30


def _count_to(stop: int, closed: threading.Event | None = None) -> Generator[int, None, None]:
    try:
        yield from range(stop)
    finally:
        if closed is not None:
            closed.set()


def _fail_after(num_items: int, error: BaseException) -> Generator[int, None, None]:
    yield from range(num_items)
    raise error


def test_items_come_in_order_and_are_counted() -> None:
    stats = Counters()
    with Pump(_count_to(1000), 3, stats) as pump:
        assert list(pump) == list(range(1000))
    assert stats.num_batches == 1000
    assert not pump.thread.is_alive()


def test_an_empty_producer_ends_the_iteration() -> None:
    with Pump(_count_to(0), 1, Counters()) as pump:
        assert list(pump) == []


@pytest.mark.parametrize("error", [ValueError("a fault"), KeyboardInterrupt(), StopIteration("not an end")])
@pytest.mark.parametrize("num_items", [0, 1, 5])
def test_the_producers_error_reaches_the_consumer_after_the_items_before_it(
    error: BaseException, num_items: int
) -> None:
    taken: list[int] = []
    expected = RuntimeError if isinstance(error, StopIteration) else type(error)  # as generators turn it
    with Pump(_fail_after(num_items, error), 2, Counters()) as pump, pytest.raises(expected) as caught:
        taken.extend(pump)
    assert error in (caught.value, caught.value.__cause__)
    assert taken == list(range(num_items))
    assert not pump.thread.is_alive()


@pytest.mark.parametrize("num_taken", [0, 1, 7])
def test_leaving_early_with_a_full_queue_stops_the_producer(num_taken: int) -> None:
    closed = threading.Event()
    with Pump(_count_to(10**9, closed), 2, Counters()) as pump:
        items = iter(pump)
        assert [next(items) for _ in range(num_taken)] == list(range(num_taken))
        _wait_until_full(pump)
    assert not pump.thread.is_alive()
    assert closed.is_set()


def _wait_until_full(pump: Pump[int]) -> None:
    waiting = threading.Event()
    for _ in range(PATIENCE_SECONDS * 100):
        if pump.queue.full():
            return
        waiting.wait(0.01)
    raise AssertionError("the producer never filled its queue")


def test_an_error_of_the_consumer_stops_the_producer_and_is_not_hidden() -> None:
    closed = threading.Event()
    with pytest.raises(ArithmeticError, match="not finite"), Pump(_count_to(10**9, closed), 2, Counters()) as pump:
        for _ in pump:
            raise ArithmeticError("the loss is not finite")
    assert closed.is_set()


def test_an_error_while_leaving_with_a_full_queue_does_not_hang() -> None:
    """The producer fails with nobody left to hear of it."""

    def items() -> Generator[int, None, None]:
        try:
            yield from range(10**9)
        finally:
            raise OSError("the disk is gone")

    with Pump(items(), 1, Counters()) as pump:
        _wait_until_full(pump)
    assert not pump.thread.is_alive()


def test_the_producer_is_never_more_than_the_queue_and_one_item_ahead() -> None:
    produced = 0

    def items() -> Generator[int, None, None]:
        nonlocal produced
        while produced < 50:
            produced += 1
            yield produced

    with Pump(items(), 3, Counters()) as pump:
        for item in pump:
            assert produced <= item + 4 + 1  # the queue's three, the one waiting for a place, and one begun


def test_the_producer_runs_and_is_closed_in_its_own_thread() -> None:
    threads: list[str] = []

    def items() -> Generator[int, None, None]:
        try:
            threads.append(threading.current_thread().name)
            yield 1
            yield 2
        finally:
            threads.append(threading.current_thread().name)

    with Pump(items(), 1, Counters()) as pump:
        next(iter(pump))
    assert threads == ["penstock-pump"] * 2
