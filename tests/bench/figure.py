"""A figure: two things measured in pairs, and what the pairs say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Literal, TypeVar

from codex_tools.codex.json_object import Json

Samples = tuple[float, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: ours, what it stands beside, what the pairs say."""

    section: str
    what: str
    unit: str
    ours: Samples
    beside_what: str
    beside: Samples
    compare: Literal["difference", "ratio"]
    limit: float | None = None
    limit_of: Literal["pairs", "ours"] = "pairs"

    @property
    def pairs(self) -> Samples:
        """The difference or the ratio of each pair."""
        both = zip(self.ours, self.beside, strict=True)
        if self.compare == "difference":
            return tuple(a - b for a, b in both)
        return tuple(a / b for a, b in both)

    @property
    def held(self) -> bool | None:
        """Whether the limit held; None where there is none."""
        if self.limit is None:
            return None
        return median(self.pairs if self.limit_of == "pairs" else self.ours) <= self.limit

    def to_json(self) -> Json:
        pairs: Json = {"compare": self.compare, "median": median(self.pairs)}
        pairs["quartiles"] = spread(self.pairs)
        return {
            "section": self.section,
            "what": self.what,
            "unit": self.unit,
            "ours": {"median": median(self.ours), "min": min(self.ours)},
            "beside": {
                "what": self.beside_what,
                "median": median(self.beside),
                "min": min(self.beside),
            },
            "pairs": pairs | {"count": len(self.pairs)},
            "limit": self.limit,
            "limit_of": self.limit_of if self.limit is not None else None,
            "held": self.held,
        }


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile of *values*."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = quantiles(values, method="inclusive")
    return first, third


def pair(number: int, ours: Callable[[], T], beside: Callable[[], T]) -> tuple[T, T]:
    """Measure both, next to each other; in every other pair the second goes first."""
    if number % 2:
        second = beside()
        return ours(), second
    return ours(), beside()
