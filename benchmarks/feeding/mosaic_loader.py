"""MosaicML's StreamingDataset with torch's DataLoader over its own shards, MDS."""

from collections.abc import Iterator
from typing import Any

import torch
from job import Job
from streaming import StreamingDataset  # pyright: ignore[reportMissingImports]
from torch.utils.data import DataLoader
from transforms import build_decoder


class Images(StreamingDataset):
    """The documented way to transform: a subclass that decodes the stored bytes."""

    def __init__(self, job: Job) -> None:
        super().__init__(local=job.data, shuffle=True, batch_size=job.batch_size)
        self.decode = build_decoder(job)

    def __getitem__(self, at: Any) -> tuple[torch.Tensor, int]:
        sample = super().__getitem__(at)
        return self.decode(sample["jpeg"]), sample["label"]


def streaming(job: Job) -> Iterator[torch.Tensor]:
    """Yield uint8 NCHW batches."""
    loader = DataLoader(
        Images(job), batch_size=job.batch_size, num_workers=job.workers, persistent_workers=True, drop_last=True
    )
    while True:
        for images, _ in loader:
            yield images
