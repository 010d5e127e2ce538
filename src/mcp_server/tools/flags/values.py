"""The types of flag values. Each parses ASCII text into a typed value, and writes that value in a canonical spelling.

For every type ``parse(emit(parse(text))) == parse(text)``. `Value.emit` uses only the typed value. No canonical
spelling begins with ``-``, ``@`` or ``+``, or contains a space, a comma or a slash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

INT_MAX = 2**31 - 1
"""The highest value of INT. It is the highest C ``int``, because programs read numbers into that type."""

_INT = re.compile(r"(?:0|[1-9][0-9]{0,9})\Z")
_FLOAT = re.compile(r"(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,3})?\Z")
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}\Z")
_DURATION = re.compile(r"([1-9][0-9]{0,8})(ms|s|m|h)\Z")
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


class Value(Protocol):
    """The type of a flag's value."""

    @property
    def label(self) -> str:
        """The word for the value in documentation, for example ``INT 1-255``."""
        ...

    def parse(self, text: str) -> Any:
        """Return the typed value of ASCII ``text``. Raises ValueError that says what was expected or what is wrong."""
        ...

    def emit(self, value: Any) -> str:
        """Return the canonical spelling of a typed value."""
        ...


@dataclass(frozen=True, slots=True)
class IntValue:
    """A whole number from ``low`` to ``high`` in ASCII digits, without sign or leading zero."""

    low: int = 0
    high: int = INT_MAX

    @property
    def label(self) -> str:
        """The label: ``INT low-high``."""
        return f"INT {self.low}-{self.high}"

    def parse(self, text: str) -> int:
        """Return the number."""
        if not _INT.match(text) or not self.low <= int(text) <= self.high:
            raise ValueError(f"expected a whole number from {self.low} to {self.high}")
        return int(text)

    def emit(self, value: int) -> str:
        """Return its decimal digits."""
        return str(value)


@dataclass(frozen=True, slots=True)
class FloatValue:
    """A decimal number from ``low`` to ``high`` with at most three decimals, without sign or exponent."""

    low: float = 0.0
    high: float = float(INT_MAX)

    @property
    def label(self) -> str:
        """The label: ``FLOAT low-high``."""
        return f"FLOAT {self.emit(self.low)}-{self.emit(self.high)}"

    def parse(self, text: str) -> float:
        """Return the number."""
        if not _FLOAT.match(text) or not self.low <= float(text) <= self.high:
            raise ValueError(
                f"expected a number from {self.emit(self.low)} to {self.emit(self.high)} with at most three decimals"
            )
        return float(text)

    def emit(self, value: float) -> str:
        """Return its shortest spelling without an exponent: ``0.5`` or ``2``."""
        return f"{value:.3f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class ChoiceValue:
    """One of a closed list of words, spelled exactly."""

    choices: tuple[str, ...]

    @property
    def label(self) -> str:
        """The label: ``CHOICE a|b|c``."""
        return f"CHOICE {'|'.join(self.choices)}"

    def parse(self, text: str) -> str:
        """Return the choice."""
        if text not in self.choices:
            raise ValueError(f"expected one of {', '.join(self.choices)}")
        return self.choices[self.choices.index(text)]

    def emit(self, value: str) -> str:
        """Return the choice."""
        return value


@dataclass(frozen=True, slots=True)
class WordValue:
    """A plain word: 1 to 64 ASCII letters, digits, ``_`` or ``-``, not beginning with ``-``."""

    @property
    def label(self) -> str:
        """The label: ``WORD``."""
        return "WORD"

    def parse(self, text: str) -> str:
        """Return the word."""
        if not _WORD.match(text):
            raise ValueError("expected 1 to 64 of the characters A-Z a-z 0-9 _ -, not beginning with '-'")
        return text

    def emit(self, value: str) -> str:
        """Return the word."""
        return value


@dataclass(frozen=True, slots=True)
class DurationValue:
    """A time from ``low`` to ``high`` milliseconds, written with its unit: ``1500ms``, ``30s``, ``5m``, ``1h``.

    The unit is required because programs read a bare number differently. The canonical spelling is in seconds if they
    are whole, else in milliseconds.
    """

    low: int = 1
    high: int = 24 * 3_600_000

    @property
    def label(self) -> str:
        """The label: ``DURATION low-high``."""
        return f"DURATION {self.emit(self.low)}-{self.emit(self.high)}"

    def parse(self, text: str) -> int:
        """Return milliseconds."""
        match = _DURATION.match(text)
        if match:
            milliseconds = int(match[1]) * _MILLISECONDS[match[2]]
            if self.low <= milliseconds <= self.high:
                return milliseconds
        raise ValueError(
            f"expected a time from {self.emit(self.low)} to {self.emit(self.high)} with its unit, "
            "as in 1500ms, 30s, 5m or 1h"
        )

    def emit(self, value: int) -> str:
        """Return ``30s`` or ``1500ms``."""
        return f"{value}ms" if value % 1000 else f"{value // 1000}s"
