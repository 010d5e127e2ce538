"""The contract of a store: it keeps every run with its observations, and returns them in pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mcp_server.model.host import Host
from mcp_server.model.run import Outcome, Raw, Run

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list: its items, the number of items in the list, and the cursor of the next page or None."""

    items: tuple[T, ...]
    total: int
    next_cursor: str | None = None


class Store(Protocol):
    """Runs, observations and raw output. One instance serves one process.

    If ``caller`` is set, only runs that this actor started over HTTP are visible. None means no filter. The run of
    another actor raises the same NotFoundError as an unknown id, after the same query.

    Every method raises PlatformError (``store_unavailable`` or ``disk_full``) if the database or the disk fails, and
    NotFoundError (``unknown_run``) for an unknown id. A method that failed may be called again with the same values.
    """

    async def open(self) -> tuple[str, ...]:
        """Create or migrate the schema, mark runs of processes that ended as ``interrupted``, and return their ids."""
        ...

    async def close(self) -> None:
        """Close every connection. May be called more than once."""
        ...

    async def begin(self, run: Run) -> None:
        """Write a run that is about to start. This process becomes its owner."""
        ...

    async def add_hosts(self, run: Run, hosts: Sequence[Host]) -> None:
        """Append observations of a run that is active."""
        ...

    async def finish(self, run: Run) -> None:
        """Write the end of a run: its outcome, coverage, raw output and error."""
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
        """Return a page of runs, newest first."""
        ...

    async def hosts(
        self, run_id: str, *, limit: int = 100, cursor: str | None = None, caller: str | None = None
    ) -> Page[Host]:
        """Return a page of the observations of a run, ordered by address."""
        ...

    async def read_raw(self, raw: Raw, offset: int, limit: int) -> bytes:
        """Return at most ``limit`` bytes of raw output from byte ``offset``, or nothing at and after its end.

        The cost grows with ``offset``. Use `iter_raw` to read the whole output.
        """
        ...

    def iter_raw(self, raw: Raw) -> AsyncIterator[bytes]:
        """Yield the whole raw output in pieces of at most 256 KiB. Damaged output raises before the first piece."""
        ...
