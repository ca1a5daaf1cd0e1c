"""Penstock's preparation: what `python prep/shard.py` does after opening its source."""

from collections.abc import Iterator
from typing import Any, cast

from noted import TimestampedSource

from prep.dataset import Options
from prep.pools import local_pool
from prep.prepare import prepare_split
from prep.resolve import open_source
from prep.source import Source
from prep.store import open_store

NUM_WORKERS = 2
SPLIT = "train"


def penstock(job: dict[str, Any]) -> Iterator[None]:
    """Write one split into a local folder; the worker processes start within the timed call."""
    source, options = cast(Source, TimestampedSource(open_source(job["source"]))), Options(**job["options"])
    yield
    prepare_split(source, SPLIT, open_store(job["out"]), options, local_pool(NUM_WORKERS))
    yield
