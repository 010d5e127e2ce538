"""The results of benchmarks, and the table that shows them.

A bound on time is a ratio to a floor, so that it holds on a slow machine and on a busy one. The floor is other work,
which is measured in the same run and alternates with the measured work.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """The median, lowest and highest value of repeated measurements: ``3 ms (2 .. 9)``."""

    median: float
    low: float
    high: float
    unit: str
    count: int

    @classmethod
    def of(cls, values: Sequence[float], unit: str) -> Range:
        """Return the range of at least one value."""
        return cls(statistics.median(values), min(values), max(values), unit, len(values))

    def __str__(self) -> str:
        if self.count == 1:
            return f"{_short(self.median)} {self.unit}"
        return f"{_short(self.median)} {self.unit} ({_short(self.low)} .. {_short(self.high)})"


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table: the measured value, the floor it is compared with, and whether the bound is met.

    ``measured`` and ``floor`` are texts with a unit. ``ratio`` is the measured value divided by the floor, or
    None if the two are not compared. ``notes`` are printed below the table.
    """

    name: str
    measured: str
    bound: str
    within: bool
    floor: str = ""
    ratio: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of_ratio(
        cls,
        name: str,
        measured: Sequence[float],
        floor: Sequence[float],
        unit: str,
        at_most: float,
        notes: tuple[str, ...] = (),
    ) -> Result:
        """Return a result with a bound on the median ratio of the rounds.

        ``measured`` and ``floor`` have one value per round. The ratio is taken within a round, because both values of a
        round are affected by the same load of the machine.
        """
        ratio = statistics.median(value / low for value, low in zip(measured, floor, strict=True))
        return cls(
            name,
            str(Range.of(measured, unit)),
            f"ratio <= {at_most:g}",
            ratio <= at_most,
            floor=str(Range.of(floor, unit)),
            ratio=ratio,
            notes=notes,
        )


def table(results: Iterable[Result]) -> str:
    """Return the results as an aligned table with the notes below it."""
    results = list(results)
    rows = [("", "measured", "floor", "ratio", "bound", "")]
    rows += [
        (
            result.name,
            result.measured,
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
    """Return a number with three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
