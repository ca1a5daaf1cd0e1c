"""The plan: decide which pixels make a batch, before anything is read or decoded. Pure functions.

Shapes: B images of one rank's batch, N of a split, D damaged ones, T tries of a random crop, L layers of operations.
All randomness is a function of (seed, epoch, sample), and never of earlier draws.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from loaders.augment import AugmentConfig, draw_ops
from loaders.order import Sampling, find_repeats, find_substitute, locate
from loaders.philox import philox4x32, uniform

NUM_TRIES = 10  # torchvision.transforms.RandomResizedCrop.get_params
FLIP_BLOCK = NUM_TRIES  # index of the flip's Philox block of four words; each try of a crop has one block before it
MOST_BLOCKS = 1 << 16  # blocks reserved for one use of an image; those of its repeats follow
CROP_STREAM, AUGMENT_STREAM = 0, 16  # streams of random numbers; train/ uses other ones
SIZE_STEP = 32  # default of pixels between resolutions: the stride of most networks, and few shapes to compile for
LONGEST_RATIO = 32  # limit of long to short side that evaluation resizes; ImageNet's images are below it
DAMAGED_SIDE = 64  # side in pixels of the black image that replaces a damaged one in evaluation


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop and flip, as in torchvision; then augmentation; and the resolution of each epoch."""

    size: int = 224  # side of the square output in pixels
    first_size: int | None = None  # size in the first epochs, for a progressive resolution
    grow: tuple[float, float] = (0.0, 0.0)  # epochs between which first_size grows to size
    size_step: int = SIZE_STEP  # pixels between two resolutions, counted from first_size; the last step may be shorter
    scale: tuple[float, float] = (0.08, 1.0)  # crop area as a share of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # crop width / height
    hflip: float = 0.5  # probability of a horizontal flip
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # operations after crop and flip


@dataclass(frozen=True)
class EvalTransform:
    """Resize the short side to `resize` pixels, then crop `size` pixels from the centre, as in torchvision."""

    size: int = 224
    resize: int = 256


