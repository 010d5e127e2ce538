"""Step 2, plan: targets resolved once and pinned, flags read, argv compiled, the cost known before anything is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mcp_server.base_tool import Invocation, MCPBaseTool
from mcp_server.config import Config
from mcp_server.errors import AccessError, PlatformError
from mcp_server.execution.commands import Command, pin
from mcp_server.execution.guard import Guard
from mcp_server.execution.process import Limits
from mcp_server.execution.sandbox import Sandbox
from mcp_server.flags import Setting, read
from mcp_server.model.target import Targets
from mcp_server.scope import permission
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.resolve import pin_targets
from mcp_server.scope.resolver import Resolver
from mcp_server.steps.call import Call

if TYPE_CHECKING:
    from mcp_server.execution.place import Place

PREFIXES = (Path("/usr"), Path("/usr/local"))
"""Where a program's data folder is looked for besides beside the program, which may be a wrapper elsewhere."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done, exactly: pinned targets, the argv with the pinned binary, its limits, and what confines it."""

    call: Call
    targets: Targets
    invocation: Invocation
    command: Command
    argv: tuple[str, ...]
    limits: Limits
    sandbox: Sandbox
    place: Place
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
    pins: Mapping[str, frozenset[str]]

    async def plan(self, call: Call) -> Plan:
        """Plan a call; raises TargetError, ArgumentError, AccessError or PlatformError (``binary_not_found``)."""
        tool, parameters, limits = call.tool, call.parameters, self.config.effective
        settings = read(parameters.extra_args, tool.flags(), max_length=limits.max_args_length)
        check_permission(call, settings)  # before a name is looked up for somebody who may not ask
        targets = await pin_targets(
            tool.targets_of(parameters), self.policy, self.resolver, max_addresses=tool.max_addresses
        )
        targets = tool.choose(targets, settings)
        place = self.guard.place_for(targets)
        tool = self._bounded(tool, targets, place)
        seconds = limits.timeout_for(own=tool.default_timeout_sec, asked=parameters.timeout_sec)
        # A tool that divides its time among hosts must know the limit that will hold, not the one that was asked for.
        invocation = tool.compile(parameters.model_copy(update={"timeout_sec": seconds}), targets, settings)
        if invocation.needs_raw_sockets and not tool.policy.raw_sockets:
            raise PlatformError(
                f"{tool.tool_name()}: this call needs raw sockets, and there is no guard to hold them here",
                code="permission_denied",
                hint="Start the server with 'mcp-network-tools serve --guard kernel'; loopback has none in any tier.",
            )
        command = pin(tool.command_name)
        command.check_unchanged()
        data = _data_folder(tool, command)
        if invocation.files:
            await self._check_files(data or Path(command.realpath).parent, invocation)
        return Plan(
            call=call,
            targets=targets,
            invocation=invocation,
            command=command,
            argv=(command.path, *((tool.data_dir_flag, str(data)) if data else ()), *invocation.args),
            limits=Limits(
                timeout_sec=seconds,
                output_bytes=limits.raw_bytes,
                stderr_bytes=limits.stderr_bytes,
                memory_bytes=limits.memory_bytes,
                file_descriptors=limits.file_descriptors,
            ),
            sandbox=Sandbox(reads=tuple(tool.reads), raw_sockets=tool.policy.raw_sockets),
            place=place,
            usual_timeout_sec=limits.timeout_for(own=tool.default_timeout_sec),
        )

    def _bounded(self, tool: MCPBaseTool, targets: Targets, place: Place) -> MCPBaseTool:
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
        raw_sockets = tool.policy.raw_sockets and place.allow_raw
        return tool.under(replace(tool.policy, raw_sockets=raw_sockets, max_rate=rate))

    async def _check_files(self, folder: Path, invocation: Invocation) -> None:
        from mcp_server.execution.pinned_files import check_files

        await asyncio.to_thread(check_files, folder, invocation.files, self.pins)


def check_permission(call: Call, settings: tuple[Setting, ...]) -> None:
    """Raise AccessError ``insufficient_scope`` where the actor may not make this call, by what its parameters say."""
    held = call.actor.access
    if not held.permissions >= permission.ALL:  # reading the parameters twice costs what it tells
        permission.require_risk(held, call.tool.risk_of(call.parameters, settings), call.tool.tool_name())


def _data_folder(tool: MCPBaseTool, command: Command) -> Path | None:
    """The data folder ``PREFIX/share/NAME`` of a tool that is given it; None for one that is not."""
    if not tool.data_dir_flag:
        return None
    prefixes = (Path(command.realpath).parent.parent, *PREFIXES)
    for folder in (prefix / "share" / tool.command_name for prefix in prefixes):
        if folder.is_dir():
            return folder
    raise PlatformError(
        f"{tool.command_name} has no data folder share/{tool.command_name} in {', '.join(map(str, prefixes))}",
        code="binary_not_found",
        hint=f"Install {tool.command_name} whole, from the distribution's package.",
    )
