"""``scope``: shows the policy, and says whether targets are allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcp_server.cli.output import Json, print_json, reporting, run_async
from mcp_server.errors import ExitCode

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.model.run import Actor
    from mcp_server.tools.context import ToolAnswer

app = typer.Typer(help="The scope: show the policy, check targets.", no_args_is_help=True)


@app.command("check")
def check(
    targets: Annotated[list[str], typer.Argument(help="Addresses, CIDRs or names.")],
    risk: Annotated[
        str | None, typer.Option("--risk", help="Check the targets for this risk: passive, probe, scan or intrusive.")
    ] = None,
    tool: Annotated[
        str | None, typer.Option("--tool", help="Also plan a call of this tool: what would it cost?")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", help="key=value for that call. Repeat it for several.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether targets are allowed, by which policy entry, as which addresses, and on which terms.

    Exit 3 if one is not allowed, or if the call would be refused.
    """
    with reporting(as_json=as_json):
        given = {"target": targets, "risk": risk, "tool": tool}
        words = list(parameter or [])
        answer = run_async(_answer({key: value for key, value in given.items() if value is not None}, words))
        _print(answer, as_json=as_json)
        body = answer.body
        if not all(item["allowed"] for item in [*body["targets"], *([body["plan"]] if "plan" in body else [])]):
            raise typer.Exit(ExitCode.REFUSED)


@app.command("show")
def show(as_json: Json = False) -> None:
    """Show the policy: what it allows and excludes, on which terms, and its limits."""
    with reporting(as_json=as_json):
        _print(run_async(_answer({}, [])), as_json=as_json)


async def _answer(arguments: dict[str, Any], words: list[str]) -> ToolAnswer:
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
        return await _answer_without_plan(config, actor, arguments | ({"parameters": {}} if words else {}))
    server = EnhancedMCPServer(config)
    try:
        schema = server.pipeline.current.value.registry.get(tool).parameters.model_json_schema()
        arguments |= {"parameters": read_parameters(words, schema)}
        return await server.pipeline.answer(ScopeTool.tool_name(), arguments, actor)
    finally:
        await server.cleanup()


async def _answer_without_plan(config: Config, actor: Actor, arguments: dict[str, Any]) -> ToolAnswer:
    """Answer a query that plans no call. This needs neither a server nor a state folder."""
    from mcp_server.pipeline.validate import Query, validate
    from mcp_server.scope.resolver import CachingResolver, SystemResolver
    from mcp_server.tools.context import Assessment, ToolContext
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


def _print(answer: ToolAnswer, *, as_json: bool) -> None:
    if as_json:
        print_json(answer.body)
    else:
        print(answer.text)
