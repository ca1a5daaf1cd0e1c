"""What the tests share: prepared digits, real photographs where they are at hand, and the commands."""

import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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

# What a bare GPU machine lacks, or has only from a pack. A test that needs one of them is skipped where it is missing;
# an installed checkout has them all (tests/test_environment.py). "nvidia.dali" since torch brings a package `nvidia`.
OPTIONAL = frozenset(
    [
        *("braceexpand", "captum", "datasets", "fastapi", "gradio", "httpx", "nvidia.dali", "playwright"),
        *("pytorch_grad_cam", "ray", "s3fs", "simplejpeg", "starlette", "swift", "tyro", "uvicorn", "webdataset"),
    ]
)


def find_missing(error: BaseException | None) -> str | None:
    """Return the optional package whose absence raised the error, directly or at the start of a chain of errors."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name in OPTIONAL:
            return error.name
        error = error.__cause__ or error.__context__
    return None


def _skip_if_missing(error: BaseException, what: str = "") -> None:
    if package := find_missing(error):
        pytest.skip(f"{what}needs {package}, which is not installed", allow_module_level=True)


class TestModule(pytest.Module):
    """A test file that is skipped if it, or what it tests, imports a package that is missing."""

    __test__ = False

    def collect(self) -> Any:
        try:
            return super().collect()
        except self.CollectError as error:
            _skip_if_missing(error, f"{self.path.name} ")
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return TestModule.from_parent(parent, path=module_path)


@pytest.hookimpl(trylast=True)  # after pytest's own order by fixtures
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the decoding of regions on a GPU last: it is reported to crash the process on some GPUs."""
    items.sort(key=_decodes_regions_on_a_gpu)


def _decodes_regions_on_a_gpu(item: pytest.Item) -> bool:
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return item.get_closest_marker("gpu") is not None and parameters.get("decode") == "roi"


@contextmanager
def _skipping() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _skip_if_missing(error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Skip a test whose fixture needs a missing package, or whose `needs` mark names one."""
    for mark in item.iter_markers("needs"):
        for package in mark.args:
            assert package in OPTIONAL, f"{package} is not in OPTIONAL"
            if not is_installed(package):
                pytest.skip(f"needs {package}, which is not installed")
    with _skipping():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Skip a test that imports a missing package while it runs."""
    with _skipping():
        return (yield)


def is_installed(package: str) -> bool:
    """Whether a module of this name can be found."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # not even its parent
        return False


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
