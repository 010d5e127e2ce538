"""Commands that look without touching a target: tools, config, scope, doctor, version."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcp_server import __version__
from mcp_server.cli.output import Json, print_json, print_table, reporting, run_async
from mcp_server.errors import ExitCode

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.health import SystemHealth
    from mcp_server.model.run import Actor
    from mcp_server.scope.policy import ScopePolicy
    from mcp_server.store.base import Store
    from mcp_server.tools.base import ToolAnswer
    from mcp_server.tools.registry import RegisteredTool

config_app = typer.Typer(help="The configuration in force, and a check of a file.", no_args_is_help=True)
scope_app = typer.Typer(help="What may be touched.", no_args_is_help=True)


def tools(as_json: Json = False) -> None:
    """List the tools with their parameters and flags."""
    from mcp_server.config import get_config
    from mcp_server.server.building import build_registry

    with reporting(as_json=as_json):
        registry = build_registry(get_config())
        if as_json:
            print_json(
                {
                    "tools": [_tool(name, tool) for name, tool in registry.tools.items()],
                    "left_out": [asdict(item) for item in registry.left_out],
                }
            )
            return
        print_table(
            ("TOOL", "COMMAND", "RISK", "PARAMETERS"),
            [
                (name, _command(tool) or "-", str(tool.risk), ", ".join(tool.parameters.model_fields))
                for name, tool in registry.tools.items()
            ],
        )
        for item in registry.left_out:
            print(f"left out: {item.name}: {item.reason}")


def _command(tool: RegisteredTool) -> str | None:
    from mcp_server.tools.base import MCPBaseTool

    return tool.command_name if isinstance(tool, MCPBaseTool) else None


def _tool(name: str, tool: RegisteredTool) -> dict[str, Any]:
    from mcp_server.tools.base import MCPBaseTool

    return {
        "name": name,
        "class": type(tool).__name__,
        "command": _command(tool),
        "title": tool.title,
        "description": tool.description,
        "risk": str(tool.risk),
        "parameters": tool.parameters.model_json_schema(),
        "flags": [flag.usage for _, flag in sorted(tool.flags().items())] if isinstance(tool, MCPBaseTool) else [],
    }


@config_app.command("show")
def config_show(as_json: Json = False) -> None:
    """Show every key as a server started here and now would read it: its value, its source, when a change takes hold.

    An asterisk after a value says that it is not the default, not that it has changed. live: at a reload. restart: at
    the next start. later: nothing uses it yet. No running server is asked: GET /config of that server tells what it
    uses, and under restart_needed what waits for its restart.
    """
    from mcp_server.config import describe, get_config

    with reporting(as_json=as_json):
        config = get_config()
        keys = describe(config)
        if as_json:
            print_json({"config": config.redacted(), "keys": [asdict(key) for key in keys]})
            return
        print_table(
            ("KEY", "VALUE", "SOURCE", "STATUS", "ENVIRONMENT"),
            [
                (
                    f"{key.section}.{key.key}".lstrip("."),
                    f"{key.value} *" if key.differs else str(key.value),
                    key.source,
                    key.status,
                    key.env,
                )
                for key in keys
            ],
        )
        for clamped in config.clamped:
            print(clamped)


def _actors_outside(config: Config, policy: ScopePolicy) -> list[tuple[str, str]]:
    """Networks of actors that the policy does not hold, where there is a file of actors; raises where it is wrong."""
    if config.auth.actors_file is None:
        return []
    from mcp_server.identity.actors_file import read_actors_file

    return list(read_actors_file(config.auth.actors_file).outside(policy))


@config_app.command("check")
def config_check(
    path: Annotated[
        Path | None, typer.Argument(help="A YAML or JSON file; else the one MCP_CONFIG_FILE names.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a configuration whole, with the environment laid over it, and say what in it has no effect as written."""
    import logging

    from mcp_server.config import load_config

    # What loading would log is part of the answer here.
    logging.getLogger("mcp_server.config").setLevel(logging.ERROR)
    with reporting(as_json=as_json):
        config = load_config(path)
        policy = config.scope_policy()
        clamped = [str(item) for item in config.clamped]
        unused = [f"{item.section}.{item.key}".lstrip(".") for item in config.not_yet_used]
        dead = list(policy.without_effect)
        outside = _actors_outside(config, policy)
        if as_json:
            print_json(
                {
                    "ok": True,
                    "file": str(config.file) if config.file else None,
                    "policy_file": str(config.security.policy_file) if config.security.policy_file else None,
                    "scope": list(policy.entries),
                    "scope_hash": policy.hash,
                    "clamped": clamped,
                    "not_yet_used": unused,
                    "without_effect": dead,
                    "actors_file": str(config.auth.actors_file) if config.auth.actors_file else None,
                    "outside_policy": [{"actor": name, "entry": entry} for name, entry in outside],
                }
            )
            return
        print(
            "\n".join(
                [
                    *clamped,
                    *(f"{key}: nothing reads this key yet" for key in unused),
                    *(f"{policy.source}: {entry} has no effect, all of it is refused or excluded" for entry in dead),
                    *(f"actor {name}: {entry} is not inside the policy, and allows no more" for name, entry in outside),
                    "The configuration is valid.",
                ]
            )
        )


