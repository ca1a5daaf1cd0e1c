"""The batches held in memory as they would be after `prep/shard.py --max-side 500 --quality 90`, or other options."""

from dataclasses import replace

import cv2
import numpy as np
from stages.decoding import Held
from verdict.advice import FILES, QUALITY, SMALLER_FILES

from loaders import Loader, TrainTransform
from loaders.plan import Images, Plan, train_plan
from loaders.reader import Encoded

GREY = "Gray"  # simplejpeg's name for it


def shrink_batches(loader: Loader, held: Held, name: str = SMALLER_FILES) -> Held:
    """Return the same images stored smaller, with their plans: the same draws, in windows of the smaller images.

    Args:
        name: one of FILES.
    """
    images = Images(*_scale_sides(loader, FILES[name]))
    return [(_plan_again(loader, plan, images), _shrink_batch(plan, encoded, images)) for plan, encoded in held]


def mean_image_bytes(held: Held) -> float:
    """Return the mean size of an encoded image in bytes."""
    sizes = [image.nbytes for _, encoded in held for image in encoded.images]
    return sum(sizes) / len(sizes)


def _scale_sides(loader: Loader, options: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the widths and heights that fit the options, rounded to the nearest pixel as preparation does."""
    if "max_side" in options:
        scale_N = np.minimum(1.0, options["max_side"] / np.maximum(loader.widths, loader.heights))
    else:
        scale_N = np.minimum(1.0, options["short_side"] / np.minimum(loader.widths, loader.heights))
    widths_N, heights_N = (np.maximum(1, np.rint(sides_N * scale_N)) for sides_N in (loader.widths, loader.heights))
    return widths_N.astype(np.int64), heights_N.astype(np.int64)


def _plan_again(loader: Loader, plan: Plan, images: Images) -> Plan:
    """Return the plan with windows for the smaller images."""
    assert isinstance(loader.transform, TrainTransform)
    smaller = train_plan(loader.sampling, plan.position, loader.slots, images, loader.transform)
    return replace(plan, windows_B4=smaller.windows_B4)


def _shrink_batch(plan: Plan, encoded: Encoded, images: Images) -> Encoded:
    heights_B, widths_B = images.sides(plan.rows_B)
    smaller = [
        _shrink_image(image, int(width), int(height))
        for image, width, height in zip(encoded.images, widths_B, heights_B, strict=True)
    ]
    return Encoded(smaller, encoded.buffer)


def _shrink_image(encoded: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scale an image down by pixel area and encode it with 4:2:0 chroma; keep the original if that saves no bytes."""
    import simplejpeg  # noqa: PLC0415 - throughput.py needs it for this probe only

    had_height, had_width, _, subsampling = simplejpeg.decode_jpeg_header(encoded)
    colours, chroma = ("GRAY", GREY) if subsampling == GREY else ("RGB", "420")
    # The decoder scales by eighths to at least the wanted size; the rest is done by pixel area.
    pixels_HWC = simplejpeg.decode_jpeg(encoded, colours, min_width=width, min_height=height)
    if pixels_HWC.shape[:2] != (height, width):
        pixels_HWC = cv2.resize(pixels_HWC, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)
    smaller = np.frombuffer(
        simplejpeg.encode_jpeg(np.ascontiguousarray(pixels_HWC), QUALITY, colours, chroma), np.uint8
    )
    is_same_size = (had_height, had_width) == (height, width)
    return encoded if is_same_size and len(smaller) >= len(encoded) else smaller
