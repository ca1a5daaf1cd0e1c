"""The batches that are held in memory as they would be with `prep/shard.py --max-side 500 --quality 90`."""

from dataclasses import replace

import cv2
import numpy as np
from stages.decoding import Held
from verdict.advice import MAX_SIDE, QUALITY

from loaders import Loader, TrainTransform
from loaders.plan import Images, Plan, train_plan
from loaders.reader import Encoded

GREY = "Gray"  # as simplejpeg names it


def shrink(loader: Loader, held: Held) -> Held:
    """The same images stored smaller, and the plans for them: same draws, windows of the smaller sides."""
    images = Images(*_scale_sides(loader))
    return [(_plan_anew(loader, plan, images), _shrink_batch(plan, encoded, images)) for plan, encoded in held]


def mean_bytes(held: Held) -> float:
    """Of an encoded image."""
    sizes = [image.nbytes for _, encoded in held for image in encoded.images]
    return sum(sizes) / len(sizes)


def _scale_sides(loader: Loader) -> tuple[np.ndarray, np.ndarray]:
    """Widths and heights that fit MAX_SIDE, the aspect kept to the nearest pixel, as preparation does it."""
    scale_N = np.minimum(1.0, MAX_SIDE / np.maximum(loader.widths, loader.heights))
    widths_N, heights_N = (np.maximum(1, np.rint(sides_N * scale_N)) for sides_N in (loader.widths, loader.heights))
    return widths_N.astype(np.int64), heights_N.astype(np.int64)


def _plan_anew(loader: Loader, plan: Plan, images: Images) -> Plan:
    assert isinstance(loader.transform, TrainTransform)
    anew = train_plan(loader.sampling, plan.position, loader.slots, images, loader.transform)
    return replace(plan, windows_B4=anew.windows_B4)


def _shrink_batch(plan: Plan, encoded: Encoded, images: Images) -> Encoded:
    heights_B, widths_B = images.sides(plan.rows_B)
    smaller = [
        _shrink_image(image, int(width), int(height))
        for image, width, height in zip(encoded.images, widths_B, heights_B, strict=True)
    ]
    return Encoded(smaller, encoded.buffer)


def _shrink_image(encoded: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scaled down by pixel area and encoded anew with 4:2:0 chroma; the original where neither saves bytes."""
    import simplejpeg  # noqa: PLC0415 - throughput.py runs without it, except this probe

    had_height, had_width, _, subsampling = simplejpeg.decode_jpeg_header(encoded)
    colours, chroma = ("GRAY", GREY) if subsampling == GREY else ("RGB", "420")
    pixels_HWC = simplejpeg.decode_jpeg(encoded, colours, min_width=width, min_height=height)
    if pixels_HWC.shape[:2] != (height, width):
        pixels_HWC = cv2.resize(pixels_HWC, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)
    smaller = np.frombuffer(
        simplejpeg.encode_jpeg(np.ascontiguousarray(pixels_HWC), QUALITY, colours, chroma), np.uint8
    )
    is_same_size = (had_height, had_width) == (height, width)
    return encoded if is_same_size and len(smaller) >= len(encoded) else smaller
