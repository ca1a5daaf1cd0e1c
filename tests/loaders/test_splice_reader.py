"""The reader gives each planned image as the JPEG that `splice_jpeg` makes of it, and reads only what that needs."""

import logging
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.datasets import prepare_folder
from helpers.restarts import make_jpeg, needs_transcoder

import loaders.reader as reader_module
from loaders import Loader, Sampling, Split, TrainTransform, World, build_loader, compiled, select
from loaders.plan import Plan
from loaders.reader import ReadAhead, Reader
from loaders.splice import find_spans, splice_jpeg
from loaders.splice_reader import WholeImages
from loaders.stats import Counters
from prep.dataset import Options
from prep.errors import InputError, RankError
from prep.segments import HEADER, RECORD, find_segments, parse_records, records_size

BATCH_SIZE = 24
TRAIN = TrainTransform(size=32)


@pytest.fixture(autouse=True, params=["extension", "python"])
def way_to_read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test with the extension and without it."""
    if request.param == "python":
        monkeypatch.setattr(reader_module, "find_extension", lambda: None)
    elif compiled.find_extension() is None:
        pytest.skip("loaders._read was not built: it needs a C compiler")


def _plans(loader: Loader, num_batches: int = 8) -> Iterator[Plan]:
    return map(loader.plan, range(0, num_batches * BATCH_SIZE, BATCH_SIZE))


def _read(
    split: Split, *, num_threads: int = 2, num_batches: int = 8
) -> tuple[dict[int, tuple[Any, ...]], WholeImages]:
    """Return each row's JPEG and window in the last batch that has it, and the images that were read whole."""
    whole, found = WholeImages(), {}
    loader = build_loader(split, TRAIN, BATCH_SIZE)
    with Reader(split, num_threads, 2, Counters(), whole) as reader:
        for plan, encoded in reader.read(_plans(loader, num_batches)):
            for i, row in enumerate(plan.rows_B.tolist()):
                found[row] = encoded.images[i].tobytes(), plan.windows_B4[i].tolist()
            reader.release(encoded)
    return found, whole


def _content(split: Split, row: int) -> bytes:
    shard, offset, size = (int(split.column(name)[row]) for name in ("shard", "offset", "size"))
    return split.shard_paths[shard].read_bytes()[offset : offset + size]


def _splice(split: Split, plan: Plan) -> tuple[list[bytes], np.ndarray]:
    """Return the spliced JPEGs of a plan and the windows in them, from the tars alone."""
    rows = plan.rows_B
    contents = [_content(split, row) for row in rows.tolist()]
    segments = [find_segments(content) for content in contents]
    records = np.zeros(len(rows), RECORD)
    for i, found in enumerate(segments):
        assert found is not None
        for name in ("tables_start", "tables_size", "frame", "interval", "mcu_width", "mcu_height"):
            records[name][i] = getattr(found, name)
        records["num_lengths"][i] = len(found.lengths)
    heights, widths = (split.column(name)[rows].astype(np.int64) for name in ("height", "width"))
    spans = find_spans(records, heights, widths, plan.windows_B4, plan.damaged_B)
    lengths = [found.lengths for found in segments if found is not None]
    spliced = [splice_jpeg(contents[i], records[i], lengths[i], spans, i) for i in range(len(rows))]
    return spliced, spans.windows_B4


@pytest.mark.parametrize("num_threads", [1, 3, 50])  # 50 are more than there are images in a batch
@pytest.mark.parametrize("is_part", [False, True])
def test_every_image_is_spliced(restart_pair: tuple[Path, Path], num_threads: int, is_part: bool) -> None:
    split = Split(restart_pair[1], "train")
    split = select(split, 0.7, ["class2", "class0"]) if is_part else split
    loader, counters, whole = build_loader(split, TRAIN, BATCH_SIZE), Counters(), WholeImages()
    num_decoded = 0
    with Reader(split, num_threads, 2, counters, whole) as reader:
        for plan, encoded in reader.read(_plans(loader)):
            expected, windows_B4 = _splice(split, loader.plan(plan.position))
            assert [image.tobytes() for image in encoded.images] == expected
            assert plan.windows_B4.tolist() == windows_B4.tolist()
            num_decoded += sum(map(len, expected))
            reader.release(encoded)
    assert not whole.rows
    assert counters.decode_bytes == num_decoded < counters.read_bytes < 0.9 * counters.image_bytes
    assert counters.image_bytes == sum(int(split.column("size")[plan.rows_B].sum()) for plan in _plans(loader))


