"""Commands that look without touching a target: tools, config, scope, doctor, version."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mcp_server import __version__
from mcp_server.cli.output import Json, print_json, print_table, reporting, run_async
from mcp_server.errors import ExitCode

config_app = typer.Typer(help="The configuration in force, and a check of a file.", no_args_is_help=True)
scope_app = typer.Typer(help="What may be touched.", no_args_is_help=True)


def tools(as_json: Json = False) -> None:
    """List the tools with their parameters and flags."""
    from mcp_server.config import get_config
    from mcp_server.server import build_toolbox

    with reporting(as_json=as_json):
        toolbox = build_toolbox(get_config())
    if as_json:
        print_json(
            {
                "tools": [
                    {
                        "name": name,
                        "class": type(tool).__name__,
                        "command": tool.command_name,
                        "title": tool.title,
                        "description": tool.description,
                        "risk": str(tool.risk),
                        "parameters": tool.parameters.model_json_schema(),
                        "flags": sorted(tool.flags()),
                    }
                    for name, tool in toolbox.tools.items()
                ],
                "left_out": [{"name": item.name, "reason": item.reason} for item in toolbox.left_out],
            }
        )
        return
    print_table(
        ("TOOL", "COMMAND", "RISK", "PARAMETERS"),
        [
            (name, tool.command_name, str(tool.risk), ", ".join(tool.parameters.model_fields))
            for name, tool in toolbox.tools.items()
        ],
    )
    for item in toolbox.left_out:
        print(f"left out: {item.name}: {item.reason}")


@config_app.command("show")
def config_show(as_json: Json = False) -> None:
    """Show every key: its value, where that came from, and whether anything uses it yet."""
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
                str(key.value),
                key.source,
                "" if key.status == "live" else "not used yet",
                key.env,
            )
            for key in keys
        ],
    )
    for clamped in config.clamped:
        print(clamped)


@config_app.command("check")
def config_check(
    path: Annotated[
        Path | None, typer.Argument(help="A YAML or JSON file; else the one MCP_CONFIG_FILE names.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a configuration whole, with the environment laid over it, and say what was moved into its range."""
    from mcp_server.config import load_config
    from mcp_server.scope.policy import ScopePolicy

    with reporting(as_json=as_json):
        config = load_config(path)
        policy = ScopePolicy.from_entries(config.security.allowed_targets)
    clamped = [str(item) for item in config.clamped]
    if as_json:
        print_json({"ok": True, "scope_hash": policy.hash, "clamped": clamped})
        return
    print("\n".join([*clamped, "The configuration is valid."]))


@scope_app.command("check")
def scope_check(
    targets: Annotated[list[str], typer.Argument(help="Addresses, CIDRs or names.")], as_json: Json = False
) -> None:
    """Say whether targets may be touched, by which entry, and as which addresses; exit 3 if any may not."""
    from mcp_server.config import get_config
    from mcp_server.scope.explain import explain
    from mcp_server.scope.policy import ScopePolicy
    from mcp_server.scope.resolver import SystemResolver

    async def check() -> list[dict[str, Any]]:
        policy = ScopePolicy.from_entries(get_config().security.allowed_targets)
        resolver = SystemResolver()
        return [await explain(target, policy, resolver) for target in targets]

    with reporting(as_json=as_json):
        found = run_async(check())
    if as_json:
        print_json({"targets": found})
    else:
        for item in found:
            word = "allowed" if item["allowed"] else "refused"
            print(f"{word}: {item['target']}: {item['reason']}")
    if not all(item["allowed"] for item in found):
        raise typer.Exit(ExitCode.REFUSED)


def doctor(as_json: Json = False) -> None:
    """Say what is missing here, what still works without it, and the command that mends it."""
    from mcp_server.doctor import Check, State, as_dicts, examine, overall
    from mcp_server.server import EnhancedMCPServer

    async def look() -> list[Check]:
        server = EnhancedMCPServer()
        try:
            return await examine(server.config, server.pipeline.toolbox, server.store)
        finally:
            await server.cleanup()

    with reporting(as_json=as_json):
        checks = run_async(look())
    state = overall(checks)
    if as_json:
        print_json({"state": state.value, "checks": as_dicts(checks)})
    else:
        for check in checks:
            print(f"{check.state.value:9} {check.name}: {check.detail}")
            if check.works:
                print(f"{'':9} still works: {check.works}")
            if check.remedy:
                print(f"{'':9} to mend: {check.remedy}")
    if state is State.FAILED:
        raise typer.Exit(ExitCode.ENVIRONMENT)


def version(as_json: Json = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": __version__, "python": platform.python_version(), "platform": sys.platform})
    else:
        print(f"mcp-network-tools {__version__}")
