"""Check the pixels of a decode path: against the reference, again while the device is busy, and of damaged files.

The comparison with the reference backend uses real JPEGs, by kind of JPEG. Its verdicts: `right` if all images are
within the bounds; `differs` if only subsampled JPEGs exceed theirs, as with another way to upsample the colours;
`wrong` otherwise.
"""

import io
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from gpu.cases import SPLICED, Figures, Job
from PIL import Image, JpegImagePlugin

from loaders import (
    AugmentConfig,
    Batch,
    EvalTransform,
    Loader,
    LoaderConfig,
    Split,
    TrainTransform,
    World,
    build_loader,
)
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
NUM_BATCHES = 12  # decoded again under load
SIDES = {"cuda": 8192, "cpu": 512}  # of the matrices: one product takes 2 ms on a GPU
PRODUCTS, NUM_STREAMS = 4, 2  # products queued at once, on each stream
MOST_DAMAGED_BATCH = 32  # images: enough for a GPU to decode them together, not one by one
DAMAGED_ROW = 0  # row of the sample index
FLIPPED_EVERY, FLIPPED_BITS = 97, 0x55

Difference = tuple[str, float, int]  # kind of JPEG; mean and largest difference of one image, of 255
Kinds = dict[str, dict[str, float]]  # figures by kind of JPEG


@dataclass(frozen=True)
class Rendered:
    """One batch as the reference renders it."""

    rows_B: np.ndarray
    valid_B: np.ndarray  # False for padding
    kinds: list[str]  # of each image's JPEG
    images_BHWC: np.ndarray  # uint8


def compare_with_reference(job: Job) -> Figures:
    """Yield the verdict on a path, and the differences of the first `num_images` images by kind of JPEG.

    The training transform is compared first, then that of evaluation if the job has `resize`.
    """
    transforms: dict[str, TrainTransform | EvalTransform] = {"train": TrainTransform(job["size"])}
    if "resize" in job:
        transforms["evaluation"] = EvalTransform(job["size"], job["resize"])
    found: dict[str, Kinds] = {}
    with join_world(job["device"]) as world:
        for name, transform in transforms.items():
            found[name], placement = compare_transform(job, transform, world)
            yield found | {"verdict": find_verdict(found.values())} | placement


def compare_augmented(job: Job) -> Figures:
    """Yield the differences of images with RandAugment, by kind of JPEG, without a verdict.

    Operations such as posterize and equalize enlarge the differences of the decoders, so the bounds do not apply.
    """
    with join_world(job["device"]) as world:
        transform = TrainTransform(job["size"], augment=AugmentConfig("rand"))
        found, placement = compare_transform(job, transform, world)
    yield {"augmented": found, **placement}


