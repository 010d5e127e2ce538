"""What is missing on this host, what still works without it, and the command that mends it."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp_server.errors import NetworkToolsError
from mcp_server.execution.commands import resolve_command
from mcp_server.execution.containment import containment
from mcp_server.execution.guard import Enforcement, Guard
from mcp_server.execution.guard.choice import choose_guard

if TYPE_CHECKING:
    from mcp_server.audit import AuditLog
    from mcp_server.config import Config
    from mcp_server.discovery import Toolbox
    from mcp_server.store.base import Store

LOW_DISK_BYTES = 256 * 1024 * 1024
_WITHOUT_STATE = "the commands tools, config, scope and doctor; nothing runs without a log and a record"

_MAKE_USER = "sudo useradd --system --user-group --no-create-home --shell /usr/sbin/nologin mcp-network-tools; "


class State(StrEnum):
    """How a check came out: fine, works with less, or does not work."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: what was looked at, how it is, what still works, and what mends it."""

    name: str
    state: State
    detail: str
    works: str = ""
    remedy: str = ""


async def examine(
    config: Config,
    toolbox: Toolbox,
    open_store: Callable[[], Awaitable[Store]],
    *,
    guard: Guard | None = None,
    audit: AuditLog | None = None,
) -> list[Check]:
    """Run every check, in a fixed order; none raises. ``guard`` and ``audit`` are those of a running server."""
    # First, because it makes the state folder where there is none yet.
    store = await _store(config, open_store)
    return [
        *_binaries(toolbox),
        *(
            Check(
                f"tool class {item.name}", State.DEGRADED, item.reason, "every other tool", "mend or remove its package"
            )
            for item in toolbox.left_out
            if item.reason.startswith("it cannot be")
        ),
        await _guard(config, guard),
        await asyncio.to_thread(_processes, guard),
        _state_dir(config),
        _disk(config),
        store,
        *([] if audit is None else [_audit(audit)]),
        await asyncio.to_thread(_scope, config, guard),
    ]


def overall(checks: list[Check]) -> State:
    """The worst state among the checks."""
    order = list(State)
    return max((check.state for check in checks), key=order.index, default=State.OK)


def _binaries(toolbox: Toolbox) -> list[Check]:
    """One check for each tool's program; only where no tool has its program is that the end of the service."""
    if not toolbox.tools:
        remedy = "widen tool.include_patterns or tool.exclude_patterns"
        return [Check("tools", State.FAILED, "no tool is offered", "what was remembered can be read", remedy)]
    missing: dict[str, NetworkToolsError] = {}
    found: dict[str, str] = {}
    for name, tool in toolbox.tools.items():
        try:
            found[name] = resolve_command(tool.command_name).path
        except NetworkToolsError as error:
            missing[name] = error
    works = f"the tools {', '.join(found)}" if found else "what was remembered can be read; no tool can run"
    state = State.DEGRADED if found else State.FAILED
    return [
        Check(f"tool {name}", State.OK, found[name])
        if name in found
        else Check(f"tool {name}", state, missing[name].message, works, missing[name].hint)
        for name in toolbox.tools
    ]


async def _guard(config: Config, guard: Guard | None) -> Check:
    """The tier in force, or of a start here, and that it is still what was set up."""
    try:
        if guard is None:
            choice = choose_guard(config)
            tier, reason = choice.enforcement, choice.reason
        else:
            await guard.read()
            tier, reason = guard.enforcement, ""
    except NetworkToolsError as error:
        return Check(
            "guard", State.FAILED, error.message, "what was remembered can be read; no tool can run", error.hint
        )
    detail = f"enforcement: {tier.value}" + (f", because {reason}" if reason else "")
    if tier is Enforcement.ARGUMENT:
        detail += "; addresses are checked before a process is started, and nothing holds packets"
        if config.security.guard == "argument":  # the owner knows
            return Check("guard", State.OK, detail)
        works = "connect scans (-sT), service detection and scripts; raw sockets are off"
        return Check("guard", State.DEGRADED, detail, works, _MAKE_USER + f"sudo {_program()} serve --guard kernel")
    return Check("guard", State.OK, f"{detail}; every frame passes the ruleset, raw sockets are available")


