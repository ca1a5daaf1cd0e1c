"""What the tests share: prepared digits, real photographs where they are at hand, and the commands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prep.dataset import Manifest, Options
from prep.digits import write_digits
from prep.pools import local_pool
from prep.prepare import prepare_split
from prep.resolve import open_source
from prep.store import LocalStore

CHECKOUT = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(os.environ.get("PENSTOCK_TEST_DATA", CHECKOUT.parent / "shared" / "data"))
# Tests ask no real machine about itself; and their networks are so small that torch's threads hold each other up.
os.environ.setdefault("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def run_command(*arguments: object, cwd: Path = CHECKOUT, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS…` as a user would; the caller checks the exit status."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, timeout=timeout, capture_output=True, text=True, check=False)


DEFAULTS = Options()


def prepare_folder(
    source: Path, split: str, out: Path, options: Options = DEFAULTS, *, num_workers: int = 1
) -> Manifest:
    """Prepare one split of a source folder as the command does."""
    return prepare_split(open_source(str(source)), split, LocalStore(out), options, local_pool(num_workers))


@pytest.fixture(scope="session")
def digits_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as a Hugging Face dataset folder."""
    folder = tmp_path_factory.mktemp("digits-source")
    write_digits(folder)
    return folder


@pytest.fixture(scope="session")
def digits(digits_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as shards: train (1,437 images in 5 shards) and validation (360 in 2)."""
    out = tmp_path_factory.mktemp("digits")
    for split in ("train", "validation"):
        prepare_folder(digits_source, split, out, Options(images_per_shard=300), num_workers=2)
    return out


@pytest.fixture
def digits_copy(digits: Path, tmp_path: Path) -> Path:
    """A copy of the digits' validation split (300 and 60 images in two shards), to damage."""
    shutil.copytree(digits / "validation", tmp_path / "validation")
    return tmp_path


@pytest.fixture(scope="session")
def imagenet_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 real ImageNet JPEGs as shards; skips where they are not at hand."""
    folder = SHARED_DATA / "imagenet-samples"
    if not folder.is_dir():
        pytest.skip(f"needs real ImageNet images in {folder} (set PENSTOCK_TEST_DATA)")
    out = tmp_path_factory.mktemp("imagenet-samples")
    for split in ("train", "validation"):
        prepare_folder(folder, split, out, Options(images_per_shard=100), num_workers=2)
    return out
