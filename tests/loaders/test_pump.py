"""The prefetcher: a producer in its own thread, whose errors reach the consumer, and which stops on request."""

import threading
from collections.abc import Generator

import pytest

from loaders.prefetch import Prefetcher
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
    with Prefetcher(_count_to(1000), 3, stats) as prefetcher:
        assert list(prefetcher) == list(range(1000))
    assert stats.num_batches == 1000
    assert not prefetcher.thread.is_alive()


def test_an_empty_producer_ends_the_iteration() -> None:
    with Prefetcher(_count_to(0), 1, Counters()) as prefetcher:
        assert list(prefetcher) == []


@pytest.mark.parametrize("error", [ValueError("a fault"), KeyboardInterrupt(), StopIteration("not an end")])
@pytest.mark.parametrize("num_items", [0, 1, 5])
def test_the_producers_error_reaches_the_consumer_after_the_items_before_it(
    error: BaseException, num_items: int
) -> None:
    taken: list[int] = []
    expected = RuntimeError if isinstance(error, StopIteration) else type(error)  # as generators turn it
    with Prefetcher(_fail_after(num_items, error), 2, Counters()) as prefetcher, pytest.raises(expected) as caught:
        taken.extend(prefetcher)
    assert error in (caught.value, caught.value.__cause__)
    assert taken == list(range(num_items))
    assert not prefetcher.thread.is_alive()


def test_a_wait_that_begins_after_the_stop_is_interrupted_too() -> None:
    waits, was_interrupted = [threading.Event()], []

    def items() -> Generator[int, None, None]:
        was_interrupted.append(waits[-1].wait(PATIENCE_SECONDS))
        waits.append(threading.Event())
        was_interrupted.append(waits[-1].wait(PATIENCE_SECONDS))
        yield 0

    def interrupt() -> None:
        waits[-1].set()

    with Prefetcher(items(), 1, Counters(), interrupt):
        pass
    assert was_interrupted == [True, True]


@pytest.mark.parametrize("num_taken", [0, 1, 7])
def test_leaving_early_with_a_full_queue_stops_the_producer(num_taken: int) -> None:
    closed = threading.Event()
    with Prefetcher(_count_to(10**9, closed), 2, Counters()) as prefetcher:
        items = iter(prefetcher)
        assert [next(items) for _ in range(num_taken)] == list(range(num_taken))
        _wait_until_full(prefetcher)
    assert not prefetcher.thread.is_alive()
    assert closed.is_set()


def _wait_until_full(prefetcher: Prefetcher[int]) -> None:
    waiting = threading.Event()
    for _ in range(PATIENCE_SECONDS * 100):
        if prefetcher.queue.full():
            return
        waiting.wait(0.01)
    raise AssertionError("the producer never filled its queue")


def test_an_error_of_the_consumer_stops_the_producer_and_is_not_hidden() -> None:
    closed = threading.Event()
    with (
        pytest.raises(ArithmeticError, match="not finite"),
        Prefetcher(_count_to(10**9, closed), 2, Counters()) as prefetcher,
    ):
        for _ in prefetcher:
            raise ArithmeticError("the loss is not finite")
    assert closed.is_set()


def test_an_error_while_leaving_with_a_full_queue_does_not_hang() -> None:
    """The producer fails after the consumer has left."""

    def items() -> Generator[int, None, None]:
        try:
            yield from range(10**9)
        finally:
            raise OSError("the disk is gone")

    with Prefetcher(items(), 1, Counters()) as prefetcher:
        _wait_until_full(prefetcher)
    assert not prefetcher.thread.is_alive()


def test_the_producer_is_never_more_than_the_queue_and_one_item_ahead() -> None:
    produced = 0

    def items() -> Generator[int, None, None]:
        nonlocal produced
        while produced < 50:
            produced += 1
            yield produced

    with Prefetcher(items(), 3, Counters()) as prefetcher:
        for item in prefetcher:
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

    with Prefetcher(items(), 1, Counters()) as prefetcher:
        next(iter(prefetcher))
    assert threads == ["penstock-prefetch"] * 2
