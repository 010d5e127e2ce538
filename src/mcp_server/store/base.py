"""The contract of a store: what is remembered of every run, and how it is read back in pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mcp_server.model.host import Host
from mcp_server.model.run import Outcome, Raw, Run

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page: its items in a stable order, how many there are in all, and the cursor of the next page or None."""

    items: tuple[T, ...]
    total: int
    next_cursor: str | None = None


class Store(Protocol):
    """Runs, coverage, addresses, endpoints, services and observations. One instance serves one process.

    ``caller`` is the name of an actor of an HTTP interface, and then there are no runs but those it had made over one; None:
    all there are. To that actor a run of another one is `NotFoundError` as one is that never was, found out by the one
    question that looks for it.

    All methods raise `PlatformError` (``store_unavailable``, ``disk_full``) when the medium fails, and
    `NotFoundError` (``unknown_run``) for an id that is not there.
    """

    async def open(self) -> tuple[str, ...]:
        """Create or migrate the schema, mark runs of dead owners ``interrupted``, and return the ids of those."""
        ...

    async def close(self) -> None:
        """Release every connection; safe to call twice."""
        ...

    async def begin(self, run: Run) -> None:
        """Write a run that is about to start, owned by this process."""
        ...

    async def add_hosts(self, run: Run, hosts: Sequence[Host]) -> None:
        """Append observations of a running run and fold them into addresses, endpoints and services."""
        ...

    async def finish(self, run: Run) -> None:
        """Write how a run ended: outcome, coverage, raw output, error."""
        ...

    async def get_run(self, run_id: str, *, caller: str | None = None) -> Run:
        """Return one run."""
        ...

    async def list_runs(
        self,
        *,
        limit: int = 50,
        cursor: str | None = None,
        tool: str | None = None,
        outcome: Outcome | None = None,
        caller: str | None = None,
    ) -> Page[Run]:
        """Return runs, newest first."""
        ...

    async def hosts(
        self, run_id: str, *, limit: int = 100, cursor: str | None = None, caller: str | None = None
    ) -> Page[Host]:
        """Return what a run observed, in the order of address."""
        ...

    async def read_raw(self, raw: Raw, offset: int, limit: int) -> bytes:
        """Return at most ``limit`` bytes of raw output from ``offset`` bytes on; empty at and past the end.

        Its cost grows with ``offset``: read the whole with `iter_raw`.
        """
        ...

    def iter_raw(self, raw: Raw) -> AsyncIterator[bytes]:
        """Yield the whole raw output in pieces of at most 256 KiB; what is damaged raises before the first."""
        ...
