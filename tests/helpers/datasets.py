"""Prepared datasets for tests."""

import os
from pathlib import Path

from helpers.commands import CHECKOUT
from prep.dataset import Manifest, Options
from prep.pools import local_pool
from prep.prepare import prepare_split
from prep.resolve import open_source
from prep.store import LocalStore

SHARED_DATA = Path(os.environ.get("PENSTOCK_TEST_DATA", CHECKOUT.parent / "shared" / "data"))
DEFAULTS = Options()


def prepare_folder(
    source: Path, split: str, out: Path, options: Options = DEFAULTS, *, num_workers: int = 1
) -> Manifest:
    """Prepare one split of a source folder as the command does."""
    return prepare_split(open_source(str(source)), split, LocalStore(out), options, local_pool(num_workers))


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, hidden files too, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
