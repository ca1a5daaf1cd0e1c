"""The folder benchmarks/ as its commands see it: first in the path."""

from collections.abc import Iterator

import pytest
from helpers.commands import CHECKOUT


@pytest.fixture(scope="session", autouse=True)
def benchmarks_in_path() -> Iterator[None]:
    """Make the modules of benchmarks/ importable by their short names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHECKOUT / "benchmarks"))
        yield
