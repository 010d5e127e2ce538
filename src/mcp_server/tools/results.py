"""The types that a tool derives from the output of its program: observations, coverage, and a digest for answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from mcp_server.model.host import Host
from mcp_server.model.run import Coverage

Observation = Host
"""A fact that a tool observed. Hosts are the only kind so far."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """The result of a parser at the end of the output.

    ``complete`` is true if the output was complete, else ``error`` has the reason. ``version`` is of the program.
    """

    coverage: Coverage
    complete: bool
    version: str = ""
    warnings: tuple[str, ...] = ()
    error: str | None = None


class OutputParser(Protocol):
    """Parses the standard output of one run as it arrives, without keeping the results."""

    @property
    def progress(self) -> float | None:
        """The share of the work that is done, from 0.0 to 1.0, or None if the program does not report it."""
        ...

    def feed(self, data: bytes) -> Iterable[Observation]:
        """Take the next bytes and return the observations that they completed. Never raises on malformed output."""
        ...

    def close(self) -> Parsed:
        """Return the coverage. Observations that `feed` returned stay valid if the output was cut short."""
        ...


class DigestView(Protocol):
    """The part of a digest that fits into one answer. Text of targets is only in `from_target`."""

    @property
    def summary(self) -> str:
        """The counts in a few words."""
        ...

    def fields(self) -> dict[str, Any]:
        """Return the fields of a structured answer. `MCPBaseTool.result_fields` is their schema."""
        ...

    def lines(self) -> list[str]:
        """Return the same content as lines of text."""
        ...

    def from_target(self) -> dict[str, dict[str, str]]:
        """Return text of targets by its source and its number."""
        ...


class Digest(Protocol):
    """Collects the observations of one run, for progress reports, for the counts of the run, and for a short answer."""

    @property
    def counts(self) -> dict[str, int]:
        """The counts of the run by name."""
        ...

    @property
    def summary(self) -> str:
        """The most important counts in a few words, for progress reports."""
        ...

    def add(self, observation: Observation) -> None:
        """Add one observation to the digest."""
        ...

    def view(self, budget_chars: int) -> DigestView:
        """Return as much as fits into ``budget_chars`` characters of JSON."""
        ...