def compare_transform(
    job: Job, transform: TrainTransform | EvalTransform, world: World
) -> tuple[Kinds, dict[str, str]]:
    """Return the differences of the first `num_images` images by kind of JPEG, and the loader's placement."""
    # An image that this path cannot decode must not be replaced silently: it ends the case with its name.
    ours = open_loader(job, job["loader"] | {"most_damaged": 0}, world, transform)
    kinds = by_kind(find_differences(ours, -(-job["num_images"] // job["batch_size"])))
    if ours.whole is not None and ours.whole.rows:
        raise InputError(f"{len(ours.whole.rows)} images could not be decoded from their segments")
    return kinds, ours.placement.to_dict()


def open_loader(
    job: Job, options: dict[str, Any], world: World, transform: TrainTransform | EvalTransform | None = None
) -> Loader:
    """Return a loader of the job's batches with these settings and a transform, by default that of training.

    Raises:
        InputError: the case is about spliced images, and it would read complete ones.
    """
    split, transform = Split(job["data"], job["split"]), transform or TrainTransform(job["size"])
    loader = build_loader(split, transform, job["batch_size"], world, config=LoaderConfig(**options))
    if job.get("splice") == SPLICED and loader.whole is None:
        raise InputError("images are not spliced here: build loaders/_read.c (docs/benchmarks.md, Unpack)")
    return loader


def find_differences(ours: Loader, num_batches: int) -> Iterator[Difference]:
    """Yield the difference of each image of the first batches; at most one pass over the split."""
    num_batches = min(len(ours), num_batches)
    for batch, reference in zip(islice(ours, num_batches), render_batches(ours, num_batches), strict=True):
        yield from compare_batch(batch, reference)


def compare_batch(batch: Batch, reference: Rendered) -> Iterator[Difference]:
    """Yield the difference of each image of a batch that is not padding."""
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
    far = [
        (kind, figures["worst_image"])
        for kinds in transforms
        for kind, figures in kinds.items()
        if figures["worst_image"] > (MOST if is_stored_whole(kind) else MOST_SUBSAMPLED)
    ]
    if not far:
        return "right"
    is_wrong = any(is_stored_whole(kind) or worst > MOST_DIFFERING for kind, worst in far)
    return "wrong" if is_wrong else "differs"


def is_stored_whole(kind: str) -> bool:
    """Check whether JPEGs of a kind store every colour of every pixel (not subsampled)."""
    return kind.removesuffix(" progressive") in WHOLE


def compare_under_load(job: Job) -> Figures:
    """Yield whether one plan gives equal bits, idle and under load: the number of different values and the largest.

    The hardware JPEG decoder of some GPUs is known to start before earlier work of its stream has ended. A test on an
    idle GPU cannot see that, and training never leaves the GPU idle. So while the plan is decoded again, matrix
    products run on two other streams. Each batch is used late and then dropped at once, so that its memory is soon
    overwritten.
    """
    with join_world(job["device"]) as world:
        # Twice on the idle device: a difference here is not due to the load.
        first = [images_BCHW.clone() for images_BCHW in decode(job, world)]
        result = {"num_batches": len(first), "idle": count_differences(first, decode(job, world))}
        yield dict(result)

        # A third time, while the device is busy.
        with keep_busy(world.device) as load:
            result["under_load"] = count_differences(first, decode(job, world, load["matrix"]))
        result["num_products"] = load["num_products"]
        yield result | {f"is_same_{name}": not result[name]["num_values"] for name in ("idle", "under_load")}


@contextmanager
def keep_busy(device: torch.device) -> Iterator[dict[str, Any]]:
    """Keep a device busy with products of a matrix; give the matrix and the number of products so far."""
    on_gpu, ended = device.type == "cuda", threading.Event()
    side, kind = SIDES[device.type], torch.bfloat16 if on_gpu else torch.float32
    load: dict[str, Any] = {"matrix": torch.randn(side, side, device=device, dtype=kind), "num_products": 0}

    def multiply() -> None:
        stream = torch.cuda.Stream(device) if on_gpu else None
        with torch.cuda.stream(stream):  # None: no change
            product = torch.empty_like(load["matrix"])
            while not ended.is_set():
                for _ in range(PRODUCTS):
                    torch.mm(load["matrix"], load["matrix"], out=product)
                load["num_products"] += PRODUCTS
                if stream:
                    stream.synchronize()

    num_threads = NUM_STREAMS if on_gpu else len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(num_threads) as pool:
        threads = [pool.submit(multiply) for _ in range(num_threads)]
        try:
            yield load
        finally:
            ended.set()
    for thread in threads:
        thread.result()  # raises what went wrong there


def decode(job: Job, world: World, delay: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
    """Yield the images of the stream's first batches, from a new pipeline.

    Args:
        job: names the split and the loader's settings.
        world: of one process.
        delay: on a GPU, a matrix whose square is computed before each batch is used, so that the use comes late.
    """
    with closing(iter(open_loader(job, job["loader"], world))) as batches:  # pyright: ignore[reportArgumentType]
        for batch in islice(batches, NUM_BATCHES):
            if delay is not None and delay.is_cuda:
                torch.mm(delay, delay)
            yield batch.images_BCHW


def count_differences(first: list[torch.Tensor], again: Iterator[torch.Tensor]) -> dict[str, int]:
    """Return how many values differ, and the largest difference; the device is synchronized once, at the end."""
    device = first[0].device
    num_values, largest = torch.zeros((), dtype=torch.int64, device=device), torch.zeros((), device=device)
    for images_BCHW, other_BCHW in zip(first, again, strict=True):
        apart_BCHW = (images_BCHW.int() - other_BCHW.int()).abs()
        num_values += (apart_BCHW > 0).sum()
        largest = torch.maximum(largest, apart_BCHW.amax())
        del other_BCHW  # dropped at once
    return {"num_values": int(num_values), "largest": int(largest)}


def decode_damaged(job: Job) -> Figures:
    """Yield the outcome of each kind of damage: is the image named and counted as wrong, or is it used silently?

    For each kind of damage, one image is damaged in a copy of the split. The real loader reads the copy in evaluation's
    order, and the image is compared with the same path's output for the undamaged file. A hardware decoder reports
    success when it starts, so a partly decoded image may pass: the checksums made at preparation have to find such
    files.
    """
    whole = Split(job["data"], job["split"])
    damages: dict[str, Any] = {}
    with join_world(job["device"]) as world:
        undamaged_BCHW = decode_first(open_evaluation(whole, job, world)).images_BCHW.cpu()
        copy = Path(job["work"]) / "damaged"
        for name, damage in DAMAGES.items():
            loader = open_evaluation(copy_damaged(whole, copy, damage), job, world)
            damages[name] = describe_outcome(loader, undamaged_BCHW)
            yield {"damages": dict(damages)}
        shutil.rmtree(copy)


def flip(encoded: bytes) -> bytes:
    """Return a JPEG with flipped bits in the second half of its entropy-coded data; its markers stay the same."""
    content = np.frombuffer(encoded, np.uint8).copy()
    places = np.arange(len(content) // 2, len(content) - 2, FLIPPED_EVERY)
    flipped = content[places] ^ FLIPPED_BITS
    # 0xFF begins a marker, or is data when 0x00 follows: leave those bytes, and do not create one.
    is_plain = (content[places] != 0xFF) & (flipped != 0xFF) & (content[places - 1] != 0xFF)
    content[places[is_plain]] = flipped[is_plain]
    return content.tobytes()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut at half": lambda encoded: encoded[: len(encoded) // 2],
    "broken header": lambda encoded: bytes(16) + encoded[16:],
    "flipped bits": flip,
}


def copy_damaged(split: Split, folder: Path, damage: Callable[[bytes], bytes]) -> Split:
    """Return a copy of a split with one damaged image; if that is shorter, the copy's index has the new size."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(split.folder, folder / split.folder.name)
    copied = Split(folder, split.folder.name)
    offset, size = (int(copied.column(name)[DAMAGED_ROW]) for name in ("offset", "size"))
    with copied.shard_paths[copied.column("shard")[DAMAGED_ROW]].open("r+b") as file:
        file.seek(offset)
        encoded = file.read(size)
        file.seek(offset)
        file.write(damaged := damage(encoded))
    sizes = copied.column("size").copy()
    sizes[DAMAGED_ROW] = len(damaged)
    place = copied.samples.schema.get_field_index("size")
    copied.samples = copied.samples.set_column(place, copied.samples.schema.field(place), pa.array(sizes))
    return copied


def open_evaluation(split: Split, job: Job, world: World) -> Loader:
    """Return a loader in evaluation's order, which counts a damaged image as wrong and continues."""
    transform = EvalTransform(job["size"], job["resize"])
    size = min(MOST_DAMAGED_BATCH, job["batch_size"], len(split))
    return build_loader(split, transform, size, world, config=LoaderConfig(**job["loader"]))


def decode_first(loader: Loader) -> Batch:
    """Return the first batch."""
    with closing(iter(loader)) as batches:  # pyright: ignore[reportArgumentType]  (a generator)
        return next(batches)


def describe_outcome(loader: Loader, undamaged_BCHW: torch.Tensor) -> dict[str, Any]:
    """Return the outcome for the damaged image, and how far the other images of its batch have changed.

    Outcomes: `named` (found, named, counted as wrong), `silent` (used as if it were intact), `error` (the run ends
    and no image is named).
    """
    try:
        batch = decode_first(loader)
    except InputError as error:
        return {"outcome": "error", "reason": str(error)[:300]}
    apart_BCHW = (batch.images_BCHW.cpu().int() - undamaged_BCHW.int()).abs().float()
    means_B = apart_BCHW.mean((1, 2, 3))
    others_B = torch.arange(len(means_B)) != DAMAGED_ROW
    return {
        "outcome": "named" if bool(batch.damaged_B[DAMAGED_ROW]) else "silent",
        "mean_difference": means_B[DAMAGED_ROW].item(),
        "largest_of_others": int(apart_BCHW[others_B].max()),
    }
