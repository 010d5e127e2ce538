"""``call``: runs a tool from the shell, through the same pipeline as every other call."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mcp_server.cli.output import Json, fail, print_json, print_table, reporting, run_async, say
from mcp_server.errors import ArgumentError, ConfigError
from mcp_server.model.untrusted import FROM_TARGET, VERSION_PROBE, escape, sanitize

if TYPE_CHECKING:
    from mcp_server.netguard import Guard
    from mcp_server.pipeline.execute import Progress
    from mcp_server.pipeline.respond import CallResult
    from mcp_server.tools.base import ToolOutput

MAX_HOSTS: Final = 1000
"""Maximum number of hosts that are printed."""


def _tool_names(incomplete: str) -> list[str]:
    from mcp_server.config import get_config
    from mcp_server.server.building import build_registry

    try:
        return [name for name in build_registry(get_config()).tools if name.startswith(incomplete)]
    except ConfigError:  # completion cannot show an error
        return []


def call(
    tool: Annotated[
        str, typer.Argument(help="The name of a tool. The command 'tools' lists them.", autocompletion=_tool_names)
    ],
    parameters: Annotated[
        list[str] | None, typer.Argument(help="key=value. For a list, repeat the key or separate values by commas.")
    ] = None,
    inside: Annotated[int | None, typer.Option(hidden=True)] = None,
    as_json: Json = False,
) -> None:
    """Run a tool inside the strongest guard that works here, and print its result."""
    with reporting(as_json=as_json):
        guard = None if inside is None else _inside(inside)
        if guard is None:
            _go_inside(tool, parameters or [], as_json=as_json)
        result, output = run_async(_call(tool, parameters or [], guard, quiet=as_json))
        body = output.model_dump(mode="json", exclude_none=True) if as_json else {}
        if not as_json:
            _show(result, output)
        if result is not None and result.error is not None:
            fail(result.error, as_json=as_json, extra={"result": body})
        if as_json:
            print_json(body)


def _inside(descriptor: int) -> Guard:
    from mcp_server.netguard.client import PacketGuard

    return PacketGuard(descriptor)


def _go_inside(tool: str, parameters: list[str], *, as_json: bool) -> None:
    """If a guard works here, run the command inside it, and exit with its exit code."""
    from mcp_server.config import get_config
    from mcp_server.netguard import Enforcement
    from mcp_server.netguard.choice import choose_guard

    config = get_config()
    choice = choose_guard(config)
    if choice.enforcement is not Enforcement.ARGUMENT:
        from mcp_server.cli.guard import run_guarded

        words = ["call", *(["--json"] if as_json else []), tool, *parameters]
        raise typer.Exit(run_guarded(config, choice, words, quiet=True))


async def _call(
    tool: str, parameters: list[str], guard: Guard | None, *, quiet: bool
) -> tuple[CallResult | None, ToolOutput]:
    """Return the result of a run, or None for a tool that runs no program, and the output to print."""
    from mcp_server.api.views import answer_output, tool_output
    from mcp_server.model.access import FULL_ACCESS
    from mcp_server.model.run import Actor
    from mcp_server.pipeline.validate import user_name
    from mcp_server.server import EnhancedMCPServer
    from mcp_server.tools.context import ToolAnswer

    server = EnhancedMCPServer(guard=guard)
    try:
        schema = server.pipeline.current.value.registry.get(tool).parameters.model_json_schema()
        arguments = read_parameters(parameters, schema)
        bar, progress = _progress_bar(quiet=quiet)
        with bar:
            result = await server.pipeline.handle(
                tool, arguments, Actor(user_name(), "cli", access=FULL_ACCESS), progress
            )
        if isinstance(result, ToolAnswer):
            return None, answer_output(result)
        if result.digest is None:
            return result, tool_output(result)
        page = await (await server.pipeline.open_store()).hosts(result.run.id, limit=MAX_HOSTS)
        return result, tool_output(result, list(page.items), page.total)
    finally:
        await server.cleanup()


def read_parameters(words: list[str], schema: dict[str, Any]) -> dict[str, Any]:
    """Convert ``key=value`` words to the types of the tool's schema. Raises ArgumentError for a word without ``=``.

    A value that does not fit is passed on as it was typed, and the tool's strict model refuses it.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ArgumentError(
                f"{sanitize(word, 60)!r} does not have the form key=value.", hint="Use for example target=10.0.0.1."
            )
        typed = _typed(value, schema.get("properties", {}).get(key, {}))
        if key not in found:
            found[key] = typed
        else:
            found[key] = [*_as_list(found[key]), *_as_list(typed)]
    return found


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _typed(value: str, node: dict[str, Any]) -> Any:
    kinds = {branch.get("type") for branch in [node, *node.get("anyOf", [])]}
    if "object" in kinds and value.startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    if "array" in kinds and (value.startswith("[") or "string" not in kinds or "," in value):
        if not value.startswith("["):
            return value.split(",")
    elif not kinds & {"integer", "number", "boolean"}:
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _progress_bar(*, quiet: bool) -> tuple[AbstractContextManager[Any], Progress | None]:
    """A progress bar on standard error. It appears with the first report, after about a second."""
    if quiet or not sys.stderr.isatty():
        return nullcontext(), None
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("", total=1.0)

    async def report(share: float, message: str) -> None:
        bar.update(task, completed=share, description=escape(message))
        bar.start()

    ending = ExitStack()
    ending.callback(bar.stop)
    return ending, report


def _show(result: CallResult | None, output: ToolOutput) -> None:
    if output.hosts is None:
        if output.stdout:
            say(output.stdout.rstrip("\n"))
    else:
        rows = [row for host in output.hosts for row in host_rows(host)]
        if rows:
            print_table(("HOST", "PORT", "STATE", "SERVICE", "VERSION"), rows)
        if output.hosts_total and output.hosts_total > len(output.hosts):
            say(f"{output.hosts_total - len(output.hosts)} more hosts: mcp-network-tools runs show {output.run_id}")
    if result is not None:
        say(summary(result))


def host_rows(host: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """The table rows of one host: its ports that are not closed, or else one row with the state of the host."""
    name = host["address"] + (f" ({host['names'][0]})" if host.get("names") else "")
    rows = [
        (name, f"{port['number']}/{port['transport']}", port["state"], *_service(port.get("service") or {}))
        for port in host.get("ports", [])
        if port["state"] != "closed"
    ]
    if rows:
        return rows
    state = "incomplete: the scan of this host timed out" if host.get("timed_out") else host["state"]
    return [(name, "-", state, "", "")]


def _service(service: dict[str, Any]) -> tuple[str, str]:
    texts = service.get(FROM_TARGET, {}).get(VERSION_PROBE, {})
    name = service.get("name", "")
    if service.get("tunnel"):
        name = f"{service['tunnel']}/{name}"
    words = (texts.get(key, "") for key in ("name", "product", "version", "extra_info"))
    return name, " ".join(word for word in words if word)


def summary(result: CallResult) -> str:
    """One line with the outcome, the coverage, the run's id, and how the scope was enforced."""
    run, coverage = result.run, result.run.coverage
    parts = [f"{run.tool} {run.outcome.value} in {result.seconds:.1f} s"]
    if coverage:
        parts.append(f"looked at {coverage.looked_at} of {coverage.planned} addresses")
        parts += [f"{ports.count} {ports.transport} ports ({ports.method})" for ports in coverage.ports]
        if coverage.not_looked_at_count:
            parts.append(f"{coverage.not_looked_at_count} addresses not looked at")
    return "; ".join([*parts, f"run {run.id}", f"enforcement: {run.enforcement}"])
