"""Take images from Penstock's own loader as training uses it: rows, labels, and for a sample pixels and their plan."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from certificates.job import Job, Span

from loaders import Batch, Loader, LoaderConfig, Split, TrainTransform, World, build_loader
from loaders.order import Sampling
from loaders.world import resolve_device

Part = dict[str, np.ndarray]


def take_images(job: Job) -> Iterator[Part]:
    """Yield the batches of all spans, each image with its position in the stream; write the state that is wanted."""
    split = Split(job.data, job.split)
    loader = None
    for span in job.spans:
        loader = open_loader(job, split, span)
        with closing(iter(loader)) as batches:  # pyright: ignore[reportArgumentType]  (a generator)
            for batch in batches:
                yield describe_batch(job, loader, batch)
                if loader.position >= span.stop:
                    break
    if job.state_out and job.rank == 0 and loader is not None:
        Path(job.state_out).write_text(json.dumps(loader.state_dict()))


def open_loader(job: Job, split: Split, span: Span) -> Loader:
    """Return the loader at the span's start. An image that cannot be decoded is an error, never replaced silently."""
    world = World(job.rank, job.size, job.rank, job.size, resolve_device(job.device))
    backend = "dali" if span.decoded else "synthetic"
    how = {"placement": job.placement, "decode": job.decode, "num_threads": job.threads}
    config = LoaderConfig(backend, most_damaged=0, **how)
    loader = build_loader(split, TrainTransform(job.pixels), job.batch_size, world, Sampling(job.seed), config)
    state = {**loader.state_dict(), "position": span.start}
    loader.load_state_dict(json.loads(Path(job.state_in).read_text()) if job.state_in else state)
    return loader


def describe_batch(job: Job, loader: Loader, batch: Batch) -> Part:
    """Return a batch's rows, labels and positions; if wanted, digests of its images, and the kept images."""
    positions_B = batch.position + np.array(loader.slots)
    part = {
        "rows": batch.rows_B,
        "labels": batch.labels_B.cpu().numpy(),
        "positions": positions_B,
        "epochs": positions_B // len(loader.split),
    }
    if job.digests:
        images_BHWC = batch.images_BCHW.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        part["digests"] = np.array([hashlib.sha256(image_HWC).hexdigest() for image_HWC in images_BHWC])
    if job.kept:
        part |= keep_images(job, loader, batch, positions_B)
    return part


def keep_images(job: Job, loader: Loader, batch: Batch, positions_B: np.ndarray) -> Part:
    """Return the images at the wanted positions as the loader gave them, with the rows, windows and flips planned."""
    places = np.flatnonzero(np.isin(positions_B, job.kept))
    plan = loader.plan(batch.position)
    images_KCHW = batch.images_BCHW[torch.from_numpy(places).to(batch.images_BCHW.device)]
    return {
        "kept_rows": batch.rows_B[places],
        "kept_images": images_KCHW.permute(0, 2, 3, 1).cpu().numpy(),
        "kept_windows": plan.windows_B4[places],
        "kept_flips": plan.flips_B[places],
    }


def place_spans(job: Job, num_images: int, epochs: int, most_decoded: int) -> tuple[Span, ...]:
    """Return spans that cover the first epochs; in each epoch an equal share of `most_decoded` images is decoded."""
    # Our batches continue over the end of an epoch: an epoch here begins with its first complete batch.
    batch = job.batch_size
    bounds = [-(-epoch * num_images // batch) * batch for epoch in range(epochs + 1)]
    if most_decoded >= bounds[-1]:
        return (Span(0, bounds[-1], True),)
    share = most_decoded // epochs // batch * batch
    parts = [
        span
        for start, stop in pairwise(bounds)
        for span in (Span(start, min(stop, start + share), True), Span(min(stop, start + share), stop, False))
    ]
    return tuple(span for span in parts if span.start < span.stop)
