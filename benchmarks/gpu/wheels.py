"""Download the packages that another machine lacks; unpack them into one folder, without files that it does not read.

The machine has Python with torch, torchvision, timm and their dependencies, as in a bare GPU image. It lacks DALI and
some of our packages. Left out are DALI's headers, extensions for other Pythons, nvImageCodec's decoders except that of
JPEG, and the dependencies `nvtx`, `libcst` and `nvcomp`, which DALI imports only for `experimental.dynamic`, TIFF and
JPEG 2000.
"""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu.prune import prune_library

from prep.errors import InputError

CONSTRAINTS = Path(__file__).resolve().parent.parent.parent / "constraints.txt"
PACKAGES = (
    # DALI for CUDA 13. From 13.2 on, nvJPEG decodes the edges of regions with interpolated chroma correctly.
    *("nvidia-dali-cuda130==2.4.0", "nvidia-nvimgcodec-cu13==0.9.0.20", "nvidia-nvjpeg==13.3.2.43"),
    *("astunparse", "gast", "makefun", "optree"),  # which DALI imports
    *("tyro", "docstring-parser", "typeguard"),  # train/main.py's command line
    *("simplejpeg", "datasets", "dill", "multiprocess"),  # preparation
    *("captum", "webdataset", "braceexpand"),  # serve
)
MACHINE = "x86_64"  # output of `uname -m`
GLIBC_MINORS = range(5, 40)  # manylinux_2_N: pip accepts only the exact tags that it is given
UNUSED = (
    *("nvidia/dali/include", "nvidia/dali/test", "nvidia/nvimgcodec/include", "nvidia/nvimgcodec/tools"),
    *(f"nvidia/nvimgcodec/extensions/lib{name}_ext.so.*" for name in ("nvjpeg2k", "nvtiff", "opencv", "tiff")),
    *("nvidia/nvimgcodec/nvimgcodec_impl.*", "captum/insights", "*.data/scripts"),
)
TO_STRIP = "nvidia/dali"  # a sixth of it is symbols and debugging sections


@dataclass(frozen=True)
class Target:
    """The machine that the packages are for."""

    python: str  # "3.12"
    capability: int  # 90: compute capability 9.0

    @property
    def tag(self) -> str:
        """The tag in the names of extensions for its Python, as in `.cpython-312-x86_64-linux-gnu.so`."""
        return f"cpython-{self.python.replace('.', '')}-"


def download(packages: Sequence[str], target: Target, folder: Path) -> None:
    """Download the packages' wheels, without their dependencies, in the versions of constraints.txt.

    Raises:
        InputError: pip fails; the message has its error.
    """
    platforms = [f"manylinux_2_{minor}_{MACHINE}" for minor in GLIBC_MINORS]
    platforms += [f"manylinux{year}_{MACHINE}" for year in (2014, 2010, 1)] + ["any"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--constraint", str(CONSTRAINTS), "--python-version", target.python, "--implementation", "cp"]
    command += [word for platform in platforms for word in ("--platform", platform)]
    done = subprocess.run([*command, "--dest", str(folder), *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise InputError(f"pip cannot download the packages: {' / '.join(errors)[-500:]}")


def unpack(wheels: Path, site: Path, target: Target) -> None:
    """Unpack all wheels of a folder into `site`, without files and device code that the target does not read.

    Raises:
        InputError: a library's device code is not understood.
    """
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    remove_unused(site, target)
    for path in sorted((site / "nvidia").rglob("*.so*")):
        if path.is_file() and not path.is_symlink():
            prune_library(path, target.capability)
            if path.is_relative_to(site / TO_STRIP):
                strip(path)


def remove_unused(site: Path, target: Target) -> None:
    """Delete the extensions for other Pythons, and UNUSED."""
    for path in [*site.rglob("*.cpython-*.so")]:
        if target.tag not in path.name:
            path.unlink()
    for pattern in UNUSED:
        for path in [*site.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def strip(path: Path) -> None:
    """Remove the symbols that the dynamic loader does not need; a library that `strip` rejects stays unchanged."""
    subprocess.run(["strip", "--strip-unneeded", str(path)], capture_output=True, check=False)
