"""A pack: packages and shards in pieces of limited size, and the script that joins them.

    OUT/piece-0/part-0, OUT/piece-1/part-1, ..., and in the last one unpack.sh

The concatenated parts are a .tar.xz of the packages, then a .tar of the shards (JPEGs do not compress). Each piece is
a separate folder because the pieces are copied one by one.
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
    """The number of pieces that a pack may have, and the bytes that each may hold."""

    num_pieces: int
    piece_bytes: int

    def check_sizes(self, **bytes_by_part: int) -> None:
        """Check that the named parts fit into the pieces.

        Raises:
            InputError: they do not.
        """
        room = self.num_pieces * self.piece_bytes - len(UNPACK.read_bytes()) - MIB // 64  # unpack.sh with its values
        if sum(bytes_by_part.values()) > room:
            parts = " and ".join(f"{size / MIB:.1f} MiB of {name}" for name, size in bytes_by_part.items())
            raise InputError(
                f"{parts} do not fit into {self.num_pieces} pieces of {self.piece_bytes / MIB:g} MiB: "
                "use fewer or smaller images (prep/shard.py --limit), or more --pieces"
            )


def compress(site: Path, archive: Path) -> None:
    """Write the folder of packages as a .tar.xz, under the name `site`.

    Raises:
        InputError: xz fails.
    """
    with archive.open("wb") as file:
        # -T0 compresses separate blocks, which the GPU machine can then unpack with several threads.
        xz = subprocess.Popen(["xz", "-T0", "-6", "-c"], stdin=subprocess.PIPE, stdout=file, stderr=subprocess.PIPE)
        assert xz.stdin and xz.stderr
        with xz.stdin, tarfile.open(fileobj=xz.stdin, mode="w|") as tar:
            tar.add(site, "site", filter=_without_owner)
        if xz.wait():
            raise InputError(f"xz cannot compress the packages: {xz.stderr.read().decode().strip()}")


def collect(data: Path, archive: Path) -> None:
    """Write the folder of shards as a .tar."""
    with tarfile.open(archive, "w", dereference=True) as tar:
        tar.add(data.resolve(), ".", filter=_without_owner)


def _without_owner(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def write_pieces(out: Path, site: Path, data: Path, limits: Limits, target: Target) -> list[int]:
    """Write the pieces of the archives `site` and `data` to `out`; return their sizes in bytes.

    They replace the pieces of an earlier pack only when all are written.

    Raises:
        InputError: they do not fit.
    """
    # Cut the concatenated archives into parts of equal size.
    limits.check_sizes(packages=site.stat().st_size, shards=data.stat().st_size)
    whole = site.read_bytes() + data.read_bytes()
    part_bytes = -(-len(whole) // limits.num_pieces)
    parts = [whole[start : start + part_bytes] for start in range(0, len(whole), part_bytes)]

    # Write the new pieces next to the earlier ones, then replace these.
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
