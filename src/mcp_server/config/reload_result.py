"""The result of a reload of the configuration."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from mcp_server.config.pending import Pending
from mcp_server.errors import NetworkToolsError


class Trigger(StrEnum):
    """The event that started a reload."""

    FILE = "file"
    SIGNAL = "signal"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """The result of one reload.

    ``changed`` lists the keys whose values changed. ``restart_needed`` lists the keys whose new values wait for a
    restart. ``error`` says why the old configuration stays in force. None means that the new one is in force.
    """

    by: Trigger
    at: datetime
    scope_hash: str
    changed: tuple[str, ...] = ()
    restart_needed: tuple[Pending, ...] = ()
    error: NetworkToolsError | None = None

    @property
    def result(self) -> str:
        """``applied`` or ``kept``."""
        return "applied" if self.error is None else "kept"

    def as_dict(self) -> dict[str, Any]:
        """Return the result, ready for JSON."""
        body = {
            "result": self.result,
            "by": self.by.value,
            "at": self.at.isoformat(),
            "scope_hash": self.scope_hash,
            "changed": list(self.changed),
            "restart_needed": [asdict(item) for item in self.restart_needed],
        }
        return body if self.error is None else body | {"error": self.error.as_dict()}
