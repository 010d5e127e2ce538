"""Write the generated pages of docs/; with ``--check``, only list stale pages and exit with status 1."""

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

Every interface reports an error with the same four parts: a stable code, a message that names the wrong value, a hint
that says what to do, and whether the same call may succeed later. How each interface reports it:

- HTTP interfaces send a problem body (`application/problem+json`) with the status below.
- MCP sends a tool result with `isError` and the same fields under `error`. An unknown tool is JSON-RPC error -32602.
- The command line prints the error on standard error, or as JSON with `--json`, and exits with the code below.

| code | HTTP | exit | error_type | retry | what to do |
|---|---|---|---|---|---|"""
_ERRORS_FOOT = """
Exit codes of the command line:

| code | meaning |
|---|---|
| 0 | success |
| 1 | a defect of the program |
| 2 | wrong usage |
| 3 | refused |
| 4 | not found |
| 5 | the tool failed |
| 6 | cut short; results so far are kept |
| 7 | busy |
| 8 | wrong configuration |
| 9 | the host lacks something |
| 130 | interrupted by Ctrl-C |
| 141 | the reader of the output has closed it |
| 143 | stopped by SIGTERM |
"""
_CLI_HEAD = """# Command line

Usage: `mcp-network-tools COMMAND`. With `--json`, every command prints one JSON document. `serve --json` prints it on
standard error. `runs raw --json` describes the stored output and does not print its bytes. Exit codes are in
[Errors](errors.md). `mcp-network-tools --install-completion` sets up completion of commands, options and tool names in
the current shell.
"""
_DECISIONS_HEAD = """# Decisions

Each decision says what the question was, what was tried and measured, and what was chosen. A decision that is no longer
valid names the one that supersedes it.

| number | decision |
|---|---|"""


def retry(spec: ErrorSpec) -> str:
    """Return "yes" if a retry may help, otherwise "no"."""
    return "yes" if spec.retryable else "no"


def errors_page() -> str:
    """Return the page with the table of error codes."""
    rows = [
        f"| `{code}` | {spec.http} | {spec.exit} | {spec.type.value} | {retry(spec)} | {spec.hint} |"
        for code, spec in ERRORS.items()
    ]
    return "\n".join([_ERRORS_HEAD, *rows, _ERRORS_FOOT])


def cli_page() -> str:
    """Return the page with every command, its arguments and its options."""
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
    """Return the first value of an option that has a list of values."""
    return str(next(iter(kind)).value)


def decisions_page() -> str:
    """Return the list of decisions, with the titles of their pages."""
    rows = []
    for path in sorted((DOCS / "decisions").glob("[0-9]*.md")):
        number, title = path.read_text().split("\n", 1)[0].removeprefix("# ").split(". ", 1)
        rows.append(f"| {number} | [{title}]({path.name}) |")
    return "\n".join([_DECISIONS_HEAD, *rows, ""])


def rest_page() -> str:
    """Return the page of the REST interface."""
    from scripts.pages import rest

    return rest.page()


def mcp_page() -> str:
    """Return the page of the MCP interface."""
    from scripts.pages import mcp

    return mcp.page()


def diagram() -> str:
    """Return the diagram of the packages and their imports, as SVG."""
    from scripts.pages import packages

    return packages.diagram(ROOT)


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
    """Write or check the pages; return the exit status."""
    made = {name: make() for name, make in PAGES.items()}
    stale = [name for name, text in made.items() if not (DOCS / name).exists() or (DOCS / name).read_text() != text]
    if "--check" in sys.argv:
        print(
            f"Stale: {', '.join(stale)}. Run: .venv/bin/python scripts/docs.py" if stale else "The pages are current."
        )
        return 1 if stale else 0
    for name in stale:
        (DOCS / name).write_text(made[name])
        print(f"Wrote docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
