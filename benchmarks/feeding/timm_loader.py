"""timm's create_loader with its prefetcher, over a folder of images; it decodes with Pillow and normalises."""

from collections.abc import Iterator

import torch
from job import Job
from timm.data import ImageDataset, create_loader


def prefetching(job: Job) -> Iterator[torch.Tensor]:
    """Yield float32 NCHW batches, normalised by the prefetcher in the main process: timm has no other way."""
    loader = create_loader(
        ImageDataset(job.data),
        input_size=(3, job.size, job.size),
        batch_size=job.batch_size,
        is_training=not job.evaluates,
        color_jitter=None,  # pyright: ignore[reportArgumentType]  (None turns it off)
        interpolation="bilinear",
        crop_pct=job.size / job.resize,
        num_workers=job.workers,
        device=torch.device("cpu"),
        use_multi_epochs_loader=True,  # keeps its workers, without a pause between epochs
    )
    while True:
        for images, _ in loader:
            yield images
