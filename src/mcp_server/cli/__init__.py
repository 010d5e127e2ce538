"""The command line: ``mcp-network-tools``.

Every command answers ``--json`` with one JSON document on standard output; exit codes are those of
`mcp_server.errors.ExitCode`. Commands import what they need when they are called.
"""

from __future__ import annotations

import os
import sys

import typer

from mcp_server.cli import audit, call, guard, inspect, keys, runs, serve
from mcp_server.cli.output import fill_standard_streams, print_json
from mcp_server.errors import ArgumentError, ExitCode

app = typer.Typer(
    name="mcp-network-tools",
    help="Network security tools for AI agents over the Model Context Protocol, held inside the owner's scope.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("serve")(serve.serve)
app.command("call")(call.call)
app.command("tools")(inspect.tools)
app.add_typer(runs.app, name="runs")
app.add_typer(inspect.config_app, name="config")
app.add_typer(inspect.scope_app, name="scope")
app.add_typer(audit.app, name="audit")
app.add_typer(keys.app, name="keys")
app.add_typer(guard.app, name="guard")
app.command("doctor")(inspect.doctor)
app.command("version")(inspect.version)


_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Typer's own copy of click raises it for a word it does not know, and gives it no public name."""


def main() -> None:
    """Entry point of the console script."""
    fill_standard_streams()
    os.umask(0o077)  # whatever a command makes, also by the log, is for this user only
    if "--json" not in sys.argv[1:]:
        app()
    try:
        sys.exit(app(standalone_mode=False))
    except _UsageError as error:
        hint = "mcp-network-tools COMMAND --help shows what it takes."
        print_json({"error": ArgumentError(str(error), hint=hint).as_dict()})
        sys.exit(ExitCode.USAGE)
