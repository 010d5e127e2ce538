"""Step 2, plan: targets resolved once and pinned, flags read, argv compiled, the cost known before anything is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mcp_server.config import Config
from mcp_server.errors import AccessError, PlatformError
from mcp_server.model.target import Targets
from mcp_server.netguard import Guard
from mcp_server.pipeline.validate import Call
from mcp_server.sandbox.binaries import Binary, find_binary
from mcp_server.sandbox.process import ProcessLimits
from mcp_server.sandbox.sandbox import Sandbox
from mcp_server.scope import permissions
from mcp_server.scope.pinning import pin_targets
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.resolver import Resolver
from mcp_server.tools.base import Command, MCPBaseTool
from mcp_server.tools.flags import Setting, read

if TYPE_CHECKING:
    from mcp_server.sandbox.executor import Executor

PREFIXES = (Path("/usr"), Path("/usr/local"))
"""Where a program's data folder is looked for besides beside the program, which may be a wrapper elsewhere."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done, exactly: pinned targets, the argv with the pinned binary, its limits, and what confines it."""

    call: Call
    targets: Targets
    command: Command
    binary: Binary
    argv: tuple[str, ...]
    limits: ProcessLimits
    sandbox: Sandbox
    executor: Executor
    usual_timeout_sec: float
    """What the run would have had, had the caller not asked for less or more."""


@dataclass(frozen=True, slots=True)
class Planner:
    """What plans are made with: the owner's configuration, the policy as the actor may use it, and what this host has.

    ``pins`` are hashes the owner accepts besides the reviewed ones, by path in a program's data folder.
    """

    config: Config
    policy: ScopePolicy
    resolver: Resolver
    guard: Guard
    allowed_checksums: Mapping[str, frozenset[str]]

    async def plan(self, call: Call) -> Plan:
        """Plan a call; raises TargetError, ArgumentError, AccessError or PlatformError (``binary_not_found``)."""
        tool, parameters, limits = call.tool, call.parameters, self.config.effective
        settings = read(parameters.extra_args, tool.flags(), max_length=limits.max_args_length)
        check_permission(call, settings)  # before a name is looked up for somebody who may not ask
        targets = await pin_targets(
            tool.targets_of(parameters), self.policy, self.resolver, max_addresses=tool.max_addresses
        )
        targets = tool.choose(targets, settings)
        executor = self.guard.executor_for(targets)
        tool = self._bounded(tool, targets, executor)
        seconds = limits.timeout_for(own=tool.default_timeout_sec, asked=parameters.timeout_sec)
        # A tool that divides its time among hosts must know the limit that will hold, not the one that was asked for.
        command = tool.build_command(parameters.model_copy(update={"timeout_sec": seconds}), targets, settings)
        if command.needs_raw_sockets and not tool.policy.raw_sockets:
            raise PlatformError(
                f"{tool.tool_name()}: this call needs raw sockets, and there is no guard to hold them here",
                code="permission_denied",
                hint="Start the server with 'mcp-network-tools serve --guard kernel'; loopback has none in any tier.",
            )
        binary = find_binary(tool.command_name)
        binary.check_unchanged()
        data = _data_folder(tool, binary)
        if command.files:
            await self._check_files(data or Path(binary.realpath).parent, command)
        return Plan(
            call=call,
            targets=targets,
            command=command,
            binary=binary,
            argv=(binary.path, *((tool.data_dir_flag, str(data)) if data else ()), *command.args),
            limits=ProcessLimits(
                timeout_sec=seconds,
                output_bytes=limits.raw_bytes,
                stderr_bytes=limits.stderr_bytes,
                memory_bytes=limits.memory_bytes,
                file_descriptors=limits.file_descriptors,
            ),
            sandbox=Sandbox(reads=tuple(tool.reads), raw_sockets=tool.policy.raw_sockets),
            executor=executor,
            usual_timeout_sec=limits.timeout_for(own=tool.default_timeout_sec),
        )

    def _bounded(self, tool: MCPBaseTool, targets: Targets, executor: Executor) -> MCPBaseTool:
        """The tool as the place and the policy's rate for these targets bound it."""
        rate = self.policy.rate_for(
            [network for target in targets.items for network in target.networks],
            [target.name for target in targets.items if target.name is not None],
        )
        if rate is not None and not tool.limits_rate:
            raise AccessError(
                f"the policy allows {rate:g} packets a second there, and {tool.tool_name()} cannot keep to a rate",
                code="risk_not_allowed",
                hint="Use a tool that can, or targets without a rate; 'scope check' shows which have one.",
            )
        raw_sockets = tool.policy.raw_sockets and executor.allow_raw
        return tool.under(replace(tool.policy, raw_sockets=raw_sockets, max_rate=rate))

    async def _check_files(self, folder: Path, command: Command) -> None:
        from mcp_server.sandbox.allowed_checksums import check_files

        await asyncio.to_thread(check_files, folder, command.files, self.allowed_checksums)


def check_permission(call: Call, settings: tuple[Setting, ...]) -> None:
    """Raise AccessError ``insufficient_scope`` where the actor may not make this call, by what its parameters say."""
    held = call.actor.access
    if not held.permissions >= permissions.ALL:  # reading the parameters twice costs what it tells
        permissions.require_risk(held, call.tool.risk_of(call.parameters, settings), call.tool.tool_name())


def _data_folder(tool: MCPBaseTool, binary: Binary) -> Path | None:
    """The data folder ``PREFIX/share/NAME`` of a tool that is given it; None for one that is not."""
    if not tool.data_dir_flag:
        return None
    prefixes = (Path(binary.realpath).parent.parent, *PREFIXES)
    for folder in (prefix / "share" / tool.command_name for prefix in prefixes):
        if folder.is_dir():
            return folder
    raise PlatformError(
        f"{tool.command_name} has no data folder share/{tool.command_name} in {', '.join(map(str, prefixes))}",
        code="binary_not_found",
        hint=f"Install {tool.command_name} whole, from the distribution's package.",
    )
