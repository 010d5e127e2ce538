"""What a benchmark hands back, and how it is printed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of repeated measurements with the lowest and the highest, in ``unit``: ``3 ms (2 .. 9)``."""

    median: float
    low: float
    high: float
    unit: str
    count: int

    @classmethod
    def of(cls, values: Sequence[float], unit: str) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values), unit, len(values))

    def __str__(self) -> str:
        if self.count == 1:
            return f"{_short(self.median)} {self.unit}"
        return f"{_short(self.median)} {self.unit} ({_short(self.low)} .. {_short(self.high)})"


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table: what was measured, what it is compared with, and whether the bound holds.

    ``figure`` and ``floor`` are already text with their unit; ``ratio`` is figure over floor where that means
    something. ``notes`` are printed below the table.
    """

    name: str
    figure: str
    bound: str
    within: bool
    floor: str = ""
    ratio: float | None = None
    notes: tuple[str, ...] = ()


def table(results: Iterable[Result]) -> str:
    """The results as an aligned table, with the notes below it."""
    results = list(results)
    rows = [("", "figure", "floor", "ratio", "bound", "")]
    rows += [
        (
            result.name,
            result.figure,
            result.floor or "-",
            "-" if result.ratio is None else f"{result.ratio:.2f}",
            result.bound,
            "ok" if result.within else "MISSED",
        )
        for result in results
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"{result.name}: {note}" for result in results for note in result.notes]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _short(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