def test_without_splicing_images_are_complete(restart_pair: tuple[Path, Path]) -> None:
    split, counters = Split(restart_pair[1], "train"), Counters()
    loader = build_loader(split, TRAIN, BATCH_SIZE)
    with Reader(split, 2, 2, counters) as reader:
        for plan, encoded in reader.read(_plans(loader, 4)):
            assert [each.tobytes() for each in encoded.images] == [_content(split, row) for row in plan.rows_B.tolist()]
            assert plan.windows_B4.tolist() == loader.plan(plan.position).windows_B4.tolist()
    assert counters.decode_bytes == counters.read_bytes == counters.image_bytes > 0


def test_images_that_are_never_spliced_are_complete(restart_pair: tuple[Path, Path]) -> None:
    split, whole = Split(restart_pair[1], "train"), WholeImages()
    assert whole.add([3, 50]) == [3, 50] and whole.add([50, 51]) == [51]
    loader, num_whole, num_smaller = build_loader(split, TRAIN, BATCH_SIZE), 0, 0
    with Reader(split, 2, 2, Counters(), whole) as reader:
        for plan, encoded in reader.read(_plans(loader, 4)):
            wanted = loader.plan(plan.position)
            for i, row in enumerate(plan.rows_B.tolist()):
                if row in (3, 50, 51):
                    assert encoded.images[i].tobytes() == _content(split, row)
                    assert plan.windows_B4[i].tolist() == wanted.windows_B4[i].tolist()
                    num_whole += 1
                else:
                    num_smaller += len(encoded.images[i]) < split.column("size")[row]
    assert num_whole == 3 and num_smaller > 60


# Segments that contradict the tar.


