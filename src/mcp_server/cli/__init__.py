"""The command line: ``mcp-network-tools``.

With ``--json`` every command prints one JSON document on standard output. Exit codes are those of
`mcp_server.errors.ExitCode`. Commands import what they need when they are called.
"""

from __future__ import annotations

import os
import platform
import sys

import typer

from mcp_server import __version__
from mcp_server.cli import audit, call, config, doctor, guard, keys, runs, scope, serve, tools
from mcp_server.cli.output import Json, fill_standard_streams, print_json, reporting
from mcp_server.errors import ArgumentError, ExitCode

app = typer.Typer(
    name="mcp-network-tools",
    help="Network security tools for AI agents over the Model Context Protocol, inside the operator's scope.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("serve")(serve.serve)
app.command("call")(call.call)
app.command("tools")(tools.tools)
app.add_typer(runs.app, name="runs")
app.add_typer(config.app, name="config")
app.add_typer(scope.app, name="scope")
app.add_typer(audit.app, name="audit")
app.add_typer(keys.app, name="keys")
app.add_typer(guard.app, name="guard")
app.command("doctor")(doctor.doctor)


_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""Typer's copy of click raises it for unknown words. It has no public name."""


@app.command("version")
def version(as_json: Json = False) -> None:
    """Print the version."""
    with reporting(as_json=as_json):
        if as_json:
            print_json({"version": __version__, "python": platform.python_version(), "platform": sys.platform})
        else:
            print(f"mcp-network-tools {__version__}")


def main() -> None:
    """Run the command line. The console script calls this."""
    fill_standard_streams()
    os.umask(0o077)  # every file that a command creates is for this user only
    if "--json" not in sys.argv[1:]:
        app()
    try:
        sys.exit(app(standalone_mode=False))
    except _UsageError as error:
        message = str(error).rstrip(".") + "."
        hint = "Run mcp-network-tools COMMAND --help to see its arguments."
        print_json({"error": ArgumentError(message, hint=hint).as_dict()})
        sys.exit(ExitCode.USAGE)
