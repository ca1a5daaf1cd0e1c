"""The plan: which pixels make a batch, decided before anything is read or decoded. Pure functions.

Shapes: B images of one rank's batch, N of a split, D damaged ones, T tries of a random crop, L layers of operations.
All randomness is a function of (seed, epoch, sample); what was drawn before never matters.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from loaders.augment import AugmentConfig, draw_ops
from loaders.order import Sampling, find_repeats, find_substitute, locate
from loaders.philox import philox4x32, uniform

NUM_TRIES = 10  # torchvision.transforms.RandomResizedCrop.get_params
FLIP_BLOCK = NUM_TRIES  # each try takes one Philox block of four words; the flip takes the next
MOST_BLOCKS = 1 << 16  # of one image; those of its repeats follow
CROP_STREAM, AUGMENT_STREAM = 0, 16  # of the random numbers; the trainer has others
SIZE_STEP = 32  # pixels: the stride of most networks, and few shapes to compile for
LONGEST_RATIO = 32  # of long to short side that evaluation resizes: ImageNet's images stay below
DAMAGED_SIDE = 64  # pixels of the black image that stands in for a damaged one in evaluation


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop and flip, as torchvision defines them, then operations; and the resolution of each epoch."""

    size: int = 224  # pixels, of the square output
    first_size: int | None = None  # pixels in the first epochs, where resolution is progressive
    grow: tuple[float, float] = (0.0, 0.0)  # epochs between which first_size becomes size
    scale: tuple[float, float] = (0.08, 1.0)  # crop area, as a share of the image's
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # crop width / height
    hflip: float = 0.5  # probability of a horizontal flip
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # what each image goes through after that


@dataclass(frozen=True)
class EvalTransform:
    """Resize the short side to `resize`, then crop `size` from the centre, as torchvision defines them."""

    size: int = 224
    resize: int = 256