def _record(split: Split, row: int) -> tuple[Path, int, np.void]:
    """Return the file with a row's segments, the place of its record, and the record."""
    path, place = split.segments_path(row // 32), HEADER.itemsize + row % 32 * RECORD.itemsize
    return path, place, np.frombuffer(path.read_bytes(), RECORD, 1, place)[0].copy()


def _write(path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


def _change_length(split: Split, row: int, change: int) -> None:
    path, _, record = _record(split, row)
    (length,) = np.frombuffer(path.read_bytes(), "<u2", 1, int(record["first"]))
    _write(path, int(record["first"]), np.array([int(length) + change], "<u2").tobytes())


def _change_field(name: str, value: int) -> Callable[[Split, int], None]:
    def change(split: Split, row: int) -> None:
        path, place, record = _record(split, row)
        record[name] = value
        _write(path, place, record.tobytes())

    return change


def _cut(split: Split, row: int) -> None:
    path, _, record = _record(split, row)
    path.write_bytes(path.read_bytes()[: int(record["first"]) + 2])


def _overwrite_frame(split: Split, row: int) -> None:
    """Damage the tar: the frame header's marker."""
    _, _, record = _record(split, row)
    place = int(split.column("offset")[row]) + int(record["tables_start"]) + int(record["frame"]) + 1
    _write(split.shard_paths[row // 32], place, b"\xfe")


CHANGES: list[Callable[[Split, int], None]] = [
    lambda split, row: _change_length(split, row, 1),
    lambda split, row: _change_length(split, row, -1),
    lambda split, row: _change_length(split, row, 60_000),  # beyond the image
    _change_field("first", 1 << 63),
    _change_field("first", 0),
    _change_field("tables_start", 1 << 31),
    _change_field("tables_size", 3),
    _change_field("frame", 65_535),
    _change_field("frame", 0),
    _change_field("interval", 1000),
    _change_field("mcu_width", 0),
    _change_field("mcu_height", 255),
    _change_field("num_lengths", 1),
    _cut,
    _overwrite_frame,
]


@pytest.mark.parametrize("change", CHANGES)
def test_segments_that_contradict_the_tar_are_named_and_the_image_is_complete(
    restarts_copy: Path, restart_pair: tuple[Path, Path], change: Callable[[Split, int], None], caplog: Any
) -> None:
    split, row = Split(restarts_copy, "train"), 31  # the last image of the first shard
    change(split, row)
    with caplog.at_level(logging.WARNING, "penstock"):
        found, _ = _read(split)
    expected, _ = _read(Split(restart_pair[1], "train"))
    plans = _plans(build_loader(split, TRAIN, BATCH_SIZE))
    windows = [plan.windows_B4[i].tolist() for plan in plans for i in np.flatnonzero(plan.rows_B == row)]
    assert found[row] == (_content(split, row), windows[-1])
    assert {each: found[each] for each in found if each != row} == {
        each: expected[each] for each in expected if each != row
    }
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(split.segments_path(0)) in line and f" {split.keys([row])[0]}:" in line and "verify.py" in line


@needs_transcoder
@pytest.mark.parametrize("harm", ["zeros", "cut", "moved"])
def test_wrong_lengths_of_a_single_column_are_noticed(tmp_path: Path, harm: str, caplog: Any) -> None:
    """With 8 segments per row, the markers of a column have one number: each looks like the one before it."""
    path = tmp_path / "source" / "train" / "class" / "0.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(make_jpeg("4:4:4", 512, 128))
    prepare_folder(tmp_path / "source", "train", tmp_path / "out", Options(restarts=True))
    split = Split(tmp_path / "out", "train")
    _, _, record = _record(split, 0)
    (plan,) = _plans(build_loader(split, TRAIN, BATCH_SIZE), 1)
    plan = replace(plan, windows_B4=np.tile([0, 70, 128, 20], (BATCH_SIZE, 1)))  # in the second column

    # After the file was opened, all lengths after the first row are lost, or a needed segment begins elsewhere.
    with Reader(split, 2, 2, Counters(), WholeImages()) as reader:
        segments = split.segments_path(0)
        place = int(record["first"]) + 8 * 2
        if harm == "zeros":
            _write(segments, place, bytes(2 * int(record["num_lengths"]) - 8 * 2))
        elif harm == "cut":
            os.truncate(segments, place)
        else:
            lengths = np.frombuffer(segments.read_bytes(), "<u2", 2, place) + np.array([3, -3])
            _write(segments, place, lengths.astype("<u2").tobytes())
        with caplog.at_level(logging.WARNING, "penstock"):
            ((found, encoded),) = reader.read([plan])
    assert {each.tobytes() for each in encoded.images} == {_content(split, 0)}
    assert found.windows_B4.tolist() == plan.windows_B4.tolist() and len(caplog.records) == 1


def test_a_shard_is_named_once(restarts_copy: Path, caplog: Any) -> None:
    split = Split(restarts_copy, "train")
    for row in (4, 20, 40):
        _change_length(split, row, 3)
    with caplog.at_level(logging.WARNING, "penstock"):
        _, whole = _read(split)
    lines = [record.getMessage() for record in caplog.records]
    assert whole.rows == {4, 20, 40} and len(lines) == 2
    assert {str(split.segments_path(shard)) in " ".join(lines) for shard in (0, 1)} == {True}


def test_random_flips_are_noticed_or_harmless(restarts_copy: Path, restart_pair: tuple[Path, Path]) -> None:
    """Flips in SHARD.seg: an image is as it should be, or complete."""
    good, random = Split(restart_pair[1], "train"), np.random.default_rng(3)
    expected, _ = _read(good, num_batches=4)
    path = Split(restarts_copy, "train").segments_path(1)
    content = bytearray(path.read_bytes())
    for _ in range(25):
        changed = bytearray(content)
        for place in random.integers(HEADER.itemsize, len(content), 3):
            changed[place] ^= 1 << random.integers(8)
        path.write_bytes(changed)
        found, _ = _read(Split(restarts_copy, "train"), num_batches=4)
        assert all(found[row] == expected[row] or found[row][0] == _content(good, row) for row in expected)


def test_a_shard_that_was_cut_ends_reading_with_its_name(restarts_copy: Path) -> None:
    split = Split(restarts_copy, "train")
    with split.shard_paths[1].open("r+b") as file:
        file.truncate(20_000)
    with pytest.raises(RankError, match=r"train-000001\.tar ends before its image .*verify\.py"):
        _read(split)


@pytest.mark.parametrize("content", [b"", b"PENSTSEG" + bytes(8)])
def test_a_file_that_is_no_list_of_segments_is_refused(restarts_copy: Path, content: bytes) -> None:
    split, before = Split(restarts_copy, "train"), len(list(Path("/proc/self/fd").iterdir()))
    split.segments_path(2).write_bytes(content)
    with pytest.raises(InputError, match=r"train-000002\.seg does not list the segments of 32 images: .*verify"):
        _read(split)
    split.segments_path(2).unlink()
    with pytest.raises(InputError, match=r"train-000002\.seg cannot be read \(No such file or directory\): .*verify"):
        _read(split)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_files_with_segments_count_as_open_files(
    restart_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 260))
    with pytest.raises(InputError, match="3 shards need 262 open files, the limit is 260"):
        Reader(Split(restart_pair[1], "train"), 1, 1, Counters(), WholeImages())


def test_lengths_are_read_ahead(restart_pair: tuple[Path, Path]) -> None:
    split = Split(restart_pair[1], "train")
    with Reader(split, 1, 1, Counters(), WholeImages()) as reader:
        worlds = [World(rank, 2, local_rank=rank, local_size=2) for rank in range(2)]
        ahead = [reader.read_ahead(Sampling(order="blocks"), BATCH_SIZE, world) for world in worlds]
        assert all(isinstance(each, ReadAhead) for each in ahead)
        runs = np.concatenate([each.find_segment_runs(0) for each in ahead if isinstance(each, ReadAhead)])
    for shard, start, stop in runs.tolist():
        size = split.segments_path(shard).stat().st_size
        records = parse_records(split.segments_path(shard).read_bytes(), "", 32)
        assert start <= records_size(32) == records["first"].min() and stop == size
    assert sorted(runs[:, 0].tolist()) == [0, 1, 2]
    assert not len(ReadAhead(split, Sampling(order="blocks"), World()).find_segment_runs(0))


def test_the_extension_refuses_rows_that_are_not_parts_of_an_image() -> None:
    extension = compiled.find_extension()
    if extension is None:
        pytest.skip("loaders._read was not built: it needs a C compiler")
    right = {"num_lengths": 6, "size": 500, "tables_start": 20, "tables_size": 100, "frame": 10, "columns": 2}
    right |= {"top": 0, "bottom": 3, "left": 0, "right": 2, "start": 0}
    large = [("tables_start", 2**63 - 1), ("tables_size", 2**63 - 1), ("frame", 2**63 - 1), ("size", -(2**63))]
    names = ("segments", "tar", "first", "num_lengths", "offset", "size", "tables_start", "tables_size", "frame")
    names += ("columns", "top", "bottom", "left", "right", "height", "width", "start")
    wrong = [("num_lengths", 5), ("bottom", 4), ("top", 3), ("top", -1), ("left", 2), ("left", -1), ("right", 3)]
    wrong += [("columns", 0), ("frame", 92), ("frame", -1), ("tables_size", 481), ("tables_start", -1)]
    wrong += [("start", -1), ("start", 501), ("size", 1001)]
    for name, value in [("", 0), *wrong, *large]:
        fields = right | {name: value}
        row = np.array([[fields.get(each, 0) for each in names]], np.int64)
        with pytest.raises(ValueError, match="not a part of its image") if name else nullcontext():
            extension.splice(row, b"head", np.zeros(1004, np.uint8), np.zeros((1, 3), np.int64))
    with pytest.raises(ValueError, match="outside of the buffer"):
        extension.read(np.array([[0, 0, 0, 11]]), np.zeros(10, np.uint8))
