"""The command line: ``mcp-network-tools``.

Every command answers ``--json`` with one JSON document on standard output; exit codes are those of
`mcp_server.errors.ExitCode`. Commands import what they need when they are called.
"""

from __future__ import annotations

import typer

from mcp_server.cli import call, inspect, runs, serve

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
app.command("doctor")(inspect.doctor)
app.command("version")(inspect.version)


def main() -> None:
    """Entry point of the console script."""
    app()
