"""Checks of the parts that calls need: programs, guard, sandbox, state folder, disk, store, audit log, scope."""

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

from mcp_server.config.watching import file_states
from mcp_server.errors import BusyError, NetworkToolsError
from mcp_server.health import CheckOutcome, HealthCheckPriority, HealthStatus
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
"""Free bytes below which a long scan may not fit."""

_ENGINE_SEC: Final = 300.0

_OK, _DEGRADED, _FAILED = HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY
_READING = "stored runs can be read"
_NO_TOOL = f"{_READING}; no tool can run"
_WITHOUT_STATE = "the commands tools, config, scope and doctor; no tool runs without audit log and store"
_REPAIR_ENGINE = "see the log, and restart the server if the failure stays"
_MAKE_USER = "sudo useradd --system --user-group --no-create-home --shell /usr/sbin/nologin mcp-network-tools; "


def check_tools(registry: ToolRegistry) -> list[CheckOutcome]:
    """Return an outcome for each tool's program, and for each class that could not be made a tool.

    Critical only if no tool has its program.
    """
    programs = registry.programs
    if not programs:
        remedy = (
            "enable a tool: POST /admin/tools/NAME/enable"
            if registry.disabled
            else "widen tool.include_patterns or tool.exclude_patterns"
        )
        critical = HealthCheckPriority.CRITICAL
        return [CheckOutcome(_FAILED, "no tool is offered", _READING, remedy, priority=critical), *_left_out(registry)]
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
        CheckOutcome(_OK, found[name], name=f"tool {name}")
        if name in found
        else CheckOutcome(state, broken[name].message, works, broken[name].hint, f"tool {name}", priority)
        for name in programs
    ] + _left_out(registry)


def _left_out(registry: ToolRegistry) -> list[CheckOutcome]:
    return [
        CheckOutcome(
            _DEGRADED, item.reason, "every other tool", "repair or remove its package", f"tool class {item.name}"
        )
        for item in registry.left_out
        if item.broken
    ]


async def check_guard(config: Config, guard: Guard) -> CheckOutcome:
    """Check that the guard has not changed since it was set up. Also counts packets dropped while no tool ran."""
    try:
        await read_guard(guard)
    except NetworkToolsError as error:
        return _no_guard(error)
    return describe_guard(config, guard.enforcement)


def check_choice(config: Config, choose: Callable[[Config], GuardChoice]) -> CheckOutcome:
    """Check which guard a server would start with on this host."""
    try:
        choice = choose(config)
    except NetworkToolsError as error:
        return _no_guard(error)
    return describe_guard(config, choice.enforcement, choice.reason)


def _no_guard(error: NetworkToolsError) -> CheckOutcome:
    return CheckOutcome(_FAILED, error.message, _NO_TOOL, error.hint)


def describe_guard(config: Config, tier: Enforcement, reason: str = "") -> CheckOutcome:
    """Return the outcome for a tier. Degraded if it is the weakest tier and the operator did not choose it."""
    detail = f"enforcement: {tier.value}" + (f" ({reason.removesuffix('.')})" if reason else "")
    if tier is not Enforcement.ARGUMENT:
        return CheckOutcome(_OK, f"{detail}; every frame passes the ruleset; raw sockets are available")
    detail += "; addresses are checked before a process is started, and packets are not filtered"
    if config.security.guard == "argument":  # the operator chose it
        return CheckOutcome(_OK, detail)
    works = "connect scans (-sT), service detection and scripts; raw sockets are off"
    return CheckOutcome(_DEGRADED, detail, works, _MAKE_USER + f"sudo {_program()} serve --guard kernel")


def _program() -> str:
    """Return the absolute path of the console script of this environment."""
    return shlex.quote(str(Path(sys.executable).parent / "mcp-network-tools"))


def check_processes(*, allow_raw: bool) -> CheckOutcome:
    """Check how the process of a tool is contained."""
    try:
        found = containment(allow_raw=allow_raw)
    except NetworkToolsError as error:
        return CheckOutcome(_FAILED, error.message, _READING, error.hint)
    if not found.remedy:
        return CheckOutcome(_OK, found.detail)
    return CheckOutcome(_DEGRADED, found.detail, "every tool", found.remedy)


async def check_engine(guard: Guard) -> CheckOutcome:
    """Check that programs can be started: each runner starts one that does nothing, and reports its end."""
    from mcp_server.sandbox.process import ProcessLimits, run_process

    program, names, started = shutil.which("true", path=os.defpath), [], time.perf_counter()
    if program is None:
        return CheckOutcome(_OK, "local; not tested, because this host has no program `true`")
    try:
        for executor in guard.executors():
            names.append(executor.name)
            # The time limit of the check is shorter, so a runner that does not answer makes the check fail.
            ended = await run_process(
                (program,), ProcessLimits(_ENGINE_SEC), lambda _: None, executor=executor, sandbox=Sandbox()
            )
            if ended.returncode:
                why = sanitize(ended.stderr.decode(errors="replace").strip(), 200)
                detail = f"{program} ended with {ended.returncode} ({executor.name}): {why}"
                return CheckOutcome(_FAILED, detail, _READING, _REPAIR_ENGINE)
    except BusyError as error:
        return CheckOutcome(
            _DEGRADED, error.message, "calls that are running; further calls when a slot is free again", error.hint
        )
    except NetworkToolsError as error:
        return CheckOutcome(_FAILED, error.message, _READING, _REPAIR_ENGINE)
    took = 1000 * (time.perf_counter() - started)
    return CheckOutcome(_OK, f"local; each runner started a program ({', '.join(names)}), in {took:.0f} ms in total")


