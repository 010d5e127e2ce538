"""Step 2, plan: resolve and pin the targets once, then find the command, its limits, its risk and its cost."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcp_server.audit import AuditLog
from mcp_server.config import Config
from mcp_server.errors import PlatformError
from mcp_server.model.run import Risk
from mcp_server.model.target import Evidence, Targets
from mcp_server.netguard import Guard
from mcp_server.pipeline.validate import Call
from mcp_server.sandbox.binaries import Binary, find_binary
from mcp_server.sandbox.process import ProcessLimits
from mcp_server.sandbox.sandbox import Sandbox
from mcp_server.scope.pinning import pin_targets
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.resolver import Resolver
from mcp_server.tools.base import Command, MCPBaseTool, RunConditions

if TYPE_CHECKING:
    from mcp_server.sandbox.executor import Executor

PREFIXES = (Path("/usr"), Path("/usr/local"))
"""Prefixes to search for a program's data folder if it is not beside the program, which may be a wrapper."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Exactly what a call will do: pinned targets, the argv with the pinned binary, its limits and its sandbox.

    ``usual_timeout_sec`` is the time limit that the run would have without the caller's ``timeout_sec``.
    """

    call: Call
    targets: Targets
    command: Command
    binary: Binary
    argv: tuple[str, ...]
    limits: ProcessLimits
    sandbox: Sandbox
    executor: Executor
    usual_timeout_sec: float

    @property
    def risk(self) -> Risk:
        """The risk of the call."""
        return self.call.prepared.risk

    @property
    def ports(self) -> int:
        """How many ports the call tests on each address, all transports together."""
        return sum(ports.count for ports in self.command.ports)

    @property
    def probes(self) -> int:
        """How many packets the call may send. A tool without an estimate sends at least one to each address."""
        return max(self.command.estimate.probes, self.targets.count)


@dataclass(frozen=True, slots=True)
class LoggedResolver:
    """A resolver that logs every name before the lookup, because a DNS query can carry data out of the network.

    ``fields`` are added to each record. For calls that become runs, the record of the decision holds the lookups too.
    """

    resolver: Resolver
    audit: AuditLog
    fields: Mapping[str, str]

    async def lookup(self, name: str) -> Evidence:
        """Log the lookup, then do it. Raises PlatformError if the log cannot be written."""
        await self.audit.append("lookup", name=name, **self.fields)
        return await self.resolver.lookup(name)


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes plans from the configuration, the policy within the actor's networks, and the programs of this host.

    ``allowed_checksums`` are hashes that the operator accepts in addition to the reviewed ones, by path in a program's
    data folder.
    """

    config: Config
    policy: ScopePolicy
    resolver: Resolver
    guard: Guard
    allowed_checksums: Mapping[str, frozenset[str]]

    async def plan(self, call: Call) -> Plan:
        """Plan a call. Raises TargetError, ArgumentError, or PlatformError such as ``binary_not_found``."""
        tool, prepared, limits = call.tool, call.prepared, self.config.effective
        targets = tool.choose(
            prepared,
            await pin_targets(
                tool.targets_of(call.parameters), self.policy, self.resolver, max_addresses=tool.max_addresses
            ),
        )
        executor = self.guard.executor_for(targets)
        conditions = RunConditions(
            timeout_sec=limits.timeout_for(own=tool.default_timeout_sec, asked=call.parameters.timeout_sec),
            raw_sockets=tool.policy.raw_sockets and executor.allow_raw,
            max_rate=self.policy.rate_for(targets.networks, targets.names),
        )
        command = tool.build_command(prepared, targets, conditions)
        if command.needs_raw_sockets and not conditions.raw_sockets:
            raise PlatformError(
                f"{tool.tool_name()}: this call needs raw sockets, but no guard controls them here.",
                code="permission_denied",
                hint="Start the server with 'mcp-network-tools serve --guard kernel'. Loopback never has raw sockets.",
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
                timeout_sec=conditions.timeout_sec,
                output_bytes=limits.raw_bytes,
                stderr_bytes=limits.stderr_bytes,
                memory_bytes=limits.memory_bytes,
                file_descriptors=limits.file_descriptors,
            ),
            sandbox=Sandbox(reads=tuple(tool.reads), raw_sockets=conditions.raw_sockets),
            executor=executor,
            usual_timeout_sec=limits.timeout_for(own=tool.default_timeout_sec),
        )

    async def _check_files(self, folder: Path, command: Command) -> None:
        from mcp_server.sandbox.allowed_checksums import check_files

        await asyncio.to_thread(check_files, folder, command.files, self.allowed_checksums)


def _data_folder(tool: MCPBaseTool, binary: Binary) -> Path | None:
    """Return the data folder ``PREFIX/share/NAME`` of a tool that has a ``data_dir_flag``, or None."""
    if not tool.data_dir_flag:
        return None
    prefixes = (Path(binary.realpath).parent.parent, *PREFIXES)
    for folder in (prefix / "share" / tool.command_name for prefix in prefixes):
        if folder.is_dir():
            return folder
    raise PlatformError(
        f"{tool.command_name} has no data folder share/{tool.command_name} in {', '.join(map(str, prefixes))}.",
        code="binary_not_found",
        hint=f"Install the complete package of {tool.command_name} from the distribution.",
    )
