"""Checks of what every call needs: programs, guard, processes, state folder, disk, store, audit log, scope."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mcp_server.config.watching import identities
from mcp_server.errors import BusyError, NetworkToolsError
from mcp_server.health import Finding, HealthCheckPriority, HealthStatus
from mcp_server.model.untrusted import sanitize
from mcp_server.netguard import Enforcement, Guard
from mcp_server.pipeline.guard_watch import read_guard
from mcp_server.sandbox.binaries import resolve_binary
from mcp_server.sandbox.containment import containment
from mcp_server.sandbox.sandbox import Sandbox
from mcp_server.server.checks.versions import version_of
from mcp_server.server.startup import MIN_FREE_BYTES

if TYPE_CHECKING:
    from mcp_server.audit import AuditLog
    from mcp_server.config import Config
    from mcp_server.netguard.choice import GuardChoice
    from mcp_server.store.base import Store
    from mcp_server.tools.registry import ToolRegistry

LOW_DISK_BYTES: Final = 256 * 1024 * 1024
"""With fewer free bytes, the output of a long scan may not fit."""

_ENGINE_SEC: Final = 300.0

_OK, _DEGRADED, _FAILED = HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY
_READING = "stored runs can be read"
_NO_TOOL = f"{_READING}; no tool can run"
_WITHOUT_STATE = "the commands tools, config, scope and doctor; no tool can run without an audit log and a store"
_FIX_ENGINE = "read the log; start the server again if the problem stays"
_MAKE_USER = "sudo useradd --system --user-group --no-create-home --shell /usr/sbin/nologin mcp-network-tools; "


def check_tools(registry: ToolRegistry) -> list[Finding]:
    """One finding for each tool's program, and one for each class that could not be used as a tool.

    A missing program is critical only if no other tool has its program.
    """
    programs = registry.programs
    if not programs:
        remedy = (
            "enable one of them: POST /admin/tools/NAME/enable"
            if registry.disabled
            else "widen tool.include_patterns or tool.exclude_patterns"
        )
        critical = HealthCheckPriority.CRITICAL
        return [Finding(_FAILED, "no tool is offered", _READING, remedy, priority=critical), *_left_out(registry)]
    broken: dict[str, NetworkToolsError] = {}
    found: dict[str, str] = {}
    for name, tool in programs.items():
        try:
            path = resolve_binary(tool.command_name).path
            version = version_of(path, tuple(tool.version_args))
            found[name] = f"{path}, {version}" if version else path
        except NetworkToolsError as error:
            broken[name] = error
    works = f"the tools {', '.join(found)}" if found else _NO_TOOL
    state, priority = (_DEGRADED, None) if found else (_FAILED, HealthCheckPriority.CRITICAL)
    return [
        Finding(_OK, found[name], name=f"tool {name}")
        if name in found
        else Finding(state, broken[name].message, works, broken[name].hint, f"tool {name}", priority)
        for name in programs
    ] + _left_out(registry)


def _left_out(registry: ToolRegistry) -> list[Finding]:
    return [
        Finding(_DEGRADED, item.reason, "every other tool", "fix or remove its package", f"tool class {item.name}")
        for item in registry.left_out
        if item.broken
    ]


async def check_guard(config: Config, guard: Guard) -> Finding:
    """Whether the guard is still as it was set up. Reading it also counts the packets that it dropped since."""
    try:
        await read_guard(guard)
    except NetworkToolsError as error:
        return _no_guard(error)
    return describe_guard(config, guard.enforcement)


def check_choice(config: Config, choose: Callable[[Config], GuardChoice]) -> Finding:
    """Which guard a server would have if it were started here."""
    try:
        choice = choose(config)
    except NetworkToolsError as error:
        return _no_guard(error)
    return describe_guard(config, choice.enforcement, choice.reason)


def _no_guard(error: NetworkToolsError) -> Finding:
    return Finding(_FAILED, error.message, _NO_TOOL, error.hint)


def describe_guard(config: Config, tier: Enforcement, reason: str = "") -> Finding:
    """What a tier enforces. If it is the weakest and the operator did not ask for it, how to get a stronger one."""
    detail = f"enforcement: {tier.value}" + (f", because {reason}" if reason else "")
    if tier is not Enforcement.ARGUMENT:
        return Finding(_OK, f"{detail}; every packet passes the ruleset, raw sockets are available")
    detail += "; addresses are checked before a process is started, packets are not checked"
    if config.security.guard == "argument":  # the operator chose it
        return Finding(_OK, detail)
    works = "connect scans (-sT), service detection and scripts; raw sockets are off"
    return Finding(_DEGRADED, detail, works, _MAKE_USER + f"sudo {_program()} serve --guard kernel")


def _program() -> str:
    """The absolute path of the console script of this environment."""
    return shlex.quote(str(Path(sys.executable).parent / "mcp-network-tools"))


def check_processes(*, allow_raw: bool) -> Finding:
    """How the processes of tools are confined and ended."""
    try:
        found = containment(allow_raw=allow_raw)
    except NetworkToolsError as error:
        return Finding(_FAILED, error.message, _READING, error.hint)
    if not found.remedy:
        return Finding(_OK, found.detail)
    return Finding(_DEGRADED, found.detail, "every tool", found.remedy)


async def check_engine(guard: Guard) -> Finding:
    """Whether programs can be run: each runner starts one that does nothing, and reports its end."""
    from mcp_server.sandbox.process import ProcessLimits, run_process

    program, names, started = shutil.which("true", path=os.defpath), [], time.perf_counter()
    if program is None:
        return Finding(_OK, "local; not tested, because this host has no program `true`")
    try:
        for executor in guard.executors():
            names.append(executor.name)
            # The time limit of the check is shorter, so a runner that does not answer makes the check time out.
            ended = await run_process(
                (program,), ProcessLimits(_ENGINE_SEC), lambda _: None, executor=executor, sandbox=Sandbox()
            )
            if ended.returncode:
                why = sanitize(ended.stderr.decode(errors="replace").strip(), 200)
                detail = f"{program} ended with {ended.returncode} ({executor.name}): {why}"
                return Finding(_FAILED, detail, _READING, _FIX_ENGINE)
    except BusyError as error:
        return Finding(_DEGRADED, error.message, "running calls; new calls when there is capacity again", error.hint)
    except NetworkToolsError as error:
        return Finding(_FAILED, error.message, _READING, _FIX_ENGINE)
    took = 1000 * (time.perf_counter() - started)
    return Finding(_OK, f"local; each runner ({', '.join(names)}) started a program, {took:.0f} ms in total")


def check_state_folder(folder: Path) -> Finding:
    """Whether this user can write the state folder, and no other user can."""
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Finding(_FAILED, f"{folder} cannot be written", _WITHOUT_STATE, _fix_folder(folder))
    mode = folder.stat().st_mode & 0o777
    if mode & 0o077:
        detail = f"{folder} is open to other users (mode {mode:o})"
        return Finding(_DEGRADED, detail, "everything", f"chmod 700 {shlex.quote(str(folder))}")
    return Finding(_OK, str(folder))


def _fix_folder(folder: Path) -> str:
    quoted = shlex.quote(str(folder))
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        return f"set MCP_STATE_DIR to another folder; {shlex.quote(str(nearest))} is a file"
    return f"sudo mkdir -p {quoted} && sudo chown -R $(id -un) {quoted} && chmod 700 {quoted}"


def check_disk(folder: Path, threshold: float) -> Finding:
    """How full the file system of the state folder is. ``threshold`` is in per cent of what this user can use."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Finding(_FAILED, f"{folder}: {error.strerror}", _WITHOUT_STATE, _fix_folder(folder))
    # As df does: space reserved for root counts neither as used nor as free.
    percent = 100 * usage.used / max(1, usage.used + usage.free)
    detail = f"{usage.free // (1024 * 1024)} MiB free, {percent:.0f} % in use"
    remedy = f"free space on the disk of {folder}"
    if usage.free < MIN_FREE_BYTES:
        return Finding(_FAILED, detail, _READING, remedy)
    if usage.free < LOW_DISK_BYTES:
        return Finding(_DEGRADED, detail, "short scans", remedy)
    if percent > threshold:
        works = "everything, until the disk is full"
        return Finding(_DEGRADED, f"{detail}; health.disk_threshold is {threshold:g} %", works, remedy)
    return Finding(_OK, detail)


