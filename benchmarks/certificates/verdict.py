"""A certificate: what was measured, what was expected, the limit between right and wrong, and where that comes from."""

from dataclasses import dataclass, field
from typing import Any

CHANCE = 1e-4  # that a uniform permutation is refused, for each statistical certificate


@dataclass(frozen=True)
class Certificate:
    """One line of the table; `passed` is None where nothing was judged, and `measured` says why."""

    name: str
    passed: bool | None
    measured: str
    expected: str
    limit: str  # and its source
    figures: dict[str, Any] = field(default_factory=dict)  # the same for the record and the picture

    @property
    def verdict(self) -> str:
        """One word."""
        return {True: "pass", False: "FAIL", None: "not judged"}[self.passed]


def list_failed(certificates: list[Certificate]) -> list[str]:
    """The names of those that failed."""
    return [each.name for each in certificates if each.passed is False]
