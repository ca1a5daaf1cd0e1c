"""Read only the segments of each image that hold its window, and splice them into a smaller JPEG.

For a split with segments (`prep/shard.py --restarts`). `Splicer` reads a part of a batch in one of the reader's
threads: the segments' lengths from SHARD.seg, then the tables and one range of the tar, from the first to the last
needed segment. It reads them to where they belong in the batch's buffer; rows that are not contiguous are moved
together, and the markers of the whole part are checked and numbered at once.

An image whose segments contradict the tar is read whole, with a warning; so is one whose spliced form could not be
decoded (`WholeImages`).
"""

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loaders.plan import Plan
from loaders.splice import (
    FRAMES,
    HEAD,
    MARKER_BYTES,
    SIZE_BYTES,
    SIZE_OFFSET,
    Spans,
    encode_size,
    find_cuts,
    find_spans,
    fits,
    follow_markers,
    renumber,
)
from loaders.subset import find_whole, find_whole_rows
from prep.errors import InputError
from prep.segments import LENGTH, RECORD, parse_records, records_size

if TYPE_CHECKING:
    from prep.dataset import Split

# A gap up to this size between the tables and the first needed segment is read too, which saves a read (as in _read.c).
NEAR_BYTES = 4096
Fill = Callable[[int, int, memoryview], None]
log = logging.getLogger("penstock")


class WholeImages:
    """The images that are never spliced, and the shards that a warning has named. It outlives its readers."""

    def __init__(self) -> None:
        self.rows: set[int] = set()
        self.shards: set[int] = set()

    def add(self, rows: Iterable[int]) -> list[int]:
        """Add rows; return those that are new."""
        new = [row for row in rows if row not in self.rows]
        self.rows.update(new)
        return new

    def warn(self, split: "Split", row: int, what: str = "contradicts the image") -> None:
        """Warn that an image is used whole because of its segments; once for each shard."""
        shard = int(split.column("shard")[row])
        if shard in self.shards:
            return
        self.shards.add(shard)
        complete = find_whole(split)
        log.warning(
            "%s %s %s: it and other such images of the shard are used whole; "
            "`python prep/verify.py %s` says whether this file or the tar is damaged",
            *(complete.segments_path(shard), what, split.keys([row])[0], complete.folder),
        )


class Done(NamedTuple):
    """What a thread has read."""

    num_bytes: int  # of the tar and of SHARD.seg
    contradictory: list[int]  # indices in the batch of images whose segments contradict the tar: they were read whole


@dataclass(frozen=True)
class Slots:
    """The images of a batch in its buffer."""

    plan: Plan
    spans: Spans | None  # None: no image is spliced
    buffer: np.ndarray  # uint8
    starts_B: np.ndarray  # int64: where the image's bytes begin; there is room for `spliced_size` of them
    images: list[np.ndarray]  # views of the buffer: of the complete image, until it is spliced


def spliced_size(size: np.ndarray) -> np.ndarray:
    """Return a bound of the bytes of a spliced image, and of what is read for it, from those of the complete image."""
    return size + len(HEAD)


