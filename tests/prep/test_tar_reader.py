"""Reading tars: samples, places and digests as the other readers find them; any damage is an error."""

import bz2
import contextlib
import gc
import gzip
import io
import lzma
import re
import tarfile
from pathlib import Path

import pytest
from helpers.tars import composite_sha256, tar_bytes, write_shards, write_tar
from hypothesis import given
from hypothesis import strategies as st
from webdataset.compat import WebDataset

from prep.errors import InputError
from prep.tar import TarSample, TarStream, dali_index, read_samples

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
SMALL = tar_bytes((f"{key}.{ext}", key.encode() * size) for key in "abc" for ext, size in (("jpg", 700), ("cls", 1)))
MIXED = [  # folders, several extensions, hidden files, a name without a dot, UTF-8, what GNU tar escapes
    ("n01/", b""),
    ("n01/a.jpg", b"1" * 600),
    ("n01/a.cls", b"1"),
    ("n01/._a.jpg", b"hidden"),
    ("n01/a.json", b"{}"),
    ("n02/a.jpg", b"2" * 512),
    ("./n02/b.seg.png", b"3"),
    ("./n02/b.txt", b""),
    ("README", b"4"),
    ("v1.2/c.tar.jpg", b"5"),
    ("ü.jpg", b"6"),
    ("tab\tnew\nline.jpg", b"7"),
    ("back\\slash.jpg", b"8"),
    (".hidden.jpg", b"9"),
    ("z.jpg", b"10"),
]
LONG = "n03/" + "x" * 150


class Trickle(io.RawIOBase):
    """A stream that cannot seek and gives a few bytes at a time, as a socket does."""

    def __init__(self, content: bytes) -> None:
        self.rest = content

    def read(self, size: int = -1) -> bytes:
        given, self.rest = self.rest[: min(size, 100)], self.rest[min(size, 100) :]
        return given


def read(content: bytes) -> list[TarSample]:
    return list(read_samples(TarStream(io.BytesIO(content), "some.tar"), lambda _: True))


def refusal(content: bytes) -> str:
    with pytest.raises(InputError) as error:
        read(content)
    message = str(error.value)
    assert message.startswith("some.tar ") and "\n" not in message
    return message


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves that to the collector
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning")
def test_samples_are_those_that_webdataset_writes_and_reads(tmp_path: Path) -> None:
    written = [{"__key__": f"k/{i}", "jpg": b"J" * i * 300, "cls": i, "meta.json": {"i": i}} for i in range(40)]
    (path,) = write_shards(tmp_path, written, 100)
    expected = [
        {name: data for name, data in sample.items() if name not in ("__url__", "__local_path__")}
        for sample in WebDataset([str(path)], shardshuffle=False)
    ]
    gc.collect()
    found = [{"__key__": s.key, **{c.extension: c.data for c in s.components}} for s in read(path.read_bytes())]
    assert found == expected
    assert len(found) == 40


@pytest.mark.parametrize("tar_format", FORMATS)
def test_components_lie_where_they_are_said_to(tar_format: int) -> None:
    members = [*MIXED, *([] if tar_format == tarfile.USTAR_FORMAT else [(f"{LONG}.jpg", b"L" * 99)])]
    content = tar_bytes(members, tar_format)
    samples = read(content)
    components = [component for sample in samples for component in sample.components]
    assert [component.data for component in components] == [
        data for name, data in members if not name.endswith("/") and "/." not in f"/{name.removeprefix('./')}"
    ]
    for component in components:
        assert content[component.offset : component.offset + component.size] == component.data
    keys = ["n01/a", "n02/a", "./n02/b", "READM", "v1.2/c", "ü", r"tab\tnew\nline", r"back\\slash", "z", LONG]
    assert [sample.key for sample in samples] == keys[: len(samples)]


