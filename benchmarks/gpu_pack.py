"""`python benchmarks/gpu_pack.py OUT --data SHARDS`: pack everything that a GPU machine without network lacks.

The machine has Python, torch for CUDA 13, torchvision and timm. The pack contains DALI, reduced to the code that one
kind of GPU loads, our other packages, and shards, in pieces of limited size. On the machine, copy all pieces into one
folder, then:

    . FOLDER/unpack.sh FOLDER      # sets PYTHONPATH and PENSTOCK_DATA

docs/benchmarks.md, "On a machine without network", shows every step.
"""

import argparse
import re
import shutil
import tempfile
from pathlib import Path

from gpu.pieces import MIB, Limits, collect, compress, write_pieces
from gpu.wheels import PACKAGES, Target, download, unpack

from prep.dataset import MANIFEST, read_manifest
from prep.errors import InputError, positive_count, run
from prep.segments import segments_name

TOOLS = {"readelf": "binutils", "strip": "binutils", "xz": "xz-utils"}  # with the Debian packages that contain them


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu_pack.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder for the pieces: piece-0, piece-1, ...")
    add("--data", type=Path, required=True, metavar="SHARDS", help="folder that prep/shard.py wrote")
    add("--python", default="3.12", type=_python, metavar="X.Y", help="version on the machine (default: 3.12)")
    add("--compute-capability", default="9.0", type=_capability, metavar="X.Y", help="of its GPU (default: 9.0, H100)")
    add("--pieces", type=positive_count, default=2, metavar="N", help="at most N pieces (default: 2)")
    add("--most-mib", type=positive_count, default=56, metavar="MIB", help="largest size of a piece (default: 56)")
    add("--packages", nargs="+", default=list(PACKAGES), metavar="NAME", help=f"default: {' '.join(PACKAGES)}")
    return parser.parse_args()


def _python(text: str) -> str:  # the parsers' errors become "argument --python: must be ..."
    if not re.fullmatch(r"3\.\d+", text):
        raise argparse.ArgumentTypeError(f"must be a version such as 3.12, got {text}")
    return text


def _capability(text: str) -> int:
    if not re.fullmatch(r"\d+\.\d", text):
        raise argparse.ArgumentTypeError(f"must be a compute capability such as 9.0, got {text}")
    return int(text.replace(".", ""))


def check_tools() -> None:
    """Check that the programs that make a pack are installed.

    Raises:
        InputError: one is missing.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        raise InputError(f"{', '.join(missing)} is missing on this machine: install {packages}")


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


def main() -> None:
    """Download, prune, compress, write the pieces, and print their sizes."""
    # Refuse early what cannot be packed: downloading takes minutes.
    arguments = parse_arguments()
    limits = Limits(arguments.pieces, arguments.most_mib * MIB)
    target = Target(arguments.python, arguments.compute_capability)
    check_tools()
    limits.check_sizes(shards=check_shards(arguments.data))
    if arguments.out.exists() and not arguments.out.is_dir():
        raise InputError(f"{arguments.out} is a file: OUT must be a folder")

    # Make the two archives, then cut them into pieces.
    with tempfile.TemporaryDirectory(prefix="penstock-pack-") as temporary:
        work = Path(temporary)
        (work / "site").mkdir()
        download(arguments.packages, target, work / "wheels")
        unpack(work / "wheels", work / "site", target)
        compress(work / "site", work / "site.tar.xz")
        collect(arguments.data, work / "data.tar")
        sizes = write_pieces(arguments.out, work / "site.tar.xz", work / "data.tar", limits, target)
        site_mib, data_mib = ((work / name).stat().st_size / MIB for name in ("site.tar.xz", "data.tar"))
    pieces = " + ".join(f"{size / MIB:.1f}" for size in sizes)
    print(f"{arguments.out}: packages {site_mib:.1f} MiB, shards {data_mib:.1f} MiB, in pieces of {pieces} MiB")


if __name__ == "__main__":
    run(main)
