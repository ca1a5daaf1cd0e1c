"""webdataset over our shards, as in its documentation: shards drawn endlessly; shuffled and batched in the workers."""

from collections.abc import Iterator

import torch
from job import Job
from transforms import build_decoder
from webdataset.compat import WebDataset, WebLoader

SHUFFLED = 1000  # samples in the shuffle buffer, as in its documentation


def webdataset(job: Job) -> Iterator[torch.Tensor]:
    """Yield uint8 NCHW batches."""
    samples = WebDataset(job.shards, resampled=True, shardshuffle=False).shuffle(SHUFFLED)
    decoded = samples.to_tuple("jpg", "cls").map_tuple(build_decoder(job), int)
    batches = decoded.batched(job.batch_size, partial=False)
    for images, _ in WebLoader(batches, batch_size=None, num_workers=job.workers, persistent_workers=True):
        yield images