def _program() -> str:
    """The console script of this environment, by its absolute path."""
    return shlex.quote(str(Path(sys.executable).parent / "mcp-network-tools"))


def _processes(guard: Guard | None) -> Check:
    """What holds a tool's process: its files, and its end."""
    try:
        found = containment(allow_raw=guard is not None and guard.raw_sockets)
    except NetworkToolsError as error:
        return Check("processes", State.FAILED, error.message, "what was remembered can be read", error.hint)
    if not found.remedy:
        return Check("processes", State.OK, found.detail)
    return Check("processes", State.DEGRADED, found.detail, "every tool", found.remedy)


def _mend_folder(folder: Path) -> str:
    quoted = shlex.quote(str(folder))
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        return f"set MCP_STATE_DIR to another folder; {shlex.quote(str(nearest))} is a file"
    return f"sudo mkdir -p {quoted} && sudo chown -R $(id -un) {quoted} && chmod 700 {quoted}"


def _state_dir(config: Config) -> Check:
    folder = config.state_dir
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Check(
            "state folder",
            State.FAILED,
            f"{folder} cannot be written",
            _WITHOUT_STATE,
            _mend_folder(folder),
        )
    mode = folder.stat().st_mode & 0o777
    if mode & 0o077:
        return Check(
            "state folder",
            State.DEGRADED,
            f"{folder} is open to others (mode {mode:o})",
            "everything",
            f"chmod 700 {shlex.quote(str(folder))}",
        )
    return Check("state folder", State.OK, str(folder))


def _disk(config: Config) -> Check:
    try:
        free = shutil.disk_usage(config.state_dir).free
    except OSError as error:
        return Check(
            "disk",
            State.FAILED,
            f"{config.state_dir}: {error.strerror}",
            _WITHOUT_STATE,
            _mend_folder(config.state_dir),
        )
    detail = f"{free // (1024 * 1024)} MiB free"
    if free < LOW_DISK_BYTES:
        return Check("disk", State.DEGRADED, detail, "short scans", f"free space on the disk of {config.state_dir}")
    return Check("disk", State.OK, detail)


async def _store(config: Config, open_store: Callable[[], Awaitable[Store]]) -> Check:
    kind = "Postgres" if config.database.url and "postgres" in str(config.database.url) else "SQLite"
    try:
        page = await (await open_store()).list_runs(limit=1)
    except NetworkToolsError as error:
        return Check("store", State.FAILED, error.message, _WITHOUT_STATE, error.hint)
    return Check("store", State.OK, f"{kind}, {page.total} runs")


def _audit(audit: AuditLog) -> Check:
    if audit.problem is None:
        return Check("audit log", State.OK, str(audit.path))
    remedy = f"{_program()} audit verify"
    return Check("audit log", State.DEGRADED, audit.problem, "everything; the log is written and not sealed", remedy)


def _scope(config: Config, guard: Guard | None) -> Check:
    try:
        policy = config.scope_policy()
    except NetworkToolsError as error:
        # A running server keeps the policy it had: this is what a reload or the next start would find.
        state = State.FAILED if guard is None else State.DEGRADED
        works = "nothing starts" if guard is None else "calls, under the policy read before"
        return Check("scope", state, error.message, works, error.hint)
    key = "the policy file" if config.security.policy_file else "security.allowed_targets"
    detail = policy.summary()
    if not policy.entries:
        return Check("scope", State.DEGRADED, detail, "what was remembered can be read", f"name networks in {key}")
    if policy.without_effect:
        dead = ", ".join(policy.without_effect)
        detail += f"; without effect, because refused or excluded: {dead}"
        return Check("scope", State.DEGRADED, detail, "the other entries", f"remove {dead} from {key}")
    return Check("scope", State.OK, detail)


def as_dicts(checks: list[Check]) -> list[dict[str, Any]]:
    """The checks as JSON-ready objects, without empty fields."""
    return [
        {
            key: str(value)
            for key, value in (
                ("name", check.name),
                ("state", check.state),
                ("detail", check.detail),
                ("works", check.works),
                ("remedy", check.remedy),
            )
            if value
        }
        for check in checks
    ]