@dataclass(frozen=True)
class Images:
    """What a plan has to know of a split's images."""

    widths_N: np.ndarray  # pixels, integers
    heights_N: np.ndarray
    damaged_D: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # rows that cannot be decoded

    def __len__(self) -> int:
        return len(self.widths_N)

    def sides(self, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Heights and widths of some rows, int64 [B] each."""
        return self.heights_N[rows_B].astype(np.int64), self.widths_N[rows_B].astype(np.int64)


@dataclass(frozen=True)
class Plan:
    """One rank's batch: decode `windows`, resize each to `resized`, crop `size` at `crops`, flip, do `ops` in turn."""

    position: int  # of the global batch's first image in the stream
    size: int  # pixels, of the square output
    rows_B: np.ndarray  # int64, in the sample index
    windows_B4: np.ndarray  # int64: top, left, height, width, in source pixels
    resized_B2: np.ndarray  # int64: height, width
    crops_B2: np.ndarray  # int64: top, left, in resized pixels
    flips_B: np.ndarray  # bool
    ops_BL: np.ndarray  # int64, of `loaders.augment.Op`; no layers without augmentation
    arguments_BL: np.ndarray  # float64: what each operation is given
    valid_B: np.ndarray  # bool: False for padding
    damaged_B: np.ndarray  # bool: a black image of DAMAGED_SIDE is shown instead (evaluation alone)


def train_plan(sampling: Sampling, position: int, slots: range, images: Images, transform: TrainTransform) -> Plan:
    """The plan of the images in `slots` (one rank's share) of the global batch at `position`.

    A damaged row's substitute gets what the damaged one's randomness gives: window, flip and operations.
    """
    positions_B = position + np.arange(slots.start, slots.stop, dtype=np.int64)
    epochs_B, rows_B = locate(sampling, positions_B, len(images))
    counter_3B = np.stack([find_repeats(sampling, positions_B, len(images)), rows_B, epochs_B])
    draws_4TB = _draw(sampling.seed, counter_3B, NUM_TRIES + 1, CROP_STREAM)
    draws_4LB = _draw(sampling.seed, counter_3B, transform.augment.num_layers, AUGMENT_STREAM)
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
    """Uniform numbers of each row in its epoch, four to a block: [4, blocks, B].

    Args:
        counter_3B: how many times in a row the image came before, its row, its epoch.
    """
    counter_4TB = np.empty((4, num_blocks, counter_3B.shape[1]), np.uint64)
    counter_4TB[:3], counter_4TB[3] = counter_3B[:, None], stream
    counter_4TB[0] = counter_4TB[0] * MOST_BLOCKS + np.arange(num_blocks, dtype=np.uint64)[:, None]
    return uniform(philox4x32(seed, counter_4TB))


def _replace_damaged(sampling: Sampling, positions_B: np.ndarray, rows_B: np.ndarray, images: Images) -> np.ndarray:
    if not len(images.damaged_D):
        return rows_B
    shown_B = rows_B.copy()
    for i in np.flatnonzero(np.isin(rows_B, images.damaged_D)):
        shown_B[i] = find_substitute(sampling, int(positions_B[i]), len(images), images.damaged_D)
    return shown_B


def size_at(transform: TrainTransform, epoch: int) -> int:
    """The resolution of an epoch: linear between those of `grow`, in steps of SIZE_STEP, as in FFCV's recipe."""
    if transform.first_size is None:
        return transform.size
    start, end = transform.grow
    share = min(1.0, max(0.0, (epoch - start) / (end - start)))
    size = transform.first_size + share * (transform.size - transform.first_size)
    return transform.size if share == 1 else round(size / SIZE_STEP) * SIZE_STEP


def sizes(transform: TrainTransform, num_epochs: float) -> list[int]:
    """The resolutions of a run in the order in which they come: for warming up what is compiled for each."""
    return list(dict.fromkeys(size_at(transform, epoch) for epoch in range(math.ceil(num_epochs))))


def random_resized_crops(
    draws_4TB: np.ndarray, heights_B: np.ndarray, widths_B: np.ndarray, transform: TrainTransform
) -> np.ndarray:
    """Crop windows by torchvision's RandomResizedCrop.get_params: the first of ten tries that fits, or its fallback.

    Args:
        draws_4TB: uniform [0, 1) numbers for area, log ratio, top and left of each try.

    Returns:
        int64 [B, 4]: top, left, height, width.
    """
    area_TB = heights_B * widths_B * _between(draws_4TB[0], *transform.scale)
    ratio_TB = np.exp(_between(draws_4TB[1], *np.log(transform.ratio)))
    w_TB = np.rint(np.sqrt(area_TB * ratio_TB)).astype(np.int64)
    h_TB = np.rint(np.sqrt(area_TB / ratio_TB)).astype(np.int64)
    fits_TB = (w_TB > 0) & (w_TB <= widths_B) & (h_TB > 0) & (h_TB <= heights_B)
    first_B = fits_TB.argmax(axis=0)
    height_B, width_B, top_B, left_B = (
        np.take_along_axis(x_TB, first_B[None], axis=0)[0] for x_TB in (h_TB, w_TB, draws_4TB[2], draws_4TB[3])
    )
    top_B = np.floor(top_B * (heights_B - height_B + 1)).astype(np.int64)
    left_B = np.floor(left_B * (widths_B - width_B + 1)).astype(np.int64)
    found_B4 = np.stack([top_B, left_B, height_B, width_B], axis=1)
    found_B = np.any(fits_TB, axis=0)
    return np.where(found_B[:, None], found_B4, _central_crops(heights_B, widths_B, transform.ratio))


def _between(draws: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + (high - low) * draws


def _central_crops(heights_B: np.ndarray, widths_B: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """The largest central window whose width / height lies within `ratio`, int64 [B, 4]."""
    h_B = np.minimum(heights_B, np.rint(widths_B / ratio[0]).astype(np.int64))
    w_B = np.minimum(widths_B, np.rint(heights_B * ratio[1]).astype(np.int64))
    return np.stack([(heights_B - h_B) // 2, (widths_B - w_B) // 2, h_B, w_B], axis=1)


def eval_plan(position: int, slots: range, images: Images, transform: EvalTransform, num_padding: int = 0) -> Plan:
    """Return the plan of `slots` of the batch at `position`, in the index's order, and of some padding after them.

    Padding, and what lies past the index's end, shows the last image before it and is not valid.
    Evaluation substitutes no other image for a damaged one: it shows a black one, to be counted as wrong.
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
    """The part of each image that evaluation resizes, int64 [B, 4]: top, left, height, width. Nearly always all of it.

    Of a strip, more than LONGEST_RATIO times as long as it is wide, it is a central part from which the crop comes out
    the same: resized as a whole, an image of 1 x 60,000 pixels would take 12 GB.
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
    """The length of the central part of a strip, at least `least`, whose crop is nearest to that of the whole strip.

    Both are resized to whole pixels, so their scales differ a little: of all lengths up to twice the least the one is
    taken whose scale is nearest. The lengths have the parity of the whole, so that the middles agree; so do the
    resized ones, where that can be, to 4 pixels, so that the crops' rounding to even agrees too.
    """
    parts_P = np.arange(whole - (whole - least) // 2 * 2, min(whole, 2 * least) + 1, 2)
    resized_P, resized = resize * parts_P // short, resize * whole // short
    aligned_P = (resized - resized_P) % 4 == 0
    candidates_P = np.flatnonzero(aligned_P) if aligned_P.any() else np.arange(len(parts_P))
    errors_P = np.abs(resized_P[candidates_P] / parts_P[candidates_P] - resized / whole)
    return int(parts_P[candidates_P[errors_P.argmin()]])


def resized_sizes(heights_B: np.ndarray, widths_B: np.ndarray, short_side: int) -> np.ndarray:
    """Heights and widths once the short side is `short_side`, int64 [B, 2].

    The long side is truncated, as in torchvision.transforms.functional._compute_resized_output_size.
    """
    sides_B2 = np.stack([heights_B, widths_B], axis=1)
    return (short_side * sides_B2 / sides_B2.min(axis=1, keepdims=True)).astype(np.int64)
