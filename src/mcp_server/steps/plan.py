"""Step 2, plan: targets resolved once and pinned, flags read, argv compiled, the cost known before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass

from mcp_server.base_tool import Invocation
from mcp_server.config import Config
from mcp_server.execution.commands import resolve_command
from mcp_server.execution.process import Limits
from mcp_server.flags import read
from mcp_server.model.target import Targets
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.resolve import pin_targets
from mcp_server.scope.resolver import Resolver
from mcp_server.steps.call import Call


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
    invocation = tool.compile(parameters, targets, settings)
    command = resolve_command(tool.command_name)
    bounds = Limits(
        timeout_sec=limits.timeout_for(own=tool.default_timeout_sec, asked=parameters.timeout_sec),
        output_bytes=limits.raw_bytes,
        stderr_bytes=limits.stderr_bytes,
        memory_bytes=limits.memory_bytes,
        file_descriptors=limits.file_descriptors,
    )
    return Plan(call, targets, invocation, (str(command.path), *invocation.args), bounds)
