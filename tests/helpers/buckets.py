"""Datasets in the buckets of tests' S3 server."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.datasets import tree
from helpers.swift_server import SwiftServer
from prep.remote import Remote


@contextmanager
def using(server: SwiftServer, **changed: str) -> Iterator[None]:
    """Let this process and its children find the server, within the context."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**server.environment(), **changed}.items():
            patch.setenv(name, value)
        yield


def upload(server: SwiftServer, folder: Path, url: str) -> None:
    """Put every file of a prepared dataset below a URL; the server must be in use."""
    server.make_bucket(url.split("/")[2])
    remote = Remote(url)
    for name, content in tree(folder).items():
        remote.put(name, content)


def list_processes(word: str) -> list[int]:
    """Return the processes of this machine with a word among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
