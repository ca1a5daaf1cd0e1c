"""Hours and dollars of a complete recipe at a given rate."""

from dataclasses import dataclass
from typing import Any

from train.config import Recipe

MOST_MINUTES, MOST_HOURS = 120, 100  # longer times are given in hours, or in days
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
        return describe_hours(self.hours(images_per_second), self.dollars_per_hour)

    def to_dict(self, images_per_second: float) -> dict[str, Any]:
        """Return the cost for a record."""
        return {
            "name": self.recipe.name,
            "epochs": self.recipe.epochs,
            "hours": self.hours(images_per_second),
            "dollars": self.dollars(images_per_second),
        }


def describe_hours(hours: float, dollars_per_hour: float | None) -> str:
    """Return a time and its cost in words, such as `12.3 hours, 69.74 dollars`."""
    if hours < MOST_MINUTES / 60:
        shown = f"{60 * hours:,.1f} minutes"
    else:
        shown = f"{hours:,.1f} hours" if hours < MOST_HOURS else f"{hours / 24:,.1f} days"
    return shown if dollars_per_hour is None else f"{shown}, {hours * dollars_per_hour:,.2f} dollars"
