# pyright: reportMissingImports=false
"""FFCV's Loader over its own file, compiled by numba; the file holds JPEGs that FFCV encoded."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from peers.job import DecodedShards, Job

FILE = "images.beton"
IMAGES_PER_EPOCH = 10**6  # the images are repeated: FFCV pauses between epochs, which would be short here
MAX_SIDE, QUALITY = 500, 90  # of FFCV's images, the same as of the shards that it is compared with


def read(job: Job) -> Iterator[torch.Tensor | None]:
    """Yield uint8 NCHW batches, channels_last."""
    yield None
    shape = (job.size, job.size)
    augment = [RandomResizedCropRGBImageDecoder(shape), RandomHorizontalFlip()]
    decode = [CenterCropRGBImageDecoder(shape, job.size / job.resize)] if job.evaluates else augment
    loader = Loader(
        f"{job.data}/{FILE}",
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


def write_format(shards: list[str], out: Path, workers: int) -> None:
    """Write FFCV's file; every image is decoded and encoded again."""
    image = RGBImageField(write_mode="jpg", max_resolution=MAX_SIDE, jpeg_quality=QUALITY)
    writer = DatasetWriter(str(out / FILE), {"image": image, "label": IntField()}, num_workers=workers)
    writer.from_indexed_dataset(DecodedShards(shards))
