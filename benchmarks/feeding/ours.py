"""Penstock's own loader, with its defaults."""

from collections.abc import Iterator

import torch
from job import SPLIT, Job

import loaders.dali  # noqa: F401 - the backend, which the loader would import only when it starts
from loaders import EvalTransform, LoaderConfig, Split, TrainTransform, build_loader


def penstock(job: Job) -> Iterator[torch.Tensor]:
    """uint8 NCHW, channels_last."""
    transform = EvalTransform(job.size, job.resize) if job.evaluates else TrainTransform(job.size)
    config = LoaderConfig("dali", num_threads=job.workers)
    loader = build_loader(Split(job.data, SPLIT), transform, job.batch_size, config=config)
    while True:  # training never ends by itself, evaluation does
        for batch in loader:
            yield batch.images_BCHW
