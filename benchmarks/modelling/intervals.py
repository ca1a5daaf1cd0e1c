"""Account for the time of a step: from the intervals in which something ran to the time of each class, and idle time.

On a GPU the intervals are kernels, which may overlap: several streams. On a CPU they are operations, which are nested
(aten::conv2d calls aten::mkldnn_convolution): `flatten_nested` gives each its own time, without what it calls. A time
is an integer of nanoseconds, so that sums are exact:

    sum of the classes + idle - overlap == end - start of the window
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Interval:
    """The time in which a kernel or an operation ran, or a piece of it."""

    start: int  # nanoseconds
    end: int
    name: str
    category: str  # its class
    calls: int = 1  # 0 for the second and later pieces of an operation


@dataclass(frozen=True)
class Account:
    """How the time of a window was spent, in nanoseconds."""

    wall: int
    classes: dict[str, int]  # by class, the time in which at least one interval of it ran
    idle: int  # the time in which nothing ran
    overlap: int  # the time that counts in several classes: the sum of the classes minus the time in which any ran


def merge_intervals(intervals: Iterable[Interval]) -> list[tuple[int, int]]:
    """Return the (start, end) of disjoint intervals in order, which cover the same time."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted((each.start, each.end) for each in intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def measure_union(intervals: Iterable[Interval]) -> int:
    """Return the time in which at least one interval ran; time that several share counts once."""
    return sum(end - start for start, end in merge_intervals(intervals))


def clip_intervals(intervals: Iterable[Interval], start: int, end: int) -> list[Interval]:
    """Return the parts of intervals inside a window; one that began before the window is not counted as a call."""
    return [
        replace(
            each,
            start=max(start, each.start),
            end=min(end, each.end),
            calls=each.calls if each.start >= start else 0,
        )
        for each in intervals
        if each.end >= start and each.start < end
    ]


def account_for(intervals: Iterable[Interval], start: int, end: int) -> Account:
    """Return how the window from `start` to `end` was spent."""
    inside = clip_intervals(intervals, start, end)
    groups: dict[str, list[Interval]] = defaultdict(list)
    for each in inside:
        groups[each.category].append(each)
    classes = {kind: measure_union(group) for kind, group in groups.items()}
    busy = measure_union(inside)
    return Account(end - start, classes, end - start - busy, sum(classes.values()) - busy)


@dataclass
class _Open:
    """An operation that has begun and not ended."""

    operation: Interval
    done: int  # the time up to which its pieces were cut off
    calls: int = 1  # of its next piece

    def cut_until(self, time: int) -> Iterator[Interval]:
        """Yield the next piece, up to `time`, without empty ones; the first one always, because it counts the call."""
        if time > self.done or self.calls:
            yield replace(self.operation, start=self.done, end=time, calls=self.calls)
        self.done, self.calls = time, 0


def flatten_nested(operations: Iterable[Interval], inherited: str = "") -> Iterator[Interval]:
    """Yield disjoint pieces of the nested operations of one thread: each operation without those that it calls.

    Args:
        operations: one that ends later than the one that calls it is cut there.
        inherited: a class that an operation passes on to what it calls.
    """
    stack: list[_Open] = []  # the outermost first

    def close_until(time: int) -> Iterator[Interval]:
        """Yield the last pieces of the operations that end until `time`."""
        while stack and stack[-1].operation.end <= time:
            ended = stack.pop()
            yield from ended.cut_until(ended.operation.end)
            if stack:
                stack[-1].done = ended.operation.end

    for operation in sorted(operations, key=lambda each: (each.start, -each.end)):
        yield from close_until(operation.start)
        begun = operation
        if stack:
            caller = stack[-1].operation
            yield from stack[-1].cut_until(operation.start)
            category = inherited if inherited and caller.category == inherited else operation.category
            begun = replace(operation, end=min(operation.end, caller.end), category=category)
        stack.append(_Open(begun, begun.start))
    if stack:
        yield from close_until(stack[0].operation.end)
