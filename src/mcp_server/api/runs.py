"""How every interface shows a stored run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcp_server.errors import ConflictError, NotFoundError
from mcp_server.model.access import Permission
from mcp_server.model.digest import HOST_COUNTS
from mcp_server.model.run import Actor, Outcome, Raw, Run
from mcp_server.scope.permissions import require_permission

if TYPE_CHECKING:
    from mcp_server.store.base import Store


def reader(actor: Actor) -> str | None:
    """Return the ``caller`` argument of the store for an actor.

    This is the name of an actor that may read only its own runs, and None for an actor that may read all runs. Raises
    AccessError ``insufficient_scope`` for an actor that may read no runs.
    """
    require_permission(actor.access, Permission.RUNS_READ, "A request for stored runs")
    return actor.own_runs


def run_record(run: Run) -> dict[str, Any]:
    """Return a run as every interface shows it. The counts of hosts and ports are fields of the run itself."""
    from mcp_server.model.encoding import encode

    record = encode(run)
    counts = record.pop("counts", {})
    return record | {name: counts.get(name, 0) for name in HOST_COUNTS}


async def run_page(
    store: Store, run_id: str, *, limit: int, cursor: str | None, caller: str | None = None
) -> dict[str, Any]:
    """Return a run with a page of its hosts: ``run``, ``hosts``, ``hosts_total`` and ``next_cursor`` (or None).

    ``caller`` is the result of `reader`.
    """
    from mcp_server.model.encoding import encode

    run = await store.get_run(run_id, caller=caller)
    page = await store.hosts(run_id, limit=limit, cursor=cursor, caller=caller)
    return {
        "run": run_record(run),
        "hosts": [encode(host) for host in page.items],
        "hosts_total": page.total,
        "next_cursor": page.next_cursor,
    }


def raw_of(run: Run) -> Raw:
    """Return the raw output of a run. Raises ConflictError while it is running, NotFoundError if there is no output."""
    if run.raw is not None:
        return run.raw
    if run.outcome is Outcome.RUNNING:
        raise ConflictError(f"Run {run.id} is still running.")
    raise NotFoundError(f"Run {run.id} has no raw output. Its outcome is {run.outcome.value}.", code="unknown_run")