@scope_app.command("check")
def scope_check(
    targets: Annotated[list[str], typer.Argument(help="Addresses, CIDRs or names.")],
    risk: Annotated[
        str | None, typer.Option("--risk", help="Ask for this risk: passive, probe, scan or intrusive.")
    ] = None,
    tool: Annotated[str | None, typer.Option("--tool", help="Say what a call of this tool would cost.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", help="key=value for that call; repeat it for several.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether targets may be touched, by which line of the policy, as which addresses, and on what terms.

    Exit 3 if any may not, or if the call would be refused.
    """
    with reporting(as_json=as_json):
        given = {"target": targets, "risk": risk, "tool": tool}
        words = list(parameter or [])
        answer = run_async(_explained({key: value for key, value in given.items() if value is not None}, words))
        _print_explained(answer, as_json=as_json)
        body = answer.body
        if not all(item["allowed"] for item in [*body["targets"], *([body["plan"]] if "plan" in body else [])]):
            raise typer.Exit(ExitCode.REFUSED)


@scope_app.command("show")
def scope_show(as_json: Json = False) -> None:
    """Show the policy in force: what it allows and excludes, on which terms, and its limits."""
    with reporting(as_json=as_json):
        _print_explained(run_async(_explained({}, [])), as_json=as_json)


async def _explained(arguments: dict[str, Any], words: list[str]) -> ToolAnswer:
    from mcp_server.cli.call import read_parameters
    from mcp_server.config import get_config
    from mcp_server.model.access import FULL_ACCESS
    from mcp_server.model.run import Actor
    from mcp_server.pipeline.validate import user_name
    from mcp_server.server import EnhancedMCPServer
    from mcp_server.tools.scope_tool import ScopeTool

    config = get_config()
    actor = Actor(user_name(), "cli", access=FULL_ACCESS)
    tool = arguments.get("tool")
    if tool is None:
        return await _explained_without_plan(config, actor, arguments | ({"parameters": {}} if words else {}))
    server = EnhancedMCPServer(config)
    try:
        schema = server.pipeline.current.value.registry.get(tool).parameters.model_json_schema()
        arguments |= {"parameters": read_parameters(words, schema)}
        return await server.pipeline.answer(ScopeTool.tool_name(), arguments, actor)
    finally:
        await server.cleanup()


async def _explained_without_plan(config: Config, actor: Actor, arguments: dict[str, Any]) -> ToolAnswer:
    """Answer a query that plans no call. This needs no server, and no state folder."""
    from mcp_server.pipeline.validate import Query, validate
    from mcp_server.scope.resolver import CachingResolver, SystemResolver
    from mcp_server.tools.base import Assessment, ToolContext
    from mcp_server.tools.registry import ToolRegistry
    from mcp_server.tools.scope_tool import ScopeTool

    async def count_call() -> None:
        """The command line has no rate limits."""

    async def assess(tool: str, _arguments: Mapping[str, Any]) -> Assessment:
        raise LookupError(f"{tool} cannot be planned without a server")

    policy, name = config.scope_policy(), ScopeTool.tool_name()
    query = validate(ToolRegistry({name: ScopeTool()}), name, arguments, actor, max_args_length=0).require(Query)
    context = ToolContext(
        actor=actor,
        policy=policy,
        allow_intrusive=config.security.allow_intrusive,
        resolver=CachingResolver(SystemResolver.of(policy)),
        count_call=count_call,
        assess=assess,
    )
    return await query.tool.answer(query.parameters, context)


def _print_explained(answer: ToolAnswer, *, as_json: bool) -> None:
    if as_json:
        print_json(answer.body)
    else:
        print(answer.text)


def doctor(as_json: Json = False) -> None:
    """Say what is missing here, what still works without it, and the command that mends it."""
    from mcp_server.config import get_config
    from mcp_server.health import HealthStatus

    with reporting(as_json=as_json):
        health = run_async(_look(get_config()))
        if as_json:
            print_json({"state": health.status.word, "checks": health.as_dict()["checks"]})
        else:
            for result in health.results:
                print(f"{result.status.word:9} {result.name}: {result.detail}")
                if result.works:
                    print(f"{'':9} still works: {result.works}")
                if result.remedy:
                    print(f"{'':9} to mend: {result.remedy}")
        if health.status is HealthStatus.UNHEALTHY:
            raise typer.Exit(ExitCode.ENVIRONMENT)


async def _look(config: Config) -> SystemHealth:
    from mcp_server.audit import AuditLog
    from mcp_server.errors import NetworkToolsError
    from mcp_server.server import EnhancedMCPServer
    from mcp_server.server.building import build_registry
    from mcp_server.server.checks import health_of_host

    # First, because it makes the state folder where there is none yet. Where that cannot be, it is the finding.
    server: EnhancedMCPServer | NetworkToolsError
    try:
        server = EnhancedMCPServer(config)
    except NetworkToolsError as error:
        server = error

    async def open_store() -> Store:
        if isinstance(server, NetworkToolsError):
            raise server
        return await server.pipeline.open_store()

    audit = AuditLog(config.state_dir, lambda: config.audit)
    manager = health_of_host(config, build_registry(config), open_store, audit)
    try:
        return await manager.check()
    finally:
        await manager.stop()
        if isinstance(server, EnhancedMCPServer):
            await server.cleanup()


def version(as_json: Json = False) -> None:
    """Print the version."""
    with reporting(as_json=as_json):
        if as_json:
            print_json({"version": __version__, "python": platform.python_version(), "platform": sys.platform})
        else:
            print(f"mcp-network-tools {__version__}")