class StoreCheck:
    """Whether the store answers. Opens it if it is not open."""

    def __init__(self, open_store: Callable[[], Awaitable[Store]]) -> None:
        self._open_store = open_store
        self._opening: asyncio.Future[Store] | None = None

    async def __call__(self, config: Config) -> Finding:
        """Read one run from the store."""
        kind = "Postgres" if config.database.url and "postgres" in str(config.database.url) else "SQLite"
        if self._opening is None or self._opening.done():
            self._opening = asyncio.ensure_future(self._open_store())
        try:
            # Shielded, because the time limit of the check must not interrupt a migration that opening has started.
            store = await asyncio.shield(self._opening)
            page = await store.list_runs(limit=1)
        except NetworkToolsError as error:
            return Finding(_FAILED, error.message, _WITHOUT_STATE, error.hint)
        return Finding(_OK, f"{kind}, {page.total} runs")


def check_audit(audit: AuditLog) -> Finding:
    """Whether the audit log can be written, and whether the last record was. The check writes nothing."""
    remedy = f"{_program()} audit verify"
    if audit.unwritable is not None and audit.unwritable.startswith("the decision log is broken"):
        return Finding(_FAILED, audit.unwritable, _NO_TOOL, remedy)
    # Opens the file, or if there is none yet, looks at the folder in which it would be created.
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        os.close(os.open(audit.path, flags))
    except FileNotFoundError:
        if not os.access(audit.path.parent, os.W_OK | os.X_OK):
            detail = f"{audit.path} cannot be created: {audit.path.parent} cannot be written"
            return Finding(_FAILED, detail, _WITHOUT_STATE, _fix_folder(audit.path.parent))
    except OSError as error:
        detail = f"{audit.path} cannot be written: {error.strerror}"
        return Finding(_FAILED, detail, _NO_TOOL, f"make {shlex.quote(str(audit.path))} writable for this user")
    if audit.unwritable is not None:
        # It can be opened again. As not ready, the server would get no call that shows whether it can be written too.
        detail = f"the last record was not written: {audit.unwritable}"
        return Finding(_DEGRADED, detail, "calls, if the next record can be written", "check the disk and the folder")
    if audit.problem is not None:
        return Finding(_DEGRADED, audit.problem, "everything; the log is written, but not sealed", remedy)
    return Finding(_OK, str(audit.path))