def check_state_folder(folder: Path) -> CheckOutcome:
    """Check that this user can write to the state folder, and that other users cannot."""
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return CheckOutcome(_FAILED, f"{folder} cannot be written", _WITHOUT_STATE, _repair_folder(folder))
    mode = folder.stat().st_mode & 0o777
    if mode & 0o077:
        detail = f"other users have access to {folder} (mode {mode:o})"
        return CheckOutcome(_DEGRADED, detail, "everything", f"chmod 700 {shlex.quote(str(folder))}")
    return CheckOutcome(_OK, str(folder))


def _repair_folder(folder: Path) -> str:
    quoted = shlex.quote(str(folder))
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        return f"set MCP_STATE_DIR to another folder; {shlex.quote(str(nearest))} is a file"
    return f"sudo mkdir -p {quoted} && sudo chown -R $(id -un) {quoted} && chmod 700 {quoted}"


def check_disk(folder: Path, threshold: float) -> CheckOutcome:
    """Check the file system of the state folder. Degraded above ``threshold`` per cent of the space for this user."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return CheckOutcome(_FAILED, f"{folder}: {error.strerror}", _WITHOUT_STATE, _repair_folder(folder))
    # As in df, space that is reserved for root counts neither as used nor as free.
    percent = 100 * usage.used / max(1, usage.used + usage.free)
    detail = f"{usage.free // (1024 * 1024)} MiB free, {percent:.0f} % in use"
    remedy = f"free space on the disk of {folder}"
    if usage.free < MIN_FREE_BYTES:
        return CheckOutcome(_FAILED, detail, _READING, remedy)
    if usage.free < LOW_DISK_BYTES:
        return CheckOutcome(_DEGRADED, detail, "short scans", remedy)
    if percent > threshold:
        works = "everything, until the disk is full"
        return CheckOutcome(_DEGRADED, f"{detail}; health.disk_threshold is {threshold:g} %", works, remedy)
    return CheckOutcome(_OK, detail)


class StoreCheck:
    """Checks that the store answers. Opens it first if it is not open."""

    def __init__(self, open_store: Callable[[], Awaitable[Store]]) -> None:
        self._open_store = open_store
        self._opening: asyncio.Future[Store] | None = None

    async def __call__(self, config: Config) -> CheckOutcome:
        """Check the store by reading one run."""
        kind = "Postgres" if config.database.url and "postgres" in str(config.database.url) else "SQLite"
        if self._opening is None or self._opening.done():
            self._opening = asyncio.ensure_future(self._open_store())
        try:
            # The time limit of the check must not cancel a migration that the check has started.
            store = await asyncio.shield(self._opening)
            page = await store.list_runs(limit=1)
        except NetworkToolsError as error:
            return CheckOutcome(_FAILED, error.message, _WITHOUT_STATE, error.hint)
        return CheckOutcome(_OK, f"{kind}, {page.total} runs")


def check_audit(audit: AuditLog) -> CheckOutcome:
    """Check that the audit log can be written, and that the last record was written. The check writes nothing."""
    remedy = f"{_program()} audit verify"
    problem = audit.unwritable
    if problem is not None and problem.code == "audit_broken":
        return CheckOutcome(_FAILED, problem.message, _NO_TOOL, remedy)
    # If there is no file yet, its folder must be writable.
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        os.close(os.open(audit.path, flags))
    except FileNotFoundError:
        if not os.access(audit.path.parent, os.W_OK | os.X_OK):
            detail = f"{audit.path} cannot be created: {audit.path.parent} is not writable"
            return CheckOutcome(_FAILED, detail, _WITHOUT_STATE, _repair_folder(audit.path.parent))
    except OSError as error:
        detail = f"{audit.path} cannot be written: {error.strerror}"
        return CheckOutcome(_FAILED, detail, _NO_TOOL, f"make {shlex.quote(str(audit.path))} writable for this user")
    if problem is not None:
        # The file can be opened again, but only the next record shows whether it can be written. A server that is not
        # ready gets no calls, so it would write no record.
        detail = f"the last record was not written: {problem.message}"
        return CheckOutcome(
            _DEGRADED, detail, "calls, if the next record can be written", "check the disk and the folder"
        )
    if audit.problem is not None:
        return CheckOutcome(_DEGRADED, audit.problem, "everything; records are written, but no checkpoints", remedy)
    return CheckOutcome(_OK, str(audit.path))


class ScopeCheck:
    """Checks the scope policy. Reads it again only if it may have changed: 100,000 entries take seconds."""

    def __init__(self, *, serving: bool) -> None:
        self._serving = serving
        self._seen: object = None
        self._outcome = CheckOutcome(_OK, "")

    def __call__(self, config: Config) -> CheckOutcome:
        """Check that the policy can be used, and that every entry has an effect."""
        security = config.security
        present = (
            security.policy_file,
            security.allowed_targets,
            file_states([security.policy_file] if security.policy_file else []),
        )
        if present != self._seen:
            self._outcome, self._seen = self._read(config), present
        return self._outcome

    def _read(self, config: Config) -> CheckOutcome:
        try:
            policy = config.scope_policy()
        except NetworkToolsError as error:
            # A running server keeps its policy. The error would prevent a reload and the next start.
            state, works = (
                (_DEGRADED, "calls, with the policy that was read before") if self._serving else (_FAILED, "")
            )
            return CheckOutcome(state, error.message, works or "nothing starts", error.hint)
        key = "the policy file" if config.security.policy_file else "security.allowed_targets"
        detail = policy.summary()
        if not policy.entries:
            return CheckOutcome(_DEGRADED, detail, _READING, f"add networks to {key}")
        if policy.without_effect:
            dead = ", ".join(policy.without_effect)
            detail += f"; without effect, because refused or excluded: {dead}"
            return CheckOutcome(_DEGRADED, detail, "the other entries", f"remove {dead} from {key}")
        return CheckOutcome(_OK, detail)
