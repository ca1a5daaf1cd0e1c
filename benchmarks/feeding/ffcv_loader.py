"""FFCV's Loader over its own file, compiled by numba; the file holds JPEGs that FFCV encoded."""

from collections.abc import Iterator

import numpy as np
import torch
from ffcv.fields.decoders import (  # pyright: ignore[reportMissingImports]
    CenterCropRGBImageDecoder,
    IntDecoder,
    RandomResizedCropRGBImageDecoder,
)
from ffcv.loader import Loader, OrderOption  # pyright: ignore[reportMissingImports]
from ffcv.transforms import (  # pyright: ignore[reportMissingImports]
    RandomHorizontalFlip,
    Squeeze,
    ToTensor,
    ToTorchImage,
)
from job import Job

IMAGES_PER_EPOCH = 10**6  # the images are repeated: FFCV pauses between epochs, which would be short here


def beton(job: Job) -> Iterator[torch.Tensor]:
    """Yield uint8 NCHW batches, channels_last."""
    shape = (job.size, job.size)
    augment = [RandomResizedCropRGBImageDecoder(shape), RandomHorizontalFlip()]
    decode = [CenterCropRGBImageDecoder(shape, job.size / job.resize)] if job.evaluates else augment
    loader = Loader(
        f"{job.data}/images.beton",
        batch_size=job.batch_size,
        num_workers=job.workers,
        order=OrderOption.RANDOM,
        os_cache=True,  # the data fits in memory
        indices=np.tile(np.arange(job.num_images), max(1, IMAGES_PER_EPOCH // job.num_images)),
        pipelines={"image": [*decode, ToTensor(), ToTorchImage()], "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )
    while True:
        for images, _ in loader:
            yield images
