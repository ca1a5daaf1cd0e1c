"""timm's create_loader with its prefetcher, over a folder or our shards; it decodes with Pillow and normalises."""

from collections.abc import Iterator
from typing import Any

import torch
from peers.job import SPLIT, Job
from timm.data import ImageDataset, create_dataset, create_loader

REPEATS = 1000  # of the shards in an epoch: without a pause between epochs, which would be short here


def read_folder(job: Job) -> Iterator[torch.Tensor | None]:
    """Yield float32 NCHW batches of a folder of images."""
    yield None
    yield from feed(job, ImageDataset(job.data))


def read_shards(job: Job) -> Iterator[torch.Tensor | None]:
    """Yield float32 NCHW batches of prepared shards, read by timm's own reader of WebDataset."""
    yield None
    is_training = not job.evaluates
    dataset = create_dataset(
        "wds/", job.data, SPLIT, is_training=is_training, batch_size=job.batch_size, repeats=REPEATS
    )
    yield from feed(job, dataset, use_multi_epochs_loader=False)  # which does not support such datasets


def feed(job: Job, dataset: Any, use_multi_epochs_loader: bool = True) -> Iterator[torch.Tensor | None]:
    """Yield float32 NCHW batches, normalised by the prefetcher in the main process: timm has no other way."""
    loader = create_loader(
        dataset,
        input_size=(3, job.size, job.size),
        batch_size=job.batch_size,
        is_training=not job.evaluates,
        color_jitter=None,  # pyright: ignore[reportArgumentType]  (None turns it off)
        interpolation="bilinear",
        crop_pct=job.size / job.resize,
        num_workers=job.workers,
        device=torch.device("cpu"),
        use_multi_epochs_loader=use_multi_epochs_loader,  # keeps its workers, without a pause between epochs
    )
    while True:
        for images, _ in loader:
            yield images
