"""Give a JPEG restart markers, without loss, so that parts of it can be read and decoded alone (prep/segments.py).

Transcoding decodes only the Huffman codes and writes the same coefficients again, with optimised Huffman tables. It is
done by libjpeg: in this process by the optional extension `prep._transcode`, else by the program `jpegtran`. With the
same version of libjpeg both write the same bytes.
"""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from prep.errors import InputError, one_line
from prep.jpeg import CODINGS, FRAME, Bytes, decode, walk_markers
from prep.segments import BASELINE, BLOCK, EXTENDED, Segments, find_segments

WANTED, MOST = 8, 16  # segments in a row of MCUs
MOST_MEMORY_KB = 1_000_000  # for jpegtran's coefficients; prep/_transcode.c has the same limit
MISSING = (
    "--restarts needs libjpeg: install a C compiler and jpeglib.h (Debian, Ubuntu: apt-get install gcc libjpeg-dev), "
    "then run `pip install --no-deps -e .` in the checkout; or install the program jpegtran (apt-get install "
    "libjpeg-turbo-progs; conda install libjpeg-turbo)"
)

# Return a JPEG with a restart marker after so many MCUs. Raise ValueError for an error or a warning of libjpeg.
Transcode = Callable[[Bytes, int], bytes]


@dataclass(frozen=True)
class Restarted:
    """A JPEG with restart markers and its segments; or the JPEG as it was, and why it stayed so."""

    data: Bytes
    segments: Segments | None
    obstacle: str = ""


def add_restarts(data: Bytes, decoded: tuple[np.ndarray, str] | None = None) -> Restarted:
    """Transcode a grey or YCbCr JPEG so that it has segments, and check that it decodes to the same pixels.

    Args:
        decoded: pixels and warning of `decode_as_stored(data)`, if they are known.

    Raises:
        InputError: nothing is installed to transcode with, or `jpegtran` cannot be run.
    """
    transcode = find_transcoder()
    try:
        interval = _choose_interval_of(data)
        before, complaint = decoded or decode_as_stored(data)
        if complaint:
            raise ValueError(complaint)
        fresh = transcode(data, interval)
        segments = find_segments(fresh)
        if segments is None:
            raise ValueError("a segment of more than 65,535 bytes, or a marker that is not where it should be")
        after, complaint = decode_as_stored(fresh)
        if complaint or not np.array_equal(before, after):
            raise ValueError(f"transcoded, it decodes to other pixels {complaint}".strip())
    except InputError:  # it says nothing about the image
        raise
    except (ValueError, OSError) as error:
        return Restarted(data, find_segments(data), one_line(str(error)))  # it may have markers of its own
    return Restarted(fresh, segments)


def decode_as_stored(data: Bytes) -> tuple[np.ndarray, str]:
    """Decode a JPEG in full, to grey if it has one component, else to RGB; return pixels and warning."""
    return decode(data, "GRAY" if len(_read_frame(data).factors) == 1 else "RGB")


# The interval.


@dataclass(frozen=True)
class _Frame:
    marker: int
    width: int
    factors: tuple[int, ...]  # horizontal sampling factor of each component
    num_in_scan: int  # components in the first scan


def _read_frame(data: Bytes) -> _Frame:
    """Return the facts of a JPEG's frame header and first scan.

    Raises:
        ValueError: the bytes end before the first scan, or have no frame header before it.
    """
    markers = list(walk_markers(data))
    marker, start = next((found for found in markers if found[0] in CODINGS), (0, 0))
    if not marker:
        raise ValueError("not Huffman-coded")
    _, _, width, num_components = FRAME.unpack_from(data, start + 4)
    factors = tuple(data[start + 11 + 3 * i] >> 4 for i in range(num_components))
    return _Frame(marker, width, factors, data[markers[-1][1] + 4])


def _choose_interval_of(data: Bytes) -> int:
    """Return the restart interval to give a JPEG, in MCUs.

    Raises:
        ValueError: it is of a kind that is not transcoded; the message is the reason.
    """
    frame = _read_frame(data)
    if frame.marker not in (BASELINE, EXTENDED):
        raise ValueError(CODINGS[frame.marker])
    if frame.num_in_scan != len(frame.factors):
        raise ValueError("more than one scan")
    mcu_width = BLOCK if len(frame.factors) == 1 else BLOCK * max(frame.factors)
    return choose_interval(-(-frame.width // mcu_width))


def choose_interval(mcus_per_row: int) -> int:
    """Return the restart interval: the MCUs of a segment, such that a whole number of segments is a row of MCUs.

    The number of segments per row is nearest to 8 by ratio and at most 16.
    """
    counts = [count for count in range(1, MOST + 1) if mcus_per_row % count == 0]
    return mcus_per_row // min(counts, key=lambda count: max(count / WANTED, WANTED / count))


# The transcoder.


@cache
def find_transcoder() -> Transcode:
    """Return the function that transcodes: of the extension if it was built, else one that runs `jpegtran`.

    Raises:
        InputError: there is neither.
    """
    try:
        from prep._transcode import transcode  # noqa: PLC0415 # pyright: ignore[reportMissingImports]
    except ImportError:
        return find_jpegtran()
    return transcode


def find_jpegtran() -> Transcode:
    """Return a function that transcodes by `jpegtran`.

    Raises:
        InputError: it is not installed. The function raises it too, if the program cannot be run.
    """
    path = shutil.which("jpegtran")
    if path is None:
        raise InputError(MISSING)
    version = subprocess.run([path, "-version"], stdin=subprocess.DEVNULL, capture_output=True, check=False).stderr
    # Only mozjpeg has -revert; without it, mozjpeg makes the JPEG progressive.
    command = [path, *(["-revert"] if b"mozjpeg" in version else []), "-copy", "all", "-optimize"]
    command += ["-maxmemory", str(MOST_MEMORY_KB)]

    def transcode(data: Bytes, interval: int) -> bytes:
        try:
            done = subprocess.run([*command, "-restart", f"{interval}B"], input=data, capture_output=True, check=False)
        except OSError as error:
            raise InputError(f"--restarts cannot run {path}: {error.strerror}") from error
        if done.returncode < 0:
            raise InputError(f"--restarts: {path} was ended by signal {-done.returncode} (out of memory?): run again")
        if done.returncode:
            complaints = done.stderr.decode(errors="replace").splitlines()
            raise ValueError(complaints[0] if complaints else f"jpegtran ended with status {done.returncode}")
        return done.stdout

    return transcode
