"""The deletion test: does a map show what the network uses? Hide its warmest places and measure the class again.

After V. Petsiuk et al., RISE, arXiv 1806.07421. A map passes if hiding its warmest fifth lowers the probability of its
class more than hiding an equal area elsewhere. H and W are the crop's side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from serve.artifact import Served
from serve.predict import predict_probabilities

SHARE = 0.2  # of the picture that is hidden
GRID = 14  # places along each side that are hidden or not, for all methods the same
NUM_SHIFTS = 8  # random positions elsewhere, of which the mean is taken


@dataclass(frozen=True)
class Deletion:
    """The probability of a class before and after places were hidden."""

    before: float
    warmest: float  # the map's warmest places are hidden
    elsewhere: float  # as many places elsewhere are hidden, the mean over random positions

    @property
    def is_convincing(self) -> bool:
        """True if hiding the warmest places lowers the probability more than hiding others."""
        return self.warmest < min(self.before, self.elsewhere)


def measure_deletion(
    served: Served, image_CHW: torch.Tensor, label: int, map_HW: torch.Tensor, seed: int
) -> Deletion | None:
    """Return the probability of a class before and after hiding; None for an empty map or a single pixel.

    Places become 0, the mean colour of the training set. At most a fifth is hidden, and only where the map is above 0.
    The comparison hides the same shape at random shifts that wrap around the edges. Scattered places would change the
    picture more.

    Args:
        image_CHW: the network's input, float32 [3, H, W].
        map_HW: the map for display, 0 to 1.
        seed: of the shifts.
    """
    if not map_HW.any() or min(map_HW.shape) < 2:  # a map of one place cannot be shifted
        return None
    hidden_1gg = choose_warmest(map_HW)[None]
    side = hidden_1gg.shape[-1]

    # Shift the mask by a number of places that is not 0 in both directions.
    shifts = 1 + torch.randperm(side * side - 1, generator=torch.Generator().manual_seed(seed))[:NUM_SHIFTS]
    shifted = [hidden_1gg.roll((shift // side, shift % side), (1, 2)) for shift in shifts.tolist()]
    masks_B1gg = torch.stack([torch.zeros_like(hidden_1gg), hidden_1gg, *shifted]).float()

    # Hide the places, and predict all variants in one batch.
    masks_B1HW = functional.interpolate(masks_B1gg, tuple(image_CHW.shape[-2:]), mode="nearest")
    probabilities_B = predict_probabilities(served, image_CHW * (1 - masks_B1HW))[:, label]
    before, warmest, *others = probabilities_B.tolist()
    return Deletion(before, warmest, sum(others) / len(others))


def choose_warmest(map_HW: torch.Tensor) -> torch.Tensor:
    """Return which places of a grid are the warmest fifth, bool [g, g]; fewer if the map is 0 elsewhere."""
    side = min(GRID, *map_HW.shape)
    means_gg = functional.adaptive_avg_pool2d(map_HW[None], side)[0]
    num_hidden = max(1, round(SHARE * side * side))
    hidden_N = torch.zeros(side * side, dtype=torch.bool)
    hidden_N[means_gg.flatten().argsort(descending=True, stable=True)[:num_hidden]] = True
    return hidden_N.view(side, side) & (means_gg > 0)


def describe_deletions(deletions: Sequence[Deletion]) -> str:
    """Return the means over the shown pictures in one sentence, and what follows from them."""
    number = len(deletions)
    before = sum(each.before for each in deletions) / number
    warmest = sum(each.warmest for each in deletions) / number
    elsewhere = sum(each.elsewhere for each in deletions) / number
    num_convincing = sum(each.is_convincing for each in deletions)
    words = (
        f"check of the maps: hiding the warmest 20% lowers the predicted class's mean probability from {before:.2f} to "
        f"{warmest:.2f}, hiding as much elsewhere to {elsewhere:.2f}; the map beats elsewhere in {num_convincing} of "
        f"{number} pictures"
    )
    if num_convincing * 2 <= number:
        return f"{words}. These maps do not show what the predictions depend on"
    return words
