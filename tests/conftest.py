"""Fixtures for all tests, skipped tests for missing packages, the `slow` marker, and the order of files."""

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers.datasets import SHARED_DATA, prepare_folder
from helpers.packages import OPTIONAL, find_missing, is_installed
from helpers.sharing import build_once, find_shared_folder
from helpers.slow import LONGEST, SAME_WORKER, SLOW_FILES, is_slow

from prep.dataset import Options
from prep.digits import write_digits

FAST = "not slow"  # the tests that `make check` runs

if TYPE_CHECKING:
    from helpers.ranks import Ranks
    from helpers.swift_server import SwiftServer

# No test may ask the metadata service of a real machine. The networks are so small that one thread is fastest.
os.environ.setdefault("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
os.environ.setdefault("OMP_NUM_THREADS", "1")


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


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import the slow files when their tests are left out: their imports take as long as the fast tests."""
    return True if config.option.markexpr == FAST and collection_path.stem in SLOW_FILES else None


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what `-m` does not name
def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a slow test; and let one worker run a whole file, because its tests share fixtures."""
    if is_slow(item):
        item.add_marker(pytest.mark.slow)
    if item.config.pluginmanager.has_plugin("xdist"):
        item.add_marker(pytest.mark.xdist_group(SAME_WORKER.get(item.path.stem, item.path.stem)))


@pytest.hookimpl(trylast=True)  # after pytest's own order by fixtures
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that no worker waits for the other at the end.

    Run the decoding of regions on a GPU last: it is reported to crash the process on some GPUs.
    """
    longest = {stem: place for place, stem in enumerate(LONGEST)}
    items.sort(key=lambda item: (_decodes_regions_on_a_gpu(item), longest.get(item.path.stem, len(longest))))


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
    """Skip a test if its fixture needs a missing package, or if its `needs` mark names one."""
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


@pytest.fixture(scope="session")
def ranks() -> "Iterator[Ranks]":
    """One warm process per worker, which forks the ranks of every job: see `helpers.ranks`."""
    from helpers.ranks import Ranks  # noqa: PLC0415

    with Ranks("helpers.splice_jobs", "helpers.tune_jobs") as warm:
        yield warm


@pytest.fixture(scope="session")
def server() -> "Iterator[SwiftServer]":
    """A real S3 server."""
    from helpers.swift_server import swift_server  # noqa: PLC0415

    pytest.importorskip("swift", reason="needs an S3 server: pip install swift")
    with tempfile.TemporaryDirectory(prefix="swift-") as folder, swift_server(Path(folder)) as server:
        yield server


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A folder that all workers share: see `build_once`."""
    return find_shared_folder(tmp_path_factory, pytestconfig)


@pytest.fixture(scope="session")
def digits_source(shared_folder: Path) -> Path:
    """The digits as a Hugging Face dataset folder."""
    return build_once(shared_folder, "digits-source", write_digits)


@pytest.fixture(scope="session")
def digits(digits_source: Path, shared_folder: Path) -> Path:
    """The digits as shards: train (1,437 images in 5 shards) and validation (360 in 2). Tests must only read them."""

    def prepare(out: Path) -> None:
        for split in ("train", "validation"):
            prepare_folder(digits_source, split, out, Options(images_per_shard=300))

    return build_once(shared_folder, "digits", prepare)


@pytest.fixture
def digits_copy(digits: Path, tmp_path: Path) -> Path:
    """A copy of the digits' validation split (300 and 60 images in two shards), to damage."""
    shutil.copytree(digits / "validation", tmp_path / "validation")
    return tmp_path


@pytest.fixture(scope="session")
def imagenet_samples(shared_folder: Path) -> Path:
    """400 real ImageNet JPEGs as shards; skips where they are not at hand."""
    folder = SHARED_DATA / "imagenet-samples"
    if not folder.is_dir():
        pytest.skip(f"needs real ImageNet images in {folder} (set PENSTOCK_TEST_DATA)")

    def prepare(out: Path) -> None:
        for split in ("train", "validation"):
            prepare_folder(folder, split, out, Options(images_per_shard=100), num_workers=2)

    return build_once(shared_folder, "imagenet-samples", prepare)
