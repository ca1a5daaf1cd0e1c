"""Check a model's accuracy before anything is drawn: better than chance, and as good as its artifact records.

The pictures of a model with wrong weights, or with classes in another order, explain nothing.
"""

import math
from dataclasses import dataclass

from prep.errors import InputError
from serve.artifact import Recorded, Served
from serve.pictures import Source

Z_99 = 2.5758293035489004  # two-sided 99% quantile of the normal distribution


@dataclass(frozen=True)
class Count:
    """Top-1 hits on all images that were read."""

    num_hits: int
    num_images: int

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * self.num_hits / self.num_images

    def interval(self) -> tuple[float, float]:
        """Return the 99% interval of the share of hits, 0 to 1: E. B. Wilson, "Probable Inference", JASA 22 (1927)."""
        share, weight = self.num_hits / self.num_images, Z_99**2 / self.num_images
        middle = (share + weight / 2) / (1 + weight)
        half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
        # Without hits the lower end is exactly 0, and without misses the upper end exactly 1; rounding may differ.
        low = middle - half if self.num_hits else 0.0
        return low, middle + half if self.num_hits < self.num_images else 1.0


def count_recorded(recorded: Recorded) -> Count:
    """Return the accuracy that an artifact records, as a `Count`."""
    return Count(recorded.num_top1, recorded.num_images)


def find_source_doubts(count: Count, served: Served, source: Source) -> list[str]:
    """Return the reasons not to trust a model that was measured on a source, one sentence each.

    The recorded accuracy is compared only if all of the model's classes have images: on a part of them it differs.

    Raises:
        InputError: no image was read.
    """
    is_whole = source.num_present >= served.num_classes
    return find_doubts(count, source.num_present, served.recorded if is_whole else None)


def find_doubts(count: Count, num_classes: int, recorded: Recorded | None) -> list[str]:
    """Return the reasons not to trust the model, one sentence each; an empty list if there are none.

    Args:
        num_classes: the number of classes that have images. A broken network often gives the same answer for every
            image. On balanced images that is right for up to 1 in `num_classes`, so this is chance: with 200 folders
            and 1,000 outputs it is 1/200, and not the 1/1,000 of guesses spread over all outputs.

    Raises:
        InputError: no image was read.
    """
    if not count.num_images:
        raise InputError("found no image to measure accuracy on: give a folder with images")
    low, high = count.interval()
    doubts = []
    if num_classes == 1:
        doubts.append(
            f"top-1 is {describe_accuracy(count)}, and all images are of one class: a network that always gives this "
            "answer is as good; give images of at least two classes"
        )
    elif low <= 1 / num_classes:
        doubts.append(
            f"top-1 is {describe_accuracy(count)}, not better than chance ({100 / num_classes:.3g}%): "
            "the weights are wrong, the classes are in another order, or there are too few images"
        )
    if recorded is not None and not low <= recorded.top1 / 100 <= high:
        doubts.append(
            f"top-1 is {describe_accuracy(count)}, and the artifact records {recorded.top1:.2f}% on {recorded.split} "
            f"of {recorded.dataset or 'its data'}: these are other images, classes in another order, or another model"
        )
    return doubts


def describe_accuracy(count: Count) -> str:
    """Return the accuracy with its interval, in words."""
    low, high = count.interval()
    return f"{count.top1:.2f}% of {count.num_images:,} images (99% interval {100 * low:.2f} to {100 * high:.2f}%)"
