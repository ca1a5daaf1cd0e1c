"""What the tests of the app share for the whole session: one server over the small network of `serve_fixtures`."""

from collections.abc import Iterator

import pytest
from app_visitors import Server, serving
from served import Exported


@pytest.fixture(scope="session")
def server(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`python serve/app.py`, as a user starts it."""
    with serving(exported.artifact, tmp_path_factory.mktemp("app") / "log") as running:
        yield running
