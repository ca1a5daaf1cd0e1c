# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (DALI creates its operators at run time; its stubs lack them)
"""DALI's own reader of WebDataset shards, with its own random crops and its own order."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from nvidia.dali import fn, pipeline_def, types
from peers.job import Job

FILTER = {"interp_type": types.INTERP_TRIANGULAR, "antialias": True}  # Pillow's bilinear, as ours


def read(job: Job) -> Iterator[torch.Tensor | None]:
    """Yield uint8 NCHW batches, channels_last, in DALI's memory; labels stay ASCII bytes, which DALI cannot parse."""
    yield None
    pipeline = build_pipeline(job)
    pipeline.build()
    while True:
        images, _ = pipeline.run()
        yield torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)


def build_pipeline(job: Job) -> Any:
    """Return the graph; options that the task does not set keep DALI's defaults."""

    @pipeline_def(batch_size=job.batch_size, num_threads=job.workers, device_id=None)
    def graph() -> Any:
        encoded, labels = fn.readers.webdataset(
            paths=job.shards,
            index_paths=[str(Path(shard).with_suffix(".idx")) for shard in job.shards],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
            random_shuffle=not job.evaluates,
            pad_last_batch=True,  # without it some samples are missed and others come twice
        )
        return (evaluate if job.evaluates else augment)(encoded, job), labels

    return graph()


def augment(encoded: Any, job: Job) -> Any:
    """Return a random resized crop, flipped at random."""
    images = fn.decoders.image_random_crop(
        encoded, device="cpu", random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
    )
    images = fn.resize(images, size=[job.size, job.size], **FILTER)
    return fn.flip(images, horizontal=fn.random.coin_flip())


def evaluate(encoded: Any, job: Job) -> Any:
    """Resize the short side and crop the centre."""
    images = fn.resize(fn.decoders.image(encoded, device="cpu"), resize_shorter=job.resize, **FILTER)
    return fn.crop(images, crop=(job.size, job.size))
