"""A server that answers as AWS, shared by the tests of cloud/."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.moto_server import MotoServer, moto_server


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoServer]:
    """moto's server, new for each file."""
    with tempfile.TemporaryDirectory(prefix="moto-") as folder, moto_server(Path(folder)) as server:
        yield server
