"""`python -m gpu.parity JOB`: whether a decode path shows what the reference shows, on real JPEGs, by kind of JPEG."""

import io
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from statistics import mean
from typing import Any

import torch
from answer import Job, answer
from PIL import Image, JpegImagePlugin

from loaders import EvalTransform, Loader, LoaderConfig, Split, TrainTransform, build_loader
from train.dist import join_world

SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}  # Pillow's numbers
# What an image may differ by on average, of 255: nvJPEG rounds otherwise, and smooths subsampled colours its own way.
MOST, MOST_SUBSAMPLED = 1.0, 4.0
WHOLE = ("4:4:4", "grey")

Difference = tuple[str, float, int]  # kind of JPEG; mean and largest difference of one image, of 255


def compare(job: Job) -> dict[str, Any]:
    """Differences from the reference of the first `num_images` of `data`, training windows and evaluation's."""
    split = Split(job["data"], job["split"])
    result: dict[str, Any] = {"is_right": True}
    transforms = {"train": TrainTransform(job["size"]), "evaluation": EvalTransform(job["size"], job["resize"])}
    with join_world(job["device"]) as world:
        # An image that this path cannot decode must not be replaced in silence: it ends the case by its name.
        config = LoaderConfig(**job["loader"], most_damaged=0)
        for name, transform in transforms.items():
            ours = build_loader(split, transform, job["batch_size"], world, config=config)
            right = build_loader(split, transform, job["batch_size"], config=LoaderConfig("reference"))
            result[name] = by_kind(differences(ours, right, job["num_images"]))
            result["is_right"] &= all(map(is_close, result[name], result[name].values()))
    return result


def differences(ours: Loader, right: Loader, num_images: int) -> Iterator[Difference]:
    """Of each image, both loaders taken in step; training takes whole batches."""
    num_batches = min(len(right), -(-num_images // right.batch_size))
    for batch, reference in zip(*(islice(loader, num_batches) for loader in (ours, right)), strict=True):
        assert (batch.rows_B == reference.rows_B).all()
        apart_BCHW = (batch.images_BCHW.cpu().int() - reference.images_BCHW.int()).abs()
        means_B, most_B = apart_BCHW.float().mean((1, 2, 3)), apart_BCHW.amax((1, 2, 3))
        for i in torch.nonzero(reference.valid_B).flatten().tolist():
            yield describe_jpeg(right.split, int(batch.rows_B[i])), means_B[i].item(), int(most_B[i])


def describe_jpeg(split: Split, row: int) -> str:
    """How its colours are stored, from its header."""
    with split.shard_paths[split.column("shard")[row]].open("rb") as file:
        file.seek(split.column("offset")[row])
        content = file.read(split.column("size")[row])
    with Image.open(io.BytesIO(content)) as image:
        kind = "grey" if image.mode == "L" else SUBSAMPLING.get(JpegImagePlugin.get_sampling(image), "other")
        return f"{kind} progressive" if image.info.get("progressive") else kind


def by_kind(found: Iterator[Difference]) -> dict[str, dict[str, float]]:
    """The figures of each kind of JPEG."""
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


def is_close(kind: str, figures: dict[str, float]) -> bool:
    """Whether even the worst image of a kind is near enough."""
    return figures["worst_image"] <= (MOST if kind.removesuffix(" progressive") in WHOLE else MOST_SUBSAMPLED)


if __name__ == "__main__":
    answer(compare)
