"""LitData's StreamingDataset and StreamingDataLoader over its own chunks."""

from collections.abc import Iterator
from typing import Any

import torch
from job import Job
from litdata import StreamingDataLoader, StreamingDataset  # pyright: ignore[reportMissingImports]
from transforms import build_decoder


class Images(StreamingDataset):
    """The documented way to transform: a subclass that decodes the stored bytes."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.data, shuffle=True, drop_last=True)
        self.decode = build_decoder(job)

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, int]:
        sample = super().__getitem__(index)
        return self.decode(sample["jpeg"]), sample["label"]


def streaming(job: Job) -> Iterator[torch.Tensor]:
    """Yield uint8 NCHW batches."""
    loader = StreamingDataLoader(
        Images(job), batch_size=job.batch_size, num_workers=job.workers, persistent_workers=True
    )
    while True:
        for images, _ in loader:
            yield images
