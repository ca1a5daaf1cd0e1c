"""DirectFile: any sequence of writes gives the bytes of plain writing; errors of the disk name the file."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prep import direct_file
from prep.direct_file import ALIGNMENT, BUFFER_BYTES, DirectFile

FOLDERS = [folder for folder in (tempfile.gettempdir(), "/dev/shm") if Path(folder).is_dir()]
PATTERN = memoryview(os.urandom(1 << 20) * (3 * BUFFER_BYTES // (1 << 20) + 1))
SIZES = st.one_of(
    st.integers(0, 3 * BUFFER_BYTES),
    st.integers(0, 2000),
    st.sampled_from(
        [0, ALIGNMENT, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 2 * BUFFER_BYTES, 3 * BUFFER_BYTES]
    ),
)


@pytest.fixture
def file(tmp_path: Path) -> DirectFile:
    return DirectFile(tmp_path / "shard.tar")


def _check(folder: str, sizes: list[int]) -> None:
    whole = b"".join(PATTERN[size % 7 : size % 7 + size] for size in sizes)
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        file = DirectFile(Path(inside) / "file")
        for size in sizes:
            file.write(PATTERN[size % 7 : size % 7 + size])
        file.close()
        assert file.path.read_bytes() == whole
        assert file.size_bytes == len(whole)
        file.discard()
        assert os.listdir(inside) == []


@pytest.mark.parametrize("folder", FOLDERS)
@given(sizes=st.lists(SIZES, max_size=6))
@settings(max_examples=25, deadline=None)
def test_any_writes_give_the_bytes_of_plain_writing(folder: str, sizes: list[int]) -> None:
    _check(folder, sizes)


@pytest.mark.parametrize("at", ["opening", "writing"])
def test_a_file_system_without_direct_writes_will_do(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_flags, write = direct_file.fcntl.fcntl, os.write

    def refuse(descriptor: int, command: int, argument: int = 0) -> int:
        if command == direct_file.fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return set_flags(descriptor, command, argument)

    def refuse_direct(descriptor: int, content: memoryview) -> int:
        if set_flags(descriptor, direct_file.fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return write(descriptor, content[: len(content) // 3 + 1])  # and short

    if at == "opening":
        monkeypatch.setattr(direct_file.fcntl, "fcntl", refuse)
    else:
        monkeypatch.setattr(direct_file.os, "write", refuse_direct)
    _check(FOLDERS[0], [2 * BUFFER_BYTES, 1001, BUFFER_BYTES])


@pytest.mark.parametrize("size", [10, BUFFER_BYTES, 3 * BUFFER_BYTES])
def test_an_error_of_the_disk_names_the_file(size: int, file: DirectFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, content: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_and_close() -> None:
        file.write(PATTERN[:size])
        file.close()

    monkeypatch.setattr(direct_file.os, "write", fail)
    with pytest.raises(OSError, match="No space left on device") as error:
        write_and_close()
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(file.path))
    file.discard()
    assert not file.path.exists()


def test_what_cannot_be_synced_is_no_success(file: DirectFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    file.write(b"shard")
    monkeypatch.setattr(direct_file.os, "fsync", fail)
    with pytest.raises(OSError, match=r"Input/output error: '.*/shard\.tar'"):
        file.close()
    file.discard()
    assert not file.path.exists()


@pytest.mark.parametrize("num_writes", [0, 1, 3])
def test_discarding_leaves_nothing(num_writes: int, file: DirectFile) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(num_writes):
        file.write(PATTERN[:BUFFER_BYTES])
    file.discard()
    file.discard()
    assert not file.path.exists()
    assert len(os.listdir("/proc/self/fd")) == descriptors - 1
