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
from mcp_server.execution.launcher import containment
from mcp_server.execution.privilege import can_open_raw_sockets
from mcp_server.scope.policy import ScopePolicy

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.discovery import Toolbox
    from mcp_server.store.base import Store

LOW_DISK_BYTES = 256 * 1024 * 1024
_WITHOUT_STATE = "the commands tools, config, scope and doctor; nothing runs without a log and a record"


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


async def examine(config: Config, toolbox: Toolbox, open_store: Callable[[], Awaitable[Store]]) -> list[Check]:
    """Run every check, in a fixed order; none raises."""
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
        _raw_sockets(config),
        await asyncio.to_thread(_process_tree),
        _state_dir(config),
        _disk(config),
        store,
        _scope(config),
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


def _program() -> str:
    """The console script of this environment, by its absolute path."""
    return str(Path(sys.executable).parent / "mcp-network-tools")


def _raw_sockets(config: Config) -> Check:
    if can_open_raw_sockets():
        return Check("raw sockets", State.OK, "SYN scans, UDP scans and OS detection are available")
    return Check(
        "raw sockets",
        State.DEGRADED,
        "this process may not open raw sockets (CAP_NET_RAW)",
        "connect scans (-sT), service detection and scripts",
        # The same user, folder and program, with the one capability and nothing more (setpriv(1)).
        "sudo setpriv --reuid=$(id -u) --regid=$(id -g) --init-groups --inh-caps=+net_raw --ambient-caps=+net_raw -- "
        f"env MCP_STATE_DIR={shlex.quote(str(config.state_dir))} {shlex.quote(_program())} serve",
    )


def _process_tree() -> Check:
    found = containment()
    if found.ends_detached and found.ends_with_server:
        return Check("process tree", State.OK, found.detail)
    return Check("process tree", State.DEGRADED, found.detail, "every tool", found.remedy)


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


def _scope(config: Config) -> Check:
    policy = ScopePolicy.from_entries(config.security.allowed_targets)
    detail = f"{policy.summary()}; enforced on arguments, before a process is started"
    if not policy.entries:
        remedy = "name networks in security.allowed_targets"
        return Check("scope", State.DEGRADED, detail, "what was remembered can be read", remedy)
    if policy.without_effect:
        dead = ", ".join(policy.without_effect)
        detail += f"; without effect, because always refused: {dead}"
        return Check(
            "scope", State.DEGRADED, detail, "the other entries", f"remove {dead} from security.allowed_targets"
        )
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
