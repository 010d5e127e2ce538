"""The audit log: JSON lines that are chained by hashes, synced to the disk, and signed in checkpoints (docs/audit.md).

Every decision is one record, written before anything starts, and every run has a second record when it ends. If a
record cannot be written, `PlatformError` is raised and nothing runs.
"""

from __future__ import annotations

from mcp_server.audit.log import AuditLog
from mcp_server.audit.records import escape_values

__all__ = ["AuditLog", "escape_values"]
