"""The object store that tests of preparation share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.swift_server import SwiftServer


@pytest.fixture(scope="session")
def server() -> "Iterator[SwiftServer]":
    """A real S3 server."""
    from helpers.swift_server import swift_server  # noqa: PLC0415

    pytest.importorskip("swift", reason="needs an S3 server: pip install swift")
    with tempfile.TemporaryDirectory(prefix="swift-") as folder, swift_server(Path(folder)) as server:
        yield server
