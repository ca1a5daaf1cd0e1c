"""torchvision's transforms v2, shared by the contenders that have no transforms: uint8 from end to end."""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from job import Job
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

PILLOW = "pillow"
Decoder = Callable[[bytes], torch.Tensor]


def build_geometry(job: Job) -> list[Any]:
    """Return the transforms of a decoded image, which is a Pillow image or a uint8 tensor."""
    if job.evaluates:
        return [v2.Resize(job.resize, antialias=True), v2.CenterCrop(job.size)]
    return [v2.RandomResizedCrop(job.size, antialias=True), v2.RandomHorizontalFlip()]


def build_decoder(job: Job) -> Decoder:
    """Return a function from a JPEG's bytes to the transformed image, uint8 CHW; the option `decoder` chooses it."""
    if job.options["decoder"] == PILLOW:
        return partial(_by_pillow, v2.Compose([*build_geometry(job), v2.PILToTensor()]))
    return partial(_by_torchvision, v2.Compose(build_geometry(job)))


def _by_pillow(transform: Any, jpeg: bytes) -> torch.Tensor:
    return transform(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def _by_torchvision(transform: Any, jpeg: bytes) -> torch.Tensor:
    return transform(decode(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)))


def decode(encoded: torch.Tensor) -> torch.Tensor:
    """Return a JPEG decoded by libjpeg-turbo: uint8 RGB, CHW."""
    image = decode_jpeg(encoded, mode=ImageReadMode.RGB)
    assert isinstance(image, torch.Tensor)
    return image
