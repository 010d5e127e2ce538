"""The limits in force: one number for each limit, although several keys may set it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mcp_server.config.base import Section
from mcp_server.config.sections.limits import MIB, LimitsConfig, ToolConfig
from mcp_server.config.sections.security import SecurityConfig

TIMEOUT_CEILING_SECONDS: Final = 3600
CONCURRENCY_CEILING: Final = 100
"""The ceilings if the operator sets none: the upper bounds of the keys themselves."""


@dataclass(frozen=True, slots=True)
class EffectiveLimits:
    """Each limit once, in seconds, bytes or counts.

    If several keys set the same limit, ``security`` takes precedence over ``limits``, and ``limits`` over ``tool``,
    also if the values came from different sources.
    """

    max_args_length: int
    stdout_bytes: int
    stderr_bytes: int
    raw_bytes: int
    default_timeout: int
    timeout_ceiling: int
    default_concurrency: int
    concurrency_ceiling: int
    memory_bytes: int
    file_descriptors: int

    def timeout_for(self, own: float | None = None, asked: float | None = None) -> float:
        """Return the seconds for a run, at most ``timeout_ceiling``.

        ``asked`` is what the caller asked for, and ``own`` the tool's own number. Without both, it is the default.
        """
        wanted = next((value for value in (asked, own) if value is not None), self.default_timeout)
        return min(wanted, self.timeout_ceiling)

    def concurrency_for(self, own: int | None = None) -> int:
        """Return the limit of active runs of a tool: its ``own`` number or the default, up to the ceiling."""
        return min(self.default_concurrency if own is None else own, self.concurrency_ceiling)


def effective_limits(security: SecurityConfig, limits: LimitsConfig, tool: ToolConfig) -> EffectiveLimits:
    """Return the limits that the three sections set together."""
    return EffectiveLimits(
        max_args_length=_first_set((security, "max_args_length"), (limits, "max_args_len")),
        stdout_bytes=_first_set((security, "max_output_size"), (limits, "max_stdout_bytes")),
        stderr_bytes=limits.max_stderr_bytes,
        raw_bytes=limits.max_raw_bytes,
        default_timeout=_first_set(
            (security, "timeout_seconds"), (limits, "default_timeout_sec"), (tool, "default_timeout")
        ),
        timeout_ceiling=security.timeout_seconds if security.is_set("timeout_seconds") else TIMEOUT_CEILING_SECONDS,
        default_concurrency=_first_set(
            (security, "concurrency_limit"), (limits, "default_concurrency"), (tool, "default_concurrency")
        ),
        concurrency_ceiling=security.concurrency_limit if security.is_set("concurrency_limit") else CONCURRENCY_CEILING,
        memory_bytes=limits.max_memory_mb * MIB,
        file_descriptors=limits.max_file_descriptors,
    )


def _first_set(*candidates: tuple[Section, str]) -> int:
    # Keys for the same limit have the same default (a test checks it), so take the first one if none is set.
    holder, key = next(((section, name) for section, name in candidates if section.is_set(name)), candidates[0])
    value: int = getattr(holder, key)
    return value
