# pyright: reportMissingImports=false
"""SPDL's pipeline of threads over image files, with its own decoders (FFmpeg's) or with torchvision's."""

import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import spdl.io
import torch
from peers.job import Job
from peers.torchvision_peer import build_decoder
from spdl.pipeline import PipelineBuilder

BUFFERED = 3  # batches, SPDL's default


def read_with_ffmpeg(job: Job) -> Iterator[torch.Tensor | None]:
    """Yield uint8 NHWC batches: one FFmpeg graph decodes, crops and scales each image, as SPDL recommends."""
    return run_pipeline(job, partial(decode_frames, job), collate_frames)


def read_with_torchvision(job: Job) -> Iterator[torch.Tensor | None]:
    """Yield uint8 NCHW batches: torchvision's functions, which release the interpreter's lock, in SPDL's threads."""
    torch.set_num_threads(1)  # the threads are SPDL's
    decoder = build_decoder(job)
    return run_pipeline(job, lambda path: decoder(Path(path).read_bytes()), torch.stack)


def run_pipeline(
    job: Job, decode: Callable[[str], Any], collate: Callable[[list[Any]], torch.Tensor]
) -> Iterator[torch.Tensor | None]:
    """Run the pipeline, with one more thread than decode, since collating needs one too."""
    yield None
    pipeline = (
        PipelineBuilder()
        .add_source(shuffle_forever(job))
        .pipe(decode, concurrency=job.workers)
        .aggregate(job.batch_size)
        .pipe(collate)
        .add_sink(BUFFERED)
        .build(num_threads=job.workers + 1)
    )
    with pipeline.auto_stop():
        yield from pipeline.get_iterator()


def shuffle_forever(job: Job) -> Iterator[str]:
    """Yield the paths of all images endlessly, in a new order on each pass."""
    paths = [str(path) for path in Path(job.data).rglob("*.jpg")]
    while True:
        yield from random.sample(paths, len(paths))


def collate_frames(frames: Any) -> torch.Tensor:
    """Return one tensor of the decoded frames of a batch."""
    return spdl.io.to_torch(spdl.io.convert_frames(frames))


def decode_frames(job: Job, path: str) -> Any:
    """Decode one image with FFmpeg's filters."""
    packets = spdl.io.demux_image(path)
    steps = (evaluate if job.evaluates else augment)(packets.width, packets.height, job)
    return spdl.io.decode_packets(packets, filter_desc=",".join([*steps, "format=pix_fmts=rgb24"]))


def evaluate(width: int, height: int, job: Job) -> list[str]:
    """Return FFmpeg's filters that resize the short side and crop the centre."""
    scale = job.resize / min(width, height)
    return [f"scale={int(width * scale)}:{int(height * scale)}:flags=bilinear", f"crop={job.size}:{job.size}"]


def augment(width: int, height: int, job: Job) -> list[str]:
    """Return FFmpeg's filters for a random resized crop and a flip."""
    crop = "crop={}:{}:{}:{}".format(*draw_window(width, height))
    flip = ["hflip"] if random.random() < 0.5 else []
    return [crop, f"scale={job.size}:{job.size}:flags=bilinear", *flip]


def draw_window(width: int, height: int) -> tuple[int, int, int, int]:
    """Draw one window by the rule of torchvision's RandomResizedCrop; return width, height, left, top."""
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return w, h, random.randint(0, width - w), random.randint(0, height - h)
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return w, h, (width - w) // 2, (height - h) // 2