@dataclass(frozen=True)
class Images:
    """The facts about a split's images that a plan needs."""

    widths_N: np.ndarray  # pixels, integers
    heights_N: np.ndarray
    damaged_D: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # rows that cannot be decoded

    def __len__(self) -> int:
        return len(self.widths_N)

    def sides(self, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return heights and widths of the given rows, int64 [B] each."""
        return self.heights_N[rows_B].astype(np.int64), self.widths_N[rows_B].astype(np.int64)


@dataclass(frozen=True)
class Plan:
    """One rank's batch: decode `windows`, resize to `resized`, crop `size` at `crops`, flip, apply `ops` in order."""

    position: int  # position of the global batch's first image in the stream
    size: int  # side of the square output in pixels
    rows_B: np.ndarray  # int64: rows of the sample index
    windows_B4: np.ndarray  # int64: top, left, height, width, in source pixels
    resized_B2: np.ndarray  # int64: height, width
    crops_B2: np.ndarray  # int64: top, left, in resized pixels
    flips_B: np.ndarray  # bool
    ops_BL: np.ndarray  # int64: `loaders.augment.Op`; L is 0 without augmentation
    arguments_BL: np.ndarray  # float64: each operation's argument
    valid_B: np.ndarray  # bool: False for padding
    damaged_B: np.ndarray  # bool: True for a black image of DAMAGED_SIDE instead (evaluation only)


def train_plan(sampling: Sampling, position: int, slots: range, images: Images, transform: TrainTransform) -> Plan:
    """Return the plan of the images in `slots` (one rank's share) of the global batch at `position`.

    A damaged image is replaced by another row, but its random numbers stay those of the damaged row: a window (in the
    new image), flip and operations. So damage changes no other image.
    """
    # Where in which epoch each image is, and so its row.
    positions_B = position + np.arange(slots.start, slots.stop, dtype=np.int64)
    epochs_B, rows_B = locate(sampling, positions_B, len(images))

    # All random numbers of the batch, from counters that no other (repeat, row, epoch) has.
    counter_3B = np.stack([find_repeats(sampling, positions_B, len(images)), rows_B, epochs_B])
    draws_4TB = _draw(sampling.seed, counter_3B, NUM_TRIES + 1, CROP_STREAM)
    draws_4LB = _draw(sampling.seed, counter_3B, transform.augment.num_layers, AUGMENT_STREAM)

    # Replace damaged rows, then decide.
    rows_B = _replace_damaged(sampling, positions_B, rows_B, images)
    size, num_images = size_at(transform, position // len(images)), len(rows_B)
    ops_BL, arguments_BL = draw_ops(transform.augment, draws_4LB.swapaxes(1, 2), size)
    return Plan(
        position=position,
        size=size,
        rows_B=rows_B,
        windows_B4=random_resized_crops(draws_4TB[:, :NUM_TRIES], *images.sides(rows_B), transform),
        resized_B2=np.full((num_images, 2), size, np.int64),
        crops_B2=np.zeros((num_images, 2), np.int64),
        flips_B=draws_4TB[0, FLIP_BLOCK] < transform.hflip,
        ops_BL=ops_BL,
        arguments_BL=arguments_BL,
        valid_B=np.ones(num_images, bool),
        damaged_B=np.zeros(num_images, bool),
    )


def _draw(seed: int, counter_3B: np.ndarray, num_blocks: int, stream: int) -> np.ndarray:
    """Return uniform numbers for each row in its epoch, four per block: float64 [4, blocks, B].

    Args:
        counter_3B: the image's repeat number, its row, its epoch.
        stream: CROP_STREAM or AUGMENT_STREAM.
    """
    counter_4TB = np.empty((4, num_blocks, counter_3B.shape[1]), np.uint64)
    counter_4TB[:3], counter_4TB[3] = counter_3B[:, None], stream
    counter_4TB[0] = counter_4TB[0] * MOST_BLOCKS + np.arange(num_blocks, dtype=np.uint64)[:, None]
    return uniform(philox4x32(seed, counter_4TB))


def _replace_damaged(sampling: Sampling, positions_B: np.ndarray, rows_B: np.ndarray, images: Images) -> np.ndarray:
    """Return the rows with each damaged one replaced by its substitute."""
    if not len(images.damaged_D):
        return rows_B
    shown_B = rows_B.copy()
    for i in np.flatnonzero(np.isin(rows_B, images.damaged_D)):
        shown_B[i] = find_substitute(sampling, int(positions_B[i]), len(images), images.damaged_D)
    return shown_B


def size_at(transform: TrainTransform, epoch: int) -> int:
    """Return an epoch's resolution: linear between the epochs `grow`, rounded to steps, as in FFCV's recipe.

    Args:
        epoch: a whole number, so the resolution changes between two epochs only.
    """
    first, last, step = transform.first_size, transform.size, transform.size_step
    if first is None:
        return last
    start, end = transform.grow
    share = min(1.0, max(0.0, (epoch - start) / (end - start)))
    exact = first + share * (last - first)

    # Round to the nearest step from first_size, or to the last size, which need not be one of them.
    offset = first % step
    rounded = round((exact - offset) / step) * step + offset
    return last if share == 1 or abs(last - exact) < abs(rounded - exact) else rounded


def sizes(transform: TrainTransform, num_epochs: float) -> list[int]:
    """Return the resolutions of a run in order, each once: torch.compile is warmed up for each of them."""
    return list(dict.fromkeys(size_at(transform, epoch) for epoch in range(math.ceil(num_epochs))))


def random_resized_crops(
    draws_4TB: np.ndarray, heights_B: np.ndarray, widths_B: np.ndarray, transform: TrainTransform
) -> np.ndarray:
    """Return crop windows as torchvision's RandomResizedCrop.get_params: the first of ten tries that fits, or a
    central window if none does.

    Args:
        draws_4TB: uniform numbers in [0, 1) for area, log ratio, top and left of each try.

    Returns:
        int64 [B, 4]: top, left, height, width.
    """
    # The size of each try.
    area_TB = heights_B * widths_B * _between(draws_4TB[0], *transform.scale)
    ratio_TB = np.exp(_between(draws_4TB[1], *np.log(transform.ratio)))
    w_TB = np.rint(np.sqrt(area_TB * ratio_TB)).astype(np.int64)
    h_TB = np.rint(np.sqrt(area_TB / ratio_TB)).astype(np.int64)
    fits_TB = (w_TB > 0) & (w_TB <= widths_B) & (h_TB > 0) & (h_TB <= heights_B)

    # The first try that fits the image, and its place; argmax returns 0 if none fits.
    first_B = fits_TB.argmax(axis=0)
    height_B, width_B, top_B, left_B = (
        np.take_along_axis(x_TB, first_B[None], axis=0)[0] for x_TB in (h_TB, w_TB, draws_4TB[2], draws_4TB[3])
    )
    top_B = np.floor(top_B * (heights_B - height_B + 1)).astype(np.int64)
    left_B = np.floor(left_B * (widths_B - width_B + 1)).astype(np.int64)
    found_B4 = np.stack([top_B, left_B, height_B, width_B], axis=1)

    # The fallback where none fits.
    found_B = np.any(fits_TB, axis=0)
    return np.where(found_B[:, None], found_B4, _central_crops(heights_B, widths_B, transform.ratio))


def _between(draws: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + (high - low) * draws


def _central_crops(heights_B: np.ndarray, widths_B: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """Return the largest central window whose width / height is within `ratio`, int64 [B, 4]."""
    h_B = np.minimum(heights_B, np.rint(widths_B / ratio[0]).astype(np.int64))
    w_B = np.minimum(widths_B, np.rint(heights_B * ratio[1]).astype(np.int64))
    return np.stack([(heights_B - h_B) // 2, (widths_B - w_B) // 2, h_B, w_B], axis=1)


def eval_plan(position: int, slots: range, images: Images, transform: EvalTransform, num_padding: int = 0) -> Plan:
    """Return the plan of `slots` of the batch at `position`, in the index's order, with `num_padding` slots after them.

    Padding, and slots past the end of the index, repeat the last image and are marked as not valid. A damaged image is
    not replaced by another one: a black image takes its place, which counts as wrong.
    """
    positions_B = position + np.arange(slots.start, slots.stop + num_padding, dtype=np.int64)
    end = min(position + slots.stop, len(images))
    rows_B = np.minimum(positions_B, max(0, end - 1))
    damaged_B = np.isin(rows_B, images.damaged_D)
    heights_B, widths_B = (np.where(damaged_B, DAMAGED_SIDE, sides_B) for sides_B in images.sides(rows_B))
    windows_B4 = central_windows(heights_B, widths_B, transform)
    resized_B2 = resized_sizes(windows_B4[:, 2], windows_B4[:, 3], transform.resize)
    return Plan(
        position=position,
        size=transform.size,
        rows_B=rows_B,
        windows_B4=windows_B4,
        resized_B2=resized_B2,
        # torchvision.transforms.functional.center_crop rounds half to even
        crops_B2=np.rint((resized_B2 - transform.size) / 2).astype(np.int64),
        flips_B=np.zeros(len(rows_B), bool),
        ops_BL=np.zeros((len(rows_B), 0), np.int64),
        arguments_BL=np.zeros((len(rows_B), 0)),
        valid_B=positions_B < end,
        damaged_B=damaged_B,
    )


def central_windows(heights_B: np.ndarray, widths_B: np.ndarray, transform: EvalTransform) -> np.ndarray:
    """Return the part of each image that evaluation resizes, int64 [B, 4]: top, left, height, width.

    It is the full image, except for strips, which are more than LONGEST_RATIO times as long as wide. Of a strip it is
    a central part that gives the same crop: the full image of 1 x 60,000 pixels would take 12 GB after resizing.
    """
    longest = max(LONGEST_RATIO, 2 * math.ceil(transform.size / transform.resize))
    windows_B4 = np.stack([np.zeros_like(heights_B), np.zeros_like(heights_B), heights_B, widths_B], axis=1)
    sides_B2 = windows_B4[:, 2:]
    for i in np.flatnonzero(sides_B2.max(axis=1) > longest * sides_B2.min(axis=1)):
        axis = int(sides_B2[i].argmax())
        short, whole = int(sides_B2[i].min()), int(sides_B2[i].max())
        part = _central_part(short, whole, longest * short, transform.resize)
        windows_B4[i, axis], windows_B4[i, 2 + axis] = (whole - part) // 2, part
    return windows_B4


def _central_part(short: int, whole: int, least: int, resize: int) -> int:
    """Return the length, at least `least`, of the central part of a strip whose crop is nearest to that of the strip.

    The part and the full strip are both resized to a whole number of pixels, so their scales differ slightly. Of all
    lengths from `least` to twice that, this chooses the one with the nearest scale. The lengths have the parity of
    `whole`, so that the middles agree. If possible the resized lengths differ by a multiple of 4 pixels, so that the
    crops' rounding to even agrees too.

    Args:
        short, whole: the sides of the strip in pixels.
        resize: the short side after resizing.
    """
    parts_P = np.arange(whole - (whole - least) // 2 * 2, min(whole, 2 * least) + 1, 2)
    resized_P, resized = resize * parts_P // short, resize * whole // short
    aligned_P = (resized - resized_P) % 4 == 0
    candidates_P = np.flatnonzero(aligned_P) if aligned_P.any() else np.arange(len(parts_P))
    errors_P = np.abs(resized_P[candidates_P] / parts_P[candidates_P] - resized / whole)
    return int(parts_P[candidates_P[errors_P.argmin()]])


def resized_sizes(heights_B: np.ndarray, widths_B: np.ndarray, short_side: int) -> np.ndarray:
    """Return heights and widths after resizing the short side to `short_side`, int64 [B, 2].

    The long side is truncated, as in torchvision.transforms.functional._compute_resized_output_size.
    """
    sides_B2 = np.stack([heights_B, widths_B], axis=1)
    return (short_side * sides_B2 / sides_B2.min(axis=1, keepdims=True)).astype(np.int64)
