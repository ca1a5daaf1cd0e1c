"""`python benchmarks/gpu_pack.py OUT --data SHARDS`: pack everything that a GPU machine without network lacks.

The machine has Python, torch for CUDA 13, torchvision, timm and their dependencies, as in a bare GPU image. The pack
contains DALI, reduced to the code that one kind of GPU loads, our other packages, and shards, in pieces of limited
size. On the machine, copy all pieces into one folder, then:

    . FOLDER/unpack.sh FOLDER      # sets PYTHONPATH and PENSTOCK_DATA

docs/benchmarks.md, "On a machine without network", shows every step.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from options import check_least, parse_options
from packing.device_code import prune_library
from tyro.conf import Positional

from prep.dataset import MANIFEST, read_manifest
from prep.errors import InputError, run
from prep.segments import segments_name

MIB = 1 << 20
TOOLS = {"readelf": "binutils", "strip": "binutils", "xz": "xz-utils"}  # with the Debian packages that contain them
BENCHMARKS = Path(__file__).resolve().parent
UNPACK = BENCHMARKS / "packing" / "unpack.sh"
CONSTRAINTS = BENCHMARKS.parent / "constraints.txt"
# Their dependencies are not packed if they are not named: DALI imports `nvtx`, `libcst` and `nvcomp` only for
# `experimental.dynamic`, TIFF and JPEG 2000.
PACKAGES = (
    # DALI for CUDA 13. From 13.2 on, nvJPEG decodes the edges of regions with interpolated chroma correctly.
    *("nvidia-dali-cuda130==2.4.0", "nvidia-nvimgcodec-cu13==0.9.0.20", "nvidia-nvjpeg==13.3.2.43"),
    *("astunparse", "gast", "makefun", "optree"),  # which DALI imports
    *("tyro", "docstring-parser", "typeguard"),  # train/main.py's command line
    "psutil",  # CPU time and memory of the benchmarks' workers
    *("rich", "markdown-it-py", "mdurl", "pygments"),  # tables in the terminal
    *("simplejpeg", "datasets", "dill", "multiprocess"),  # preparation
    *("captum", "webdataset", "braceexpand"),  # serve
)
MACHINE = "x86_64"  # output of `uname -m`
GLIBC_MINORS = range(5, 40)  # manylinux_2_N: pip accepts only the exact tags that it is given
# Of DALI its headers, of nvImageCodec the decoders except that of JPEG.
UNUSED = (
    *("nvidia/dali/include", "nvidia/dali/test", "nvidia/nvimgcodec/include", "nvidia/nvimgcodec/tools"),
    *(f"nvidia/nvimgcodec/extensions/lib{name}_ext.so.*" for name in ("nvjpeg2k", "nvtiff", "opencv", "tiff")),
    *("nvidia/nvimgcodec/nvimgcodec_impl.*", "captum/insights", "*.data/scripts"),
)
TO_STRIP = "nvidia/dali"  # a sixth of it is symbols and debugging sections


@dataclass(frozen=True)
class Options:
    """The command line's options."""

    out: Positional[Path]
    """folder for the pieces: piece-0, piece-1, ..."""
    data: Path
    """folder that prep/shard.py wrote"""
    python: str = "3.12"
    """version on the machine"""
    compute_capability: str = "9.0"
    """of its GPU; 9.0 is that of an H100"""
    pieces: int = 2
    """at most this number of pieces"""
    most_mib: int = 56
    """largest size of a piece in MiB"""
    packages: tuple[str, ...] = PACKAGES
    """what to pack, as requirements of pip"""

    def check(self) -> None:
        """Check the options that need no file; raise InputError for one that cannot be used."""
        check_least(1, pieces=self.pieces, most_mib=self.most_mib)
        if not re.fullmatch(r"3\.\d+", self.python):
            raise InputError(f"--python must be a version such as 3.12, got {self.python}")
        if not re.fullmatch(r"\d+\.\d", self.compute_capability):
            raise InputError(f"--compute-capability must be one such as 9.0, got {self.compute_capability}")
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out} is a file: OUT must be a folder")
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing:
            packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
            raise InputError(f"{', '.join(missing)} is missing on this machine: install {packages}")

    def check_sizes(self, **bytes_by_part: int) -> None:
        """Check that the named parts fit into the pieces; raise InputError if not."""
        room = self.pieces * self.most_mib * MIB - UNPACK.stat().st_size - MIB // 64  # unpack.sh with its values
        if sum(bytes_by_part.values()) > room:
            parts = " and ".join(f"{size / MIB:.1f} MiB of {name}" for name, size in bytes_by_part.items())
            raise InputError(
                f"{parts} do not fit into {self.pieces} pieces of {self.most_mib} MiB: "
                "use fewer or smaller images (prep/shard.py --limit), or more --pieces"
            )


