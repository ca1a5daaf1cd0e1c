"""The time of intervals: classes and idle time add up to the window; nested operations are counted once."""

import importlib
import random
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

LONGEST_TIME = 40  # of the intervals that are drawn, so that time can be counted point by point
KINDS = ("convolution", "copies", "other")
TIMES = st.integers(0, LONGEST_TIME)


def part() -> Any:
    return importlib.import_module("modelling.intervals")


def interval(start: int, end: int, kind: str = "other", name: str = "some") -> Any:
    return part().Interval(start, end, name, kind)


SPANS = st.lists(st.tuples(TIMES, TIMES, st.sampled_from(KINDS)), max_size=12)


def build_intervals(spans: Iterable[tuple[int, int, str]]) -> list[Any]:
    return [interval(min(a, b), max(a, b), kind) for a, b, kind in spans]


def list_points(intervals: Iterable[Any], start: int, end: int) -> set[int]:
    """The moments of a window in which an interval runs; each stands for the time until the next one."""
    return {time for each in intervals for time in range(max(each.start, start), min(each.end, end))}


# Intervals of kernels.


@given(SPANS, TIMES, TIMES)
def test_classes_and_idle_time_without_the_overlap_are_the_window(
    spans: list[tuple[int, int, str]], one: int, other: int
) -> None:
    start, end, intervals = min(one, other), max(one, other), build_intervals(spans)
    account = part().account_for(intervals, start, end)
    assert account.wall == end - start
    assert sum(account.classes.values()) + account.idle - account.overlap == account.wall
    assert account.idle >= 0 and account.overlap >= 0
    # The same, counted point by point.
    assert account.idle == account.wall - len(list_points(intervals, start, end))
    for kind, nanoseconds in account.classes.items():
        assert nanoseconds == len(list_points((each for each in intervals if each.category == kind), start, end))


@given(SPANS)
def test_the_union_is_at_most_the_window_and_at_most_the_sum(spans: list[tuple[int, int, str]]) -> None:
    intervals = build_intervals(spans)
    union = part().measure_union(intervals)
    assert union == len(list_points(intervals, 0, LONGEST_TIME)) <= LONGEST_TIME
    assert union <= sum(each.end - each.start for each in intervals)
    merged = part().merge_intervals(intervals)
    assert all(before[1] < after[0] for before, after in pairwise(merged))


@given(SPANS, st.integers())
def test_an_account_does_not_depend_on_the_order(spans: list[tuple[int, int, str]], seed: int) -> None:
    account_for, intervals = part().account_for, build_intervals(spans)
    shuffled = random.Random(seed).sample(intervals, len(intervals))
    assert account_for(intervals, 3, 30) == account_for(shuffled, 3, 30)


def test_what_began_before_the_window_counts_its_time_and_no_call() -> None:
    clipped = part().clip_intervals([interval(0, 15), interval(12, 40), interval(0, 5), interval(30, 31)], 10, 30)
    assert [(each.start, each.end, each.calls) for each in clipped] == [(10, 15, 0), (12, 30, 1)]


# Nested operations.


def keep_nested(intervals: list[Any]) -> list[Any]:
    """Those that are apart from, inside or around each other one that is kept."""
    kept: list[Any] = []
    for a in intervals:
        if all(is_apart(a, b) or is_inside(a, b) or is_inside(b, a) for b in kept):
            kept.append(a)
    return kept


def is_apart(a: Any, b: Any) -> bool:
    return a.end <= b.start or a.start >= b.end


def is_inside(a: Any, b: Any) -> bool:
    return a.start >= b.start and a.end <= b.end


def check_pieces(pieces: list[Any], num_operations: int) -> None:
    ordered = sorted((each.start, each.end) for each in pieces if each.end > each.start)
    assert all(before[1] <= after[0] for before, after in pairwise(ordered))
    assert sum(each.calls for each in pieces) == num_operations
    assert all(each.end >= each.start for each in pieces)


@given(SPANS)
def test_pieces_of_operations_are_disjoint_and_cover_their_time(spans: list[tuple[int, int, str]]) -> None:
    intervals = part()
    operations = keep_nested(build_intervals(spans))
    pieces = list(intervals.flatten_nested(operations))
    check_pieces(pieces, len(operations))
    assert intervals.measure_union(pieces) == intervals.measure_union(operations)
    assert intervals.account_for(pieces, 0, LONGEST_TIME).overlap == 0


@given(SPANS)
def test_operations_that_are_not_nested_are_cut(spans: list[tuple[int, int, str]]) -> None:
    operations = build_intervals(spans)
    pieces = list(part().flatten_nested(operations))
    check_pieces(pieces, len(operations))
    assert list_points(pieces, 0, LONGEST_TIME) <= list_points(operations, 0, LONGEST_TIME)


def test_an_operation_counts_without_those_that_it_calls() -> None:
    operations = [interval(0, 100, name="aten::conv2d"), interval(10, 80, name="aten::mkldnn_convolution")]
    operations += [interval(20, 30, name="aten::empty"), interval(110, 120, name="aten::relu")]
    spent: dict[str, int] = {}
    for piece in part().flatten_nested(operations):
        spent[piece.name] = spent.get(piece.name, 0) + piece.end - piece.start
    assert spent == {"aten::conv2d": 30, "aten::mkldnn_convolution": 60, "aten::empty": 10, "aten::relu": 10}
