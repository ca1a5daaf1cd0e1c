# pyright: reportMissingImports=false
"""LitData: StreamingDataset and StreamingDataLoader over its own chunks, which `optimize` writes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from litdata import StreamingDataLoader, StreamingDataset, optimize
from peers.job import NUM_WRITERS, Job, list_source, read_dictionaries, read_parquet

CHUNK_BYTES = "64MB"  # as in its documentation


class Images(StreamingDataset):
    """The documented way to transform: a subclass that decodes the stored bytes."""

    def __init__(self, job: Job, decode: Any) -> None:
        super().__init__(job.data, shuffle=True, drop_last=True)
        self.decode = decode

    def __getitem__(self, index: Any) -> tuple[Any, int]:
        sample = super().__getitem__(index)
        return self.decode(sample["jpeg"]), sample["label"]


def read(job: Job) -> Iterator[Any]:
    """Yield uint8 NCHW batches."""
    from peers.torchvision_peer import build_decoder  # noqa: PLC0415 - the writer does not need torchvision

    yield None
    loader = StreamingDataLoader(
        Images(job, build_decoder(job)), batch_size=job.batch_size, num_workers=job.workers, persistent_workers=True
    )
    while True:
        for images, _ in loader:
            yield images


def write_format(shards: list[str], out: Path, workers: int) -> None:
    """Write the images of our shards as chunks."""
    optimize(read_dictionaries, shards, str(out), chunk_bytes=CHUNK_BYTES, num_workers=workers, verbose=False)


def write(job: dict[str, Any]) -> Iterator[int | None]:
    """Run `optimize` over the source's files; the worker processes start within the timed call."""
    files, out = list_source(job), job["out"]
    yield None
    optimize(read_parquet, files, out, chunk_bytes=CHUNK_BYTES, num_workers=NUM_WRITERS, verbose=False)
    yield None
    yield sum(chunk["chunk_size"] for chunk in json.loads(Path(out, "index.json").read_text())["chunks"])