def main() -> None:
    """Download, prune, compress, write the pieces, and print their sizes."""
    # Refuse early what cannot be packed: downloading takes minutes.
    options = parse_options(Options, "benchmarks/gpu_pack.py", __doc__)
    options.check()
    options.check_sizes(shards=check_shards(options.data))

    # Make the two archives, then cut them into pieces.
    with tempfile.TemporaryDirectory(prefix="penstock-pack-") as temporary:
        work = Path(temporary)
        (work / "site").mkdir()
        download_wheels(options, work / "wheels")
        unpack_wheels(work / "wheels", work / "site", options)
        write_tar(work / "site", "site", work / "site.tar")
        # -T0 compresses separate blocks, which the GPU machine can then unpack with several threads.
        xz = subprocess.run(["xz", "-T0", "-6", work / "site.tar"], capture_output=True, text=True, check=False)
        if xz.returncode:
            raise InputError(f"xz cannot compress the packages: {xz.stderr.strip()}")
        write_tar(options.data.resolve(), ".", work / "data.tar")  # not compressed: JPEGs do not become smaller
        packages, shards = (work / "site.tar.xz").read_bytes(), (work / "data.tar").read_bytes()
    options.check_sizes(packages=len(packages), shards=len(shards))
    pieces = " + ".join(f"{size / MIB:.1f}" for size in write_pieces(packages, shards, options))
    sizes = f"packages {len(packages) / MIB:.1f} MiB, shards {len(shards) / MIB:.1f} MiB"
    print(f"{options.out}: {sizes}, in pieces of {pieces} MiB")


def download_wheels(options: Options, folder: Path) -> None:
    """Download the packages' wheels, without their dependencies, in the versions of constraints.txt.

    Raises:
        InputError: pip fails; the message has its error.
    """
    platforms = [f"manylinux_2_{minor}_{MACHINE}" for minor in GLIBC_MINORS]
    platforms += [f"manylinux{year}_{MACHINE}" for year in (2014, 2010, 1)] + ["any"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--constraint", str(CONSTRAINTS), "--python-version", options.python, "--implementation", "cp"]
    command += [word for platform in platforms for word in ("--platform", platform)]
    command += ["--dest", str(folder), *options.packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise InputError(f"pip cannot download the packages: {' / '.join(errors)[-500:]}")


def unpack_wheels(wheels: Path, site: Path, options: Options) -> None:
    """Unpack all wheels of a folder into `site`, without files and device code that the machine does not read.

    Raises:
        InputError: a library's device code is not understood.
    """
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    # Delete UNUSED and the extensions for other Pythons, such as `backend.cpython-311-x86_64-linux-gnu.so`.
    tag = f".cpython-{options.python.replace('.', '')}-"
    unused = [path for path in site.rglob("*.cpython-*.so") if tag not in path.name]
    unused += [path for pattern in UNUSED for path in site.glob(pattern)]
    for path in unused:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)  # some are in both lists
    # Make the libraries small: zeros instead of other GPUs' code, and no symbols that the dynamic loader does not need.
    # A library that `strip` rejects stays unchanged.
    capability = int(options.compute_capability.replace(".", ""))
    for path in sorted((site / "nvidia").rglob("*.so*")):
        if path.is_file() and not path.is_symlink():
            prune_library(path, capability)
            if path.is_relative_to(site / TO_STRIP):
                subprocess.run(["strip", "--strip-unneeded", str(path)], capture_output=True, check=False)


def check_shards(data: Path) -> int:
    """Return the size of a prepared dataset's folder in bytes.

    Raises:
        InputError: it is not a folder of splits that prep/shard.py wrote, or a shard is missing.
    """
    splits = sorted(path.parent for path in data.glob(f"*/{MANIFEST}"))
    if not splits:
        hint = "give the folder above the splits" if (data / MANIFEST).is_file() else "make one with prep/shard.py"
        raise InputError(f"--data {data} must be a folder of prepared splits, each with a {MANIFEST}: {hint}")
    for split in splits:
        manifest = read_manifest(split)
        names = [shard.name for shard in manifest.shards]
        names += [segments_name(name) for name in names] if manifest.has_segments else []
        for name in names:
            if not (split / name).is_file():
                raise InputError(f"{split / name} is missing: prepare the dataset again")
    return sum(path.stat().st_size for path in data.rglob("*") if path.is_file())


def write_tar(folder: Path, name: str, archive: Path) -> None:
    """Write a folder as a .tar, under another name and without owners."""

    def remove_owner(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(archive, "w", dereference=True) as tar:
        tar.add(folder, name, filter=remove_owner)


def write_pieces(packages: bytes, shards: bytes, options: Options) -> list[int]:
    """Write the concatenated archives as parts of equal size; return these sizes in bytes.

        OUT/piece-0/part-0, OUT/piece-1/part-1, ..., and in the last one unpack.sh

    Each piece is a separate folder because the pieces are copied one by one. They replace the pieces of an earlier pack
    only when all are written.
    """
    # The parts, and the values that unpack.sh needs.
    whole = packages + shards
    part_bytes = -(-len(whole) // options.pieces)
    parts = [whole[start : start + part_bytes] for start in range(0, len(whole), part_bytes)]
    values = {
        "PACK_MACHINE": MACHINE,
        "PACK_PYTHON": options.python,
        "PACK_CAPABILITY": options.compute_capability,
        "PACK_SITE_BYTES": str(len(packages)),
        "PACK_SUMS": " ".join(hashlib.sha256(part).hexdigest() for part in parts),
    }
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())

    # Write the new pieces next to the earlier ones, then replace these.
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=options.out) as temporary:
        pieces = [Path(temporary) / f"piece-{number}" for number in range(len(parts))]
        for number, (piece, part) in enumerate(zip(pieces, parts, strict=True)):
            piece.mkdir()
            (piece / f"part-{number}").write_bytes(part)
        (pieces[-1] / "unpack.sh").write_text(assignments + UNPACK.read_text())
        for earlier in options.out.glob("piece-*"):
            shutil.rmtree(earlier)
        for piece in pieces:
            os.replace(piece, options.out / piece.name)
    return [len(part) for part in parts]


if __name__ == "__main__":
    run(main)
