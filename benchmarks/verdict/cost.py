"""Hours and dollars of a complete recipe at a given rate."""

from dataclasses import dataclass
from typing import Any

from train.config import Recipe

IMAGENET_IMAGES = 1_281_167  # of ImageNet-1k's train split


@dataclass(frozen=True)
class Cost:
    """The cost of one recipe on ImageNet-1k, without evaluation and start-up."""

    recipe: Recipe
    dollars_per_hour: float | None

    def hours(self, images_per_second: float) -> float:
        return self.recipe.epochs * IMAGENET_IMAGES / images_per_second / 3600

    def dollars(self, images_per_second: float) -> float | None:
        return None if self.dollars_per_hour is None else self.hours(images_per_second) * self.dollars_per_hour

    def describe(self, images_per_second: float) -> str:
        """Return the cost in words, such as `12.3 hours, 69.74 dollars`."""
        hours, dollars = self.hours(images_per_second), self.dollars(images_per_second)
        shown = f"{hours:,.1f} hours" if hours < 100 else f"{hours / 24:,.1f} days"
        return shown if dollars is None else f"{shown}, {dollars:,.2f} dollars"

    def to_dict(self, images_per_second: float) -> dict[str, Any]:
        """Return the cost for a record."""
        return {
            "name": self.recipe.name,
            "epochs": self.recipe.epochs,
            "hours": self.hours(images_per_second),
            "dollars": self.dollars(images_per_second),
        }
