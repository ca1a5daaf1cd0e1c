"""torchvision's transforms v2, which those contenders share that have none of their own: uint8 from end to end."""

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
    """What happens to a decoded image, a Pillow image or a uint8 tensor."""
    if job.evaluates:
        return [v2.Resize(job.resize, antialias=True), v2.CenterCrop(job.size)]
    return [v2.RandomResizedCrop(job.size, antialias=True), v2.RandomHorizontalFlip()]


def build_decoder(job: Job) -> Decoder:
    """From a JPEG's bytes to the transformed image, uint8 CHW; the option `decoder` says by whom."""
    if job.options["decoder"] == PILLOW:
        return partial(_by_pillow, v2.Compose([*build_geometry(job), v2.PILToTensor()]))
    return partial(_by_torchvision, v2.Compose(build_geometry(job)))


def _by_pillow(transform: Any, jpeg: bytes) -> torch.Tensor:
    return transform(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def _by_torchvision(transform: Any, jpeg: bytes) -> torch.Tensor:
    return transform(decode(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)))


def decode(encoded: torch.Tensor) -> torch.Tensor:
    """uint8 RGB, CHW, by libjpeg-turbo."""
    image = decode_jpeg(encoded, mode=ImageReadMode.RGB)
    assert isinstance(image, torch.Tensor)
    return image
