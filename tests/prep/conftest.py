"""The small disks that tests of preparation share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.disks import Disk, make_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    """Make a small disk of a size such as 4m; skips where this user cannot mount."""
    disks = []

    def make(size: str) -> Disk:
        folder = tmp_path / f"disk{len(disks)}"
        folder.mkdir()
        disks.append(make_disk(size, folder))
        return disks[-1]

    yield make
    for made in disks:
        made.holder.kill()
        made.holder.communicate()
