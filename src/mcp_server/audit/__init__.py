"""The decision log: hash-chained, synced JSON lines, sealed by signed checkpoints (docs/audit.md).

One record before anything is spawned and one when it has ended, accepts and denials. No log, no run: a record that
cannot be written raises `PlatformError` and the call stops there.
"""

from __future__ import annotations

from mcp_server.audit.escaping import escape_values
from mcp_server.audit.log import AuditLog

__all__ = ["AuditLog", "escape_values"]