@pytest.mark.parametrize("tar_format", FORMATS)
def test_the_index_is_byte_for_byte_what_dali_itself_would_write(tmp_path: Path, tar_format: int) -> None:
    from wds2idx import IndexCreator  # noqa: PLC0415 - comes with DALI

    path = write_tar(tmp_path / "some.tar", MIXED, tar_format)
    with IndexCreator(str(path), str(tmp_path / "some.idx"), verbose=False) as creator:
        creator.create_index()
    ours = dali_index([sample.index_entries() for sample in read(path.read_bytes())])
    assert ours == (tmp_path / "some.idx").read_bytes()
    assert b"tar.jpg" in ours and b"hidden" not in ours


def test_a_blank_in_a_name_does_not_end_a_field_of_the_index() -> None:
    (sample,) = read(tar_bytes([("golden retriever/1.jpg", b"dog")]))
    assert sample.key == "golden retriever/1"
    assert sample.index_entries() == [("jpg", 512, 3, r"golden\040retriever/1.jpg")]


def test_links_and_folders_are_skipped() -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, kind in (("d.jpg", tarfile.DIRTYPE), ("s.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("a.jpg"))
    assert [sample.key for sample in read(archive.getvalue())] == ["a"]


def test_a_stream_is_read_once_and_hashed_whole_with_only_what_is_wanted_kept() -> None:
    content = tar_bytes(MIXED, tarfile.PAX_FORMAT)
    file = TarStream(Trickle(content), "some.tar")  # type: ignore[arg-type]
    samples = list(read_samples(file, lambda extension: extension == "cls"))
    assert (file.composite_sha256, file.size_bytes) == (composite_sha256(content), len(content))
    kept = [component for sample in samples for component in sample.components if component.data is not None]
    assert [(component.name, component.data) for component in kept] == [("n01/a.cls", b"1")]


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_cut_tar_is_never_silently_short(is_wanted: bool) -> None:
    whole = read(SMALL)
    end_of_members = whole[-1].components[-1].offset + 512
    for length in sorted({*range(0, len(SMALL), 37), *range(0, len(SMALL), 512), end_of_members + 511}):
        file = TarStream(io.BytesIO(SMALL[:length]), "some.tar")
        if length >= end_of_members + 512:  # in the zeros after the last member: nothing is lost
            samples = list(read_samples(file, lambda _: is_wanted))
            assert [sample.key for sample in samples] == [sample.key for sample in whole]
        else:
            with pytest.raises(InputError, match=r"some\.tar is (cut off|empty|not a tar, or is cut off)"):
                list(read_samples(file, lambda _: is_wanted))


@given(st.integers(0, len(SMALL) - 1), st.integers(1, 255))
def test_a_changed_byte_is_an_error_or_changes_no_sample_but_in_its_data(position: int, change: int) -> None:
    damaged = bytearray(SMALL)
    damaged[position] ^= change
    places = [[component.name for component in sample.components] for sample in read(SMALL)]
    with contextlib.suppress(InputError):
        assert [[component.name for component in sample.components] for sample in read(bytes(damaged))] == places


def test_a_damaged_header_is_an_error_wherever_it_is() -> None:
    for sample in read(SMALL):
        for component in sample.components:
            damaged = bytearray(SMALL)
            damaged[component.offset - 512] ^= 1
            expected = "not a tar" if component.offset == 512 else "damaged before byte"
            assert expected in refusal(bytes(damaged))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (gzip.compress(SMALL), r"compressed \(gzip\): unpack it"),
        (bz2.compress(SMALL), r"compressed \(bzip2\)"),
        (lzma.compress(SMALL), r"compressed \(xz\)"),
        (b"not a tar at all " * 400, "is not a tar"),
        (bytes(10240), "holds no samples"),
        (tar_bytes([("folder/", b"")]), "holds no samples"),
        (SMALL + SMALL, "two tars joined"),
        (SMALL + b"x", "continues after its end"),
    ],
)
def test_files_other_than_a_complete_plain_tar_are_refused_by_name(content: bytes, reason: str) -> None:
    assert re.search(reason, refusal(content))


def test_a_negative_or_endless_size_ends_in_an_error() -> None:
    for size in (-1024, 1 << 60):
        info = tarfile.TarInfo("a.jpg")
        info.size = size
        assert refusal(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
