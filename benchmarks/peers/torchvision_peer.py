"""torchvision: decode_jpeg and transforms v2, for all readers that have no own ones; ImageFolder with DataLoader."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from peers.job import Job
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

PILLOW = "pillow"
FOREVER = 10**12  # samples: without a pause between epochs, which would be short here


def read(job: Job) -> Iterator[torch.Tensor | None]:
    """Yield uint8 NCHW batches of ImageFolder, the usual baseline; the option `decoder` is pillow or torchvision."""
    yield None
    by_pillow = job.options["decoder"] == PILLOW
    steps = [*build_geometry(job), v2.PILToTensor()] if by_pillow else build_geometry(job)
    dataset = ImageFolder(job.data, v2.Compose(steps), loader=default_loader if by_pillow else load)
    sampler = RandomSampler(dataset, replacement=True, num_samples=FOREVER)
    loader = DataLoader(dataset, job.batch_size, sampler=sampler, num_workers=job.workers, persistent_workers=True)
    for images, _ in loader:
        yield images


def load(path: str) -> torch.Tensor:
    """Return a JPEG file decoded by libjpeg-turbo: uint8 RGB, CHW."""
    return decode(read_file(path))


def decode(encoded: torch.Tensor) -> torch.Tensor:
    """Return a JPEG decoded by libjpeg-turbo: uint8 RGB, CHW."""
    image = decode_jpeg(encoded, mode=ImageReadMode.RGB)
    assert isinstance(image, torch.Tensor)
    return image


def build_geometry(job: Job) -> list[Any]:
    """Return the transforms of a decoded image, which is a Pillow image or a uint8 tensor: uint8 from end to end."""
    if job.evaluates:
        return [v2.Resize(job.resize, antialias=True), v2.CenterCrop(job.size)]
    return [v2.RandomResizedCrop(job.size, antialias=True), v2.RandomHorizontalFlip()]


def build_decoder(job: Job) -> Callable[[bytes], torch.Tensor]:
    """Return a function from a JPEG's bytes to the transformed image, uint8 CHW; the option `decoder` chooses it."""
    if job.options["decoder"] == PILLOW:
        return partial(_by_pillow, v2.Compose([*build_geometry(job), v2.PILToTensor()]))
    return partial(_by_torchvision, v2.Compose(build_geometry(job)))


def _by_pillow(transform: Any, jpeg: bytes) -> torch.Tensor:
    return transform(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def _by_torchvision(transform: Any, jpeg: bytes) -> torch.Tensor:
    return transform(decode(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)))