class Splicer:
    """Reads spliced images. One for each reader."""

    def __init__(self, split: "Split", whole: WholeImages) -> None:
        """Open nothing yet, see `open_shard`.

        Args:
            whole: images that are not spliced; those that this finds are added to it.
        """
        self.split, self.whole = split, whole
        self.shards, self.offsets, self.sizes = (split.column(name) for name in ("shard", "offset", "size"))
        self.heights, self.widths = split.column("height"), split.column("width")

        # The records are those of the complete split, which a subset is a part of. All 0: not spliced.
        self.complete, self.complete_rows = find_whole(split), find_whole_rows(split)
        counts_S = np.array([shard.num_images for shard in split.manifest.shards])
        self.firsts_S = np.cumsum(counts_S) - counts_S
        self.records = np.zeros(len(self.complete), RECORD)
        self.descriptors: dict[int, int] = {}

    def close(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()

    def open_shard(self, shard: int) -> None:
        """Open the segments of a shard, if they are not open yet, and read its records.

        Raises:
            InputError: the file cannot be read, or is not that of such a shard.
        """
        if shard in self.descriptors:
            return
        path, num_images = self.complete.segments_path(shard), self.complete.manifest.shards[shard].num_images
        try:
            descriptor = self.descriptors[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            size, content = os.fstat(descriptor).st_size, bytearray(records_size(num_images))
            num_bytes = _read(descriptor, memoryview(content), 0)
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}): `python prep/verify.py {self.complete.folder}` says how "
                "to repair it; --loader.splice off reads the images without it"
            ) from error
        records = parse_records(bytes(content[:num_bytes]), str(path), num_images).copy()

        # A record that does not belong to its image, or whose lengths are not in the file.
        rows = slice(self.firsts_S[shard], self.firsts_S[shard] + num_images)
        sides_and_sizes = (self.complete.column(each)[rows] for each in ("height", "width", "size"))
        firsts = records["first"]
        ends = firsts + records["num_lengths"].astype(np.uint64) * LENGTH.itemsize
        is_right = fits(records, *sides_and_sizes) & (firsts <= size) & (ends <= size)  # the sum may wrap around
        if not is_right.all():
            self.whole.warn(self.complete, rows.start + int(is_right.argmin()))
        records[~is_right] = np.zeros((), RECORD)
        self.records[rows] = records

    def find_spans(self, plan: Plan) -> Spans:
        """Return the segments that a plan's windows need."""
        rows_B = plan.rows_B
        records_B = self.records_of(rows_B)
        is_whole_B = np.isin(rows_B, list(self.whole.rows)) if self.whole.rows else plan.damaged_B
        heights_B, widths_B = (each[rows_B].astype(np.int64) for each in (self.heights, self.widths))
        return find_spans(records_B, heights_B, widths_B, plan.windows_B4, plan.damaged_B | is_whole_B)

    def locate_lengths(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where the lengths of some images are in their files with segments, and their bytes: int64 each."""
        records = self.records_of(rows)
        return records["first"].astype(np.int64), records["num_lengths"].astype(np.int64) * LENGTH.itemsize

    def distrust(self, rows: Iterable[int]) -> None:
        """Read these images whole from now on, since their segments contradict the tar; warn once per shard."""
        for row in self.whole.add(rows):
            self.whole.warn(self.split, row)

    def records_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the records of some images, `prep.segments.RECORD`."""
        return self.records[rows if self.complete_rows is None else self.complete_rows[rows]]

    # Reading. These run in the reader's threads.

    def read_part(self, slots: Slots, chosen_P: np.ndarray, fill: Fill) -> Done:
        """Read and splice some images of a batch.

        Args:
            chosen_P: their indices, in the order of the disk.
            fill: fills a buffer with the bytes of a row, from an offset in its image on.
        """
        # Where the segments are.
        spans = slots.spans
        assert spans is not None
        if not len(chosen_P):
            return Done(0, [])
        chosen_P, lengths_L, contradictory = self._read_lengths(slots.plan, spans, chosen_P)
        num_bytes = lengths_L.nbytes
        if not len(chosen_P):
            return Done(num_bytes, contradictory)
        rows_P = slots.plan.rows_B[chosen_P]
        records_P = self.records_of(rows_P)
        tables_P, table_sizes_P = (records_P[name].astype(np.int64) for name in ("tables_start", "tables_size"))
        heads_P = slots.starts_B[chosen_P]
        places_P = heads_P + len(HEAD)  # of the tables
        bodies_P = places_P + table_sizes_P
        cuts = find_cuts(spans, chosen_P, records_P["num_lengths"], lengths_L, bodies_P)

        # Read the tables, and the rows with the marker before them, to the buffer: in one read if they are neighbours.
        # Check the markers before all rows, and move the rows together.
        gaps_P = np.where(cuts.starts_P <= NEAR_BYTES, cuts.starts_P, MARKER_BYTES)
        is_far_P = gaps_P < cuts.starts_P
        range_ends_P = bodies_P + gaps_P + cuts.stops_P - cuts.starts_P
        first_ends_P = np.where(is_far_P, bodies_P, range_ends_P)
        scans_P = tables_P + table_sizes_P
        view = slots.buffer.data
        for row, offset, start, end in _zip(rows_P, tables_P, places_P, first_ends_P):
            fill(row, offset, view[start:end])
        for row, offset, start, end in _zip(
            *(each_P[is_far_P] for each_P in (rows_P, scans_P + cuts.starts_P - gaps_P, bodies_P, range_ends_P))
        ):
            fill(row, offset, view[start:end])
        num_bytes += int((range_ends_P - places_P).sum())
        from_R = cuts.row_starts_R + np.repeat(bodies_P + gaps_P, cuts.row_counts_P)
        is_right_P = follow_markers(slots.buffer, from_R, cuts)
        _move(view, from_R, cuts.row_places_R, cuts.row_sizes_R)

        # Write the head, the size and the markers.
        is_right_P &= _write_heads(slots.buffer, heads_P, records_P["frame"], spans.sizes_B2[chosen_P])
        is_right_P &= renumber(slots.buffer, cuts)
        for i, start, end in _zip(chosen_P, heads_P, bodies_P + cuts.sizes_P):
            slots.images[i] = slots.buffer[start:end]
        return Done(num_bytes, contradictory + chosen_P[~is_right_P].tolist())

    def _read_lengths(self, plan: Plan, spans: Spans, chosen_P: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Read the lengths of the segments up to the last needed row.

        Returns:
            The images whose lengths are possible: at least a marker each, and not beyond the end of their file; the
            lengths, uint16 [L]; the other images.
        """
        rows_P = plan.rows_B[chosen_P]
        records_P = self.records_of(rows_P)
        counts_P = spans.bottoms_B[chosen_P] * spans.columns_B[chosen_P]
        lengths_L = np.zeros(int(counts_P.sum()), LENGTH)  # they stay 0 where SHARD.seg cannot be read any more
        view, start = lengths_L.data.cast("B"), 0
        files = [self.descriptors[shard] for shard in self.shards[rows_P].tolist()]
        sizes = (counts_P * LENGTH.itemsize).tolist()
        for descriptor, first, size in zip(files, records_P["first"].tolist(), sizes, strict=True):
            with suppress(OSError):
                _read(descriptor, view[start : start + size], first)
            start += size

        # Leave out images with a segment that is too short, or whose segments end beyond their file.
        firsts_P = np.cumsum(counts_P) - counts_P
        scans_P = records_P["tables_start"].astype(np.int64) + records_P["tables_size"]
        sums_P = np.add.reduceat(lengths_L, firsts_P, dtype=np.int64)
        is_right_P = np.minimum.reduceat(lengths_L, firsts_P) >= MARKER_BYTES
        is_right_P &= scans_P + sums_P <= self.sizes[rows_P]
        if is_right_P.all():
            return chosen_P, lengths_L, []
        return chosen_P[is_right_P], lengths_L[np.repeat(is_right_P, counts_P)], chosen_P[~is_right_P].tolist()


def _read(descriptor: int, target: memoryview, position: int) -> int:
    """Fill `target` from a file; return the bytes read, which are fewer at the file's end. A read may be partial."""
    done = 0
    while done < len(target) and (count := os.preadv(descriptor, [target[done:]], position + done)):
        done += count
    return done


def _zip(*columns: np.ndarray) -> Iterable[tuple[int, ...]]:
    """Return the rows of some columns. Lists of rows would make Python's garbage collection run."""
    return zip(*(column.tolist() for column in columns), strict=True)


def _move(view: memoryview, from_R: np.ndarray, to_R: np.ndarray, sizes_R: np.ndarray) -> None:
    """Move parts of a buffer to lower offsets, in order."""
    moved_R = from_R != to_R
    from_R, to_R, sizes_R = from_R[moved_R], to_R[moved_R], sizes_R[moved_R]
    for start, end, old_start, old_end in _zip(to_R, to_R + sizes_R, from_R, from_R + sizes_R):
        view[start:end] = view[old_start:old_end]


def _write_heads(buffer: np.ndarray, heads_P: np.ndarray, frames_P: np.ndarray, sizes_P2: np.ndarray) -> np.ndarray:
    """Write the beginning and the size of each image; return whether its frame header was where it should be."""
    buffer[heads_P[:, None] + np.arange(len(HEAD))] = np.frombuffer(HEAD, np.uint8)
    frames_P = heads_P + len(HEAD) + frames_P
    places_P4 = frames_P[:, None] + SIZE_OFFSET + np.arange(SIZE_BYTES)
    markers_P = buffer[frames_P].astype(np.int64) << 8 | buffer[frames_P + 1]
    buffer[places_P4] = encode_size(*sizes_P2.T)
    return np.isin(markers_P, FRAMES)
