"""Writes what of docs/ is made from the code; ``--check`` only says what is stale, and exits 1 then."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcp_server.config.show import configuration_table
from mcp_server.errors import ERRORS, ErrorSpec

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))

_ERRORS_HEAD = """# Errors

Every interface answers an error with the same four things: a stable code, a message that names the offending value, a
hint that says what to do, and whether the same call may succeed later. HTTP interfaces send them as a problem body
(`application/problem+json`) with the status below; MCP sends a tool result with `isError` and the same fields under
`error` (an unknown tool is JSON-RPC error -32602); the command line prints them on standard error, or as JSON with
`--json`, and exits with the code below.

| code | HTTP | exit | error_type | retry | what to do |
|---|---|---|---|---|---|"""
_ERRORS_FOOT = """
Exit codes: 0 success, 1 defect, 2 usage, 3 refused, 4 not found, 5 the tool failed, 6 cut short (what was found is
kept), 7 busy, 8 configuration, 9 the host lacks something, 130 interrupted by Ctrl-C, 141 nobody reads the output,
143 stopped by SIGTERM.
"""
_CLI_HEAD = """# Command line

`mcp-network-tools COMMAND`. Every command takes `--json` and then prints one JSON document (`serve` prints it on
standard error; `runs raw` prints what is kept, not the bytes); exit codes are in [Errors](errors.md).
`mcp-network-tools --install-completion` sets up completion of commands, options and tool names in the running shell.
"""
_DECISIONS_HEAD = """# Decisions

Why things are as they are: what was asked, what was tried and measured, what was chosen. A decision that no longer
holds says by which one it is superseded.

| | |
|---|---|"""


def retry(spec: ErrorSpec) -> str:
    """Whether trying again may help, in a word."""
    return "yes" if spec.retryable else "no"


def errors_page() -> str:
    """The table of error codes."""
    rows = [
        f"| `{code}` | {spec.http} | {spec.exit} | {spec.type.value} | {retry(spec)} | {spec.hint} |"
        for code, spec in ERRORS.items()
    ]
    return "\n".join([_ERRORS_HEAD, *rows, _ERRORS_FOOT])


def cli_page() -> str:
    """Every command with its arguments and options."""
    import typer.main

    from mcp_server.cli import app

    return "\n".join([_CLI_HEAD, *_commands(typer.main.get_command(app), ())])


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    children = getattr(command, "commands", None)
    if children is not None:
        for name, child in children.items():
            yield from _commands(child, (*path, name))
        return
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.required and each.param_type_name == "option"]
    needed = [f"{each.opts[0]} {_first_of(each.type_descriptor.annotation)}" for each in options]
    words = " ".join([*(each.name.upper() for each in arguments), *needed])
    yield f"## {' '.join(path)}\n\n{' '.join((command.help or '').split())}\n"
    yield "| argument or option | meaning |\n|---|---|"
    for each in command.params:
        if each.param_type_name == "argument":
            yield f"| `{each.name.upper()}` | {each.help or ''} |"
        elif not each.hidden:
            yield f"| `{', '.join(each.opts)}` | {each.help or ''} |"
    yield f"\nUsage: `mcp-network-tools {' '.join(path)}{' ' + words if words else ''}`\n"


def _first_of(kind: Any) -> str:
    """The first of an option's values, where it has a list of them."""
    return str(next(iter(kind)).value)


def decisions_page() -> str:
    """The list of decisions, by their own headings."""
    rows = []
    for path in sorted((DOCS / "decisions").glob("[0-9]*.md")):
        number, title = path.read_text().split("\n", 1)[0].removeprefix("# ").split(". ", 1)
        rows.append(f"| {number} | [{title}]({path.name}) |")
    return "\n".join([_DECISIONS_HEAD, *rows, ""])


def rest_page() -> str:
    """The routes of the REST interface."""
    from scripts.pages import rest

    return rest.page()


def mcp_page() -> str:
    """What an MCP client sees."""
    from scripts.pages import mcp

    return mcp.page()


def diagram() -> str:
    """The rooms and what imports what, as an SVG."""
    from scripts.pages import packages

    return packages.picture(ROOT)


PAGES = {
    "errors.md": errors_page,
    "configuration.md": configuration_table,
    "cli.md": cli_page,
    "rest.md": rest_page,
    "mcp.md": mcp_page,
    "decisions/index.md": decisions_page,
    "images/packages.svg": diagram,
}


def main() -> int:
    """Write or check the pages."""
    made = {name: make() for name, make in PAGES.items()}
    stale = [name for name, text in made.items() if not (DOCS / name).exists() or (DOCS / name).read_text() != text]
    if "--check" in sys.argv:
        print(f"stale: {', '.join(stale)}; run: .venv/bin/python scripts/docs.py" if stale else "the pages are current")
        return 1 if stale else 0
    for name in stale:
        (DOCS / name).write_text(made[name])
        print(f"wrote docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
