"""torch's DataLoader over torchvision's ImageFolder, the usual baseline; decoding by Pillow or by torchvision."""

from collections.abc import Iterator

import torch
from job import Job
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.io import read_file
from torchvision.transforms import v2
from transforms import PILLOW, build_geometry, decode

FOREVER = 10**12  # samples: without a pause between epochs, which would be short here


def image_folder(job: Job) -> Iterator[torch.Tensor]:
    """Yield uint8 NCHW batches."""
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
