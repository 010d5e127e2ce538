"""What a policy says beside where: terms of a line, limits of a call, and what a check or a grant came to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mcp_server.errors import TargetError
from mcp_server.model.run import Risk


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a line allows: the highest risk, packets a second (None: no bound), windows (none: always)."""

    max_risk: Risk = Risk.INTRUSIVE
    packets_per_second: float | None = None
    windows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyLimits:
    """Caps of one call and of an hour; None: no bound.

    ``addresses_x_ports`` is the product for one call. Packets are what a tool's estimate calls probes.
    """

    addresses_x_ports: int | None = None
    packets_per_run: int | None = None
    packets_per_hour: int | None = None
    packets_per_second: float | None = None


class PolicyEntry(NamedTuple):
    """A line of the policy that decides: its entry in canonical spelling, its terms, and its number in the file."""

    entry: str
    terms: Terms
    number: int | None = None

    def __str__(self) -> str:
        return self.entry if self.number is None else f"{self.entry} (line {self.number})"


class Verdict:
    """Whether a network or name may be touched at all; tier, rate and window are the lines' terms.

    ``entry`` names the lines that allow it, ``code`` is the refusal's code. ``lines`` are the lines that decide, in
    order of address: all of them up to 12, then at least one for each set of terms that occurs. Where it is refused
    and a line of the policy excludes it, that is the line. ``reason`` and ``hint`` are sentences, made when they are
    asked for: writing an address takes as long as looking it up.
    """

    __slots__ = ("_hint", "_reason", "allowed", "code", "entry", "lines")

    def __init__(
        self,
        allowed: bool,
        reason: Callable[[], str],
        *,
        entry: str | None = None,
        code: str | None = None,
        hint: Callable[[], str | None] | None = None,
        lines: tuple[PolicyEntry, ...] = (),
    ) -> None:
        self.allowed = allowed
        self.entry = entry
        self.code = code
        self.lines = lines
        self._reason = reason
        self._hint = hint

    @property
    def reason(self) -> str:
        """Why, in a sentence."""
        return self._reason()

    @property
    def hint(self) -> str | None:
        """What could be asked for instead, where the policy knows something."""
        return None if self._hint is None else self._hint()

    @property
    def max_risk(self) -> Risk | None:
        """The highest risk that every line that decides allows; None where nothing is allowed."""
        return min((line.terms.max_risk for line in self.lines), default=None) if self.allowed else None

    def require(self) -> None:
        """Raise TargetError with the verdict's code, reason and hint unless it allows."""
        if not self.allowed:
            raise TargetError(self.reason, code=self.code, hint=self.hint, parameter="target")


@dataclass(frozen=True, slots=True)
class Grant:
    """What the policy granted a call: by which lines, and the most packets a second (None: no bound)."""

    lines: tuple[PolicyEntry, ...] = ()
    packets_per_second: float | None = None

    @property
    def entries(self) -> tuple[str, ...]:
        """The lines as a log shows them: the entry, with its number where the policy is a file."""
        return tuple(str(line) for line in self.lines)


def strictest_rate(lines: Iterable[PolicyEntry], limits: PolicyLimits) -> float | None:
    """The lowest of the rates that lines and limits bound, in packets a second; None where nothing does."""
    rates = [line.terms.packets_per_second for line in lines]
    return min((rate for rate in (*rates, limits.packets_per_second) if rate is not None), default=None)
