"""A sign: something that slows training down and that no rate of a stage shows alone; its figures, in a sentence."""

from dataclasses import dataclass
from typing import Any

COMMUNICATION, LAUNCHING, ENGINES, DISTANCE, CLOCKS = "communication", "launching", "engines", "distance", "clocks"


@dataclass(frozen=True)
class Sign:
    """One sign that was measured, whether or not it exceeds its limit."""

    name: str
    is_found: bool  # it exceeds its limit, and the sentence ends with advice
    share: float  # how strong it is, from 0 to 1
    says: str
    figures: dict[str, Any]
