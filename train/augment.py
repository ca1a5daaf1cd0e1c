"""What happens to a batch on the device before the network sees it: normalised, erased in, mixed.

All of it is a function of (seed, position). The plan's own augmentations are done by then (`loaders/`).
"""

import torch

from loaders import World
from loaders.normalize import Normalize
from train.config import Recipe
from train.erase import draw_boxes, erase
from train.mix import Mix, draw_mix, mix_images


class Augment:
    """Augments batches of one run."""

    def __init__(self, recipe: Recipe, epoch_size: int, world: World) -> None:
        self.recipe, self.epoch_size = recipe, epoch_size
        self.normalize = Normalize(recipe.model.mean, recipe.model.std).to(world.device)

    @torch.no_grad()
    def __call__(self, images_BCHW: torch.Tensor, position: int) -> tuple[torch.Tensor, Mix]:
        """Images for the network, and how their labels mix.

        Args:
            images_BCHW: uint8, square, consecutive in the stream.
            position: of the first one.

        Returns:
            float32 images, of the same memory format.
        """
        recipe, num_images, size = self.recipe, len(images_BCHW), images_BCHW.shape[-1]
        images_BCHW = self.normalize(images_BCHW)
        if recipe.erase.probability > 0 and self._is_before(recipe.erase.until, position):
            boxes_B4 = torch.from_numpy(draw_boxes(recipe.erase, recipe.seed, position, num_images, size))
            images_BCHW = erase(images_BCHW, boxes_B4.to(images_BCHW.device, non_blocking=True))
        mix = Mix()
        if self._is_before(recipe.mix.until, position):
            mix = draw_mix(recipe.mix, recipe.seed, position, size)
        return mix_images(images_BCHW, mix), mix

    def _is_before(self, epoch: float | None, position: int) -> bool:
        return epoch is None or position < epoch * self.epoch_size
