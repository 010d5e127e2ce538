"""Step 2, plan: targets resolved once and pinned, flags read, argv compiled, the cost known before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mcp_server.base_tool import Invocation, MCPBaseTool
from mcp_server.config import Config
from mcp_server.errors import PlatformError
from mcp_server.execution.commands import Command, resolve_command
from mcp_server.execution.process import Limits
from mcp_server.flags import read
from mcp_server.model.target import Targets
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.resolve import pin_targets
from mcp_server.scope.resolver import Resolver
from mcp_server.steps.call import Call

PREFIXES = (Path("/usr"), Path("/usr/local"))
"""Where a program's data folder is looked for besides beside the program, which may be a wrapper elsewhere."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done, exactly: pinned targets, the argv with the binary's absolute path, and its limits."""

    call: Call
    targets: Targets
    invocation: Invocation
    argv: tuple[str, ...]
    limits: Limits


async def plan(call: Call, config: Config, policy: ScopePolicy, resolver: Resolver) -> Plan:
    """Plan a call; raises TargetError, ArgumentError or PlatformError (``binary_not_found``)."""
    tool, parameters, limits = call.tool, call.parameters, config.effective
    settings = read(parameters.extra_args, tool.flags(), max_length=limits.max_args_length)
    targets = await pin_targets(tool.targets_of(parameters), policy, resolver, max_addresses=tool.max_addresses)
    targets = tool.choose(targets, settings)
    seconds = limits.timeout_for(own=tool.default_timeout_sec, asked=parameters.timeout_sec)
    # A tool that divides its time among hosts must know the limit that will hold, not the one that was asked for.
    invocation = tool.compile(parameters.model_copy(update={"timeout_sec": seconds}), targets, settings)
    command = resolve_command(tool.command_name)
    bounds = Limits(
        timeout_sec=seconds,
        output_bytes=limits.raw_bytes,
        stderr_bytes=limits.stderr_bytes,
        memory_bytes=limits.memory_bytes,
        file_descriptors=limits.file_descriptors,
    )
    return Plan(call, targets, invocation, (*_program(tool, command), *invocation.args), bounds)


def _program(tool: MCPBaseTool, command: Command) -> tuple[str, ...]:
    """The program by its absolute path, and its data folder where the tool names one: ``PREFIX/share/NAME``."""
    if not tool.data_dir_flag:
        return (str(command.path),)
    prefixes = (Path(command.realpath).parent.parent, *PREFIXES)
    for folder in (prefix / "share" / tool.command_name for prefix in prefixes):
        if folder.is_dir():
            return (str(command.path), tool.data_dir_flag, str(folder))
    raise PlatformError(
        f"{tool.command_name} has no data folder share/{tool.command_name} in {', '.join(map(str, prefixes))}",
        code="binary_not_found",
        hint=f"Install {tool.command_name} whole, from the distribution's package.",
    )
