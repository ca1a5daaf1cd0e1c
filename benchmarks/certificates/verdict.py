"""A certificate: the measured and the expected value, the limit between pass and fail, and the source of that limit."""

from dataclasses import dataclass, field
from typing import Any

CHANCE = 1e-4  # probability that a statistical certificate rejects a uniform permutation


@dataclass(frozen=True)
class Certificate:
    """One line of the table. `passed` is None if nothing could be measured; `measured` then says why."""

    name: str
    passed: bool | None
    measured: str
    expected: str
    limit: str  # with its source
    figures: dict[str, Any] = field(default_factory=dict)  # the same values for the record and the picture

    @property
    def verdict(self) -> str:
        """The outcome for the table: pass, FAIL or not judged."""
        return {True: "pass", False: "FAIL", None: "not judged"}[self.passed]


def list_failed(certificates: list[Certificate]) -> list[str]:
    """Return the names of the certificates that failed."""
    return [each.name for each in certificates if each.passed is False]
