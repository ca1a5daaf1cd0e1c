"""Penstock's loader, with its defaults."""

from collections.abc import Iterator

import torch
from job import SPLIT, Job

import loaders.dali  # noqa: F401 - import the backend before the clock starts; the loader would do it later
from loaders import EvalTransform, LoaderConfig, Split, TrainTransform, build_loader


def penstock(job: Job) -> Iterator[torch.Tensor]:
    """Yield uint8 NCHW batches, channels_last."""
    transform = EvalTransform(job.size, job.resize) if job.evaluates else TrainTransform(job.size)
    config = LoaderConfig("dali", num_threads=job.workers)
    loader = build_loader(Split(job.data, SPLIT), transform, job.batch_size, config=config)
    while True:  # the stream of training never ends, that of evaluation does
        for batch in loader:
            yield batch.images_BCHW
