"""Fields that the audit records of calls and runs have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp_server.audit.records import escape_values
from mcp_server.config.redact import without_secrets
from mcp_server.model.run import Actor, Run
from mcp_server.tools.base import CORRELATION_ID_MAX_CHARS


def who(actor: Actor) -> dict[str, str]:
    """Return the fields that identify the actor, with the hash of the actors file if it limits this actor."""
    limited_by = {"actors_hash": actor.access.origin} if actor.access.origin else {}
    client = str(escape_values(actor.client, 128))
    return {"actor": actor.name, "interface": actor.interface, "client": client, **limited_by}


def run_facts(run: Run) -> dict[str, str]:
    """Return the fields that every record of a run has in addition to its event."""
    return {
        "run_id": run.id,
        "correlation_id": run.correlation_id,
        **who(run.actor),
        "tool": run.tool,
        "scope_hash": run.scope_hash,
        "enforcement": run.enforcement,
    }


def given_id(arguments: Mapping[str, Any]) -> str | None:
    """Return the correlation id of a request that was not validated, bounded and escaped. None if it has none."""
    given = arguments.get("correlation_id")
    if not isinstance(given, str):
        return None
    # Secrets are removed here because the id is also published in events, which other callers read.
    return str(escape_values(without_secrets(given[: 4 * CORRELATION_ID_MAX_CHARS]), CORRELATION_ID_MAX_CHARS))