class ScopeCheck:
    """Whether the policy can be used. It is read only if it may have changed: one of 100,000 entries takes seconds."""

    def __init__(self, *, serving: bool) -> None:
        self._serving = serving
        self._seen: object = None
        self._finding = Finding(_OK, "")

    def __call__(self, config: Config) -> Finding:
        """Whether the policy can be used, and which entries have no effect."""
        security = config.security
        present = (
            security.policy_file,
            security.allowed_targets,
            identities([security.policy_file] if security.policy_file else []),
        )
        if present != self._seen:
            self._finding, self._seen = self._read(config), present
        return self._finding

    def _read(self, config: Config) -> Finding:
        try:
            policy = config.scope_policy()
        except NetworkToolsError as error:
            # A running server keeps the policy that it read before. A reload or the next start would fail.
            state, works = (
                (_DEGRADED, "calls, under the policy that was read before") if self._serving else (_FAILED, "")
            )
            return Finding(state, error.message, works or "nothing; no server can start", error.hint)
        key = "the policy file" if config.security.policy_file else "security.allowed_targets"
        detail = policy.summary()
        if not policy.entries:
            return Finding(_DEGRADED, detail, _READING, f"add networks to {key}")
        if policy.without_effect:
            dead = ", ".join(policy.without_effect)
            detail += f"; without effect, because refused or excluded: {dead}"
            return Finding(_DEGRADED, detail, "the other entries", f"remove {dead} from {key}")
        return Finding(_OK, detail)
