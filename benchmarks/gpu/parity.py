"""Compare the pixels of a decode path with those of the reference backend, on real JPEGs, by kind of JPEG.

Verdicts: `right` if all images are within the bounds; `differs` if only subsampled JPEGs exceed theirs, as with another
way to upsample the colours; `wrong` otherwise.
"""

import io
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from statistics import mean
from typing import Any

import numpy as np
import torch
from answer import Job
from gpu.decoding import check_splicing
from gpu.worker import Report
from PIL import Image, JpegImagePlugin

from loaders import AugmentConfig, EvalTransform, Loader, LoaderConfig, Split, TrainTransform, World, build_loader
from loaders.reader import Reader
from loaders.reference import render
from loaders.stats import Counters
from prep.errors import InputError
from train.dist import join_world

SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}  # Pillow's numbers
# Bounds of an image's mean difference, of 255. nvJPEG rounds differently from libjpeg, and upsamples colours
# differently: it repeats them, which differs by about 3 on photographs and by 13 on noise (docs/LOG.md).
MOST, MOST_SUBSAMPLED, MOST_DIFFERING = 1.0, 4.0, 16.0
WHOLE = ("4:4:4", "grey")
READ_THREADS, READ_AHEAD = 4, 1

Difference = tuple[str, float, int]  # kind of JPEG; mean and largest difference of one image, of 255
Kinds = dict[str, dict[str, float]]  # figures by kind of JPEG


@dataclass(frozen=True)
class Rendered:
    """One batch as the reference renders it."""

    rows_B: np.ndarray
    valid_B: np.ndarray  # False for padding
    kinds: list[str]  # of each image's JPEG
    images_BHWC: np.ndarray  # uint8


def compare_with_reference(job: Job, report: Report) -> dict[str, Any]:
    """Return the verdict on a path, and the differences of the first `num_images` images by kind of JPEG.

    The training transform is compared first, then that of evaluation if the job has `resize`.
    """
    transforms: dict[str, TrainTransform | EvalTransform] = {"train": TrainTransform(job["size"])}
    if "resize" in job:
        transforms["evaluation"] = EvalTransform(job["size"], job["resize"])
    result: dict[str, Any] = {}
    with join_world(job["device"]) as world:
        for name, transform in transforms.items():
            result[name], placement = compare_transform(job, transform, world)
            result["verdict"] = find_verdict(result[each] for each in transforms if each in result)
            result |= placement
            report(result)
    return result


def compare_augmented(job: Job, report: Report) -> dict[str, Any]:
    """Return the differences of images with RandAugment, by kind of JPEG, without a verdict.

    Operations such as posterize and equalize enlarge the differences of the decoders, so the bounds do not apply.
    """
    with join_world(job["device"]) as world:
        transform = TrainTransform(job["size"], augment=AugmentConfig("rand"))
        found, placement = compare_transform(job, transform, world)
    return {"augmented": found, **placement}


def compare_transform(
    job: Job, transform: TrainTransform | EvalTransform, world: World
) -> tuple[Kinds, dict[str, str]]:
    """Return the differences of the first `num_images` images by kind of JPEG, and the loader's placement."""
    # An image that this path cannot decode must not be replaced silently: it ends the case with its name.
    config = LoaderConfig(**job["loader"], most_damaged=0)
    ours = build_loader(Split(job["data"], job["split"]), transform, job["batch_size"], world, config=config)
    check_splicing(job, ours)
    kinds = by_kind(find_differences(ours, -(-job["num_images"] // job["batch_size"])))
    if ours.whole is not None and ours.whole.rows:
        raise InputError(f"{len(ours.whole.rows)} images could not be decoded from their segments")
    return kinds, ours.placement.to_dict()


def find_differences(ours: Loader, num_batches: int) -> Iterator[Difference]:
    """Yield the difference of each image of the first batches; at most one pass over the split."""
    num_batches = min(len(ours), num_batches)
    for batch, reference in zip(islice(ours, num_batches), render_batches(ours, num_batches), strict=True):
        assert (batch.rows_B == reference.rows_B).all()
        right_BCHW = torch.from_numpy(reference.images_BHWC).permute(0, 3, 1, 2).int()
        apart_BCHW = (batch.images_BCHW.cpu().int() - right_BCHW).abs()
        means_B, most_B = apart_BCHW.float().mean((1, 2, 3)), apart_BCHW.amax((1, 2, 3))
        for i in np.flatnonzero(reference.valid_B):
            yield reference.kinds[i], means_B[i].item(), int(most_B[i])


def render_batches(loader: Loader, num_batches: int) -> Iterator[Rendered]:
    """Yield a loader's first batches as the reference backend renders them, on all cores: Pillow releases the GIL."""
    plans = (loader.plan(i * loader.batch_size) for i in range(num_batches))
    num_threads = len(os.sched_getaffinity(0))
    with Reader(loader.split, READ_THREADS, READ_AHEAD, Counters()) as reader, ThreadPoolExecutor(num_threads) as pool:
        for plan, encoded in reader.read(plans):
            places = range(len(encoded.images))
            images = list(pool.map(lambda i, plan=plan, encoded=encoded: render(encoded.images[i], plan, i), places))
            kinds = [describe_encoded(image.tobytes()) for image in encoded.images]
            reader.release(encoded)
            yield Rendered(plan.rows_B, plan.valid_B, kinds, np.stack(images))


def describe_jpeg(split: Split, row: int) -> str:
    """Return how a JPEG of a split stores its colours: "4:2:0", "grey", "4:4:4 progressive", ..."""
    with split.shard_paths[split.column("shard")[row]].open("rb") as file:
        file.seek(split.column("offset")[row])
        return describe_encoded(file.read(split.column("size")[row]))


def describe_encoded(encoded: bytes) -> str:
    """Return how a JPEG stores its colours, read from its header."""
    with Image.open(io.BytesIO(encoded)) as image:
        kind = "grey" if image.mode == "L" else SUBSAMPLING.get(JpegImagePlugin.get_sampling(image), "other")
        return f"{kind} progressive" if image.info.get("progressive") else kind


def by_kind(found: Iterable[Difference]) -> Kinds:
    """Return the figures of each kind of JPEG."""
    kinds: dict[str, list[Difference]] = defaultdict(list)
    for difference in found:
        kinds[difference[0]].append(difference)
    return {
        kind: {
            "num_images": len(group),
            "mean": mean(each for _, each, _ in group),
            "worst_image": max(each for _, each, _ in group),
            "largest_pixel": max(most for _, _, most in group),
        }
        for kind, group in sorted(kinds.items())
    }


def find_verdict(transforms: Iterable[Kinds]) -> str:
    """Return the verdict: right, differs or wrong. Even the worst image of each kind must be within its bound."""
    figures = [(kind, each) for kinds in transforms for kind, each in kinds.items()]
    if all(is_close(kind, each) for kind, each in figures):
        return "right"
    far = [each["worst_image"] for kind, each in figures if not is_close(kind, each)]
    is_whole = any(is_stored_whole(kind) for kind, each in figures if not is_close(kind, each))
    return "wrong" if is_whole or max(far) > MOST_DIFFERING else "differs"


def is_close(kind: str, figures: dict[str, float]) -> bool:
    """Check whether the worst image of a kind is within its bound."""
    return figures["worst_image"] <= (MOST if is_stored_whole(kind) else MOST_SUBSAMPLED)


def is_stored_whole(kind: str) -> bool:
    """Check whether JPEGs of a kind store every colour of every pixel (not subsampled)."""
    return kind.removesuffix(" progressive") in WHOLE
