"""A pack: packages and shards in pieces of limited size, and the script that puts them together again.

    OUT/piece-0/part-0, OUT/piece-1/part-1, …, and in the last one unpack.sh

The parts in a row are one .tar.xz of the packages, then one .tar of the shards (JPEGs do not compress). Each piece is a
folder of its own because each travels by itself.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu.wheels import MACHINE, Target

from prep.errors import InputError

MIB = 1 << 20
UNPACK = Path(__file__).resolve().parent / "unpack.sh"


@dataclass(frozen=True)
class Limits:
    """How many pieces a pack may have, and the bytes that each may hold."""

    num_pieces: int
    piece_bytes: int

    def check(self, **bytes_by_part: int) -> None:
        """Raise InputError where the named parts do not fit."""
        room = self.num_pieces * self.piece_bytes - len(UNPACK.read_bytes()) - MIB // 64  # unpack.sh and its values
        if sum(bytes_by_part.values()) > room:
            parts = " and ".join(f"{size / MIB:.1f} MiB of {name}" for name, size in bytes_by_part.items())
            raise InputError(
                f"{parts} do not fit into {self.num_pieces} pieces of {self.piece_bytes / MIB:g} MiB: "
                "take fewer or smaller images (prep/shard.py --limit), or more --pieces"
            )


def compress(site: Path, archive: Path) -> None:
    """Write the folder of packages, named `site`, as a .tar.xz.

    Raises:
        InputError: xz fails.
    """
    with archive.open("wb") as file:
        # Blocks of their own for each thread, so that the machine can unpack with several, too.
        xz = subprocess.Popen(["xz", "-T0", "-6", "-c"], stdin=subprocess.PIPE, stdout=file, stderr=subprocess.PIPE)
        assert xz.stdin and xz.stderr
        with xz.stdin, tarfile.open(fileobj=xz.stdin, mode="w|") as tar:
            tar.add(site, "site", filter=_without_owner)
        if xz.wait():
            raise InputError(f"xz cannot compress the packages: {xz.stderr.read().decode().strip()}")


def collect(data: Path, archive: Path) -> None:
    """Write the shards' folder as a .tar."""
    with tarfile.open(archive, "w", dereference=True) as tar:
        tar.add(data.resolve(), ".", filter=_without_owner)


def _without_owner(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def write_pieces(out: Path, site: Path, data: Path, limits: Limits, target: Target) -> list[int]:
    """Write the pieces of the archives `site` and `data` to `out`, in place of an earlier pack's; return their sizes.

    Raises:
        InputError: they do not fit.
    """
    limits.check(packages=site.stat().st_size, shards=data.stat().st_size)
    whole = site.read_bytes() + data.read_bytes()
    part_bytes = -(-len(whole) // limits.num_pieces)
    parts = [whole[start : start + part_bytes] for start in range(0, len(whole), part_bytes)]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=out) as temporary:
        pieces = [Path(temporary) / f"piece-{number}" for number in range(len(parts))]
        for number, (piece, part) in enumerate(zip(pieces, parts, strict=True)):
            piece.mkdir()
            (piece / f"part-{number}").write_bytes(part)
        (pieces[-1] / "unpack.sh").write_text(_describe(parts, site.stat().st_size, target) + UNPACK.read_text())
        for earlier in out.glob("piece-*"):
            shutil.rmtree(earlier)
        for piece in pieces:
            os.replace(piece, out / piece.name)
    return [len(part) for part in parts]


def _describe(parts: Sequence[bytes], site_bytes: int, target: Target) -> str:
    """Return the values that unpack.sh needs, as assignments."""
    values = {
        "PACK_MACHINE": MACHINE,
        "PACK_PYTHON": target.python,
        "PACK_CAPABILITY": f"{target.capability // 10}.{target.capability % 10}",
        "PACK_SITE_BYTES": str(site_bytes),
        "PACK_SUMS": " ".join(hashlib.sha256(part).hexdigest() for part in parts),
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
