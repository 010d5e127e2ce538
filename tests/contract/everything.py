"""A test-only server with everything the official suite asks for, on this project's own interfaces and middleware.

``python -m tests.contract.everything stdio`` serves over standard input and output;
``python -m tests.contract.everything http [--token TOKEN]`` over HTTP, printing its address first.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from typing import Any

import anyio
import mcp_types as t
from mcp.server.caching import CacheHint
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import ListenHandler
from mcp.shared.exceptions import MCPError

from mcp_server.api.http.application import compose, mcp_app
from mcp_server.api.http.connections import listen
from mcp_server.api.http.uvicorn_server import serve_http
from mcp_server.api.mcp.stdio import serve_stdio
from mcp_server.config.sections import ServerConfig
from tests.contract import wire_tools
from tests.contract.everything_tools import BUS, FIXTURES, PNG, Context, answered, ask_user, embedded
from tests.support.callers import token_only

assert wire_tools.__name__, "imported because importing it registers its tools"

_TEXT = "test://static-text"
_BINARY = "test://static-binary"
_WATCHED = "test://watched-resource"


async def _list_tools(ctx: Context, params: t.PaginatedRequestParams | None) -> t.ListToolsResult:
    return t.ListToolsResult(tools=[fixture.tool for fixture in FIXTURES.values()])


async def _call_tool(ctx: Context, params: t.CallToolRequestParams) -> t.CallToolResult | t.InputRequiredResult:
    fixture = FIXTURES.get(params.name)
    if fixture is None:
        raise MCPError(code=t.INVALID_PARAMS, message=f"Unknown tool: {params.name}")
    return await fixture.handler(ctx, params)


async def _list_resources(ctx: Context, params: t.PaginatedRequestParams | None) -> t.ListResourcesResult:
    rows = ((_TEXT, "text/plain"), (_BINARY, "image/png"), (_WATCHED, "text/plain"))
    return t.ListResourcesResult(
        resources=[
            t.Resource(uri=uri, name=uri.rpartition("/")[2], description=uri, mime_type=kind) for uri, kind in rows
        ]
    )


async def _list_templates(ctx: Context, params: t.PaginatedRequestParams | None) -> t.ListResourceTemplatesResult:
    template = t.ResourceTemplate(
        uri_template="test://template/{id}/data",
        name="template",
        description="A template",
        mime_type="application/json",
    )
    return t.ListResourceTemplatesResult(resource_templates=[template])


async def _read_resource(ctx: Context, params: t.ReadResourceRequestParams) -> t.ReadResourceResult:
    return t.ReadResourceResult(contents=[_resource(params.uri)])


def _resource(uri: str) -> t.TextResourceContents | t.BlobResourceContents:
    if uri == _TEXT:
        text = "This is the content of the static text resource."
        return t.TextResourceContents(uri=uri, mime_type="text/plain", text=text)
    if uri == _BINARY:
        return t.BlobResourceContents(uri=uri, mime_type="image/png", blob=PNG)
    if uri == _WATCHED:
        return t.TextResourceContents(uri=uri, mime_type="text/plain", text="watched")
    if uri.startswith("test://template/") and uri.endswith("/data"):
        name = uri.removeprefix("test://template/").removesuffix("/data")
        text = json.dumps({"id": name, "templateTest": True, "data": f"Data for ID: {name}"})
        return t.TextResourceContents(uri=uri, mime_type="application/json", text=text)
    raise MCPError(code=t.INVALID_PARAMS, message="Resource not found", data={"uri": uri})


async def _done(ctx: Context, params: Any) -> t.EmptyResult:
    return t.EmptyResult()


async def _complete(ctx: Context, params: t.CompleteRequestParams) -> t.CompleteResult:
    values = [word for word in ("paris", "park", "party") if word.startswith(params.argument.value)]
    return t.CompleteResult(completion=t.Completion(values=values, total=len(values), has_more=False))


_PROMPTS: dict[str, tuple[str, ...]] = {
    "test_simple_prompt": (),
    "test_prompt_with_arguments": ("arg1", "arg2"),
    "test_prompt_with_embedded_resource": ("resourceUri",),
    "test_prompt_with_image": (),
    "test_input_required_result_prompt": (),
}


async def _list_prompts(ctx: Context, params: t.PaginatedRequestParams | None) -> t.ListPromptsResult:
    return t.ListPromptsResult(
        prompts=[
            t.Prompt(
                name=name,
                description=name.replace("_", " "),
                arguments=[t.PromptArgument(name=argument, required=True) for argument in arguments],
            )
            for name, arguments in _PROMPTS.items()
        ]
    )


async def _get_prompt(ctx: Context, params: t.GetPromptRequestParams) -> t.GetPromptResult | t.InputRequiredResult:
    given = params.arguments or {}
    match params.name:
        case "test_simple_prompt":
            return _messages(_text("This is a simple prompt for testing."))
        case "test_prompt_with_arguments":
            return _messages(_text(f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'"))
        case "test_prompt_with_embedded_resource":
            resource = embedded(given["resourceUri"], "text/plain", "Embedded resource content for testing.")
            return _messages(resource, _text("Please process the embedded resource above."))
        case "test_prompt_with_image":
            image = t.ImageContent(type="image", data=PNG, mime_type="image/png")
            return _messages(image, _text("Please analyze the image above."))
        case "test_input_required_result_prompt":
            context = answered(params, "user_context", "context")
            if context is None:
                question = ask_user("What context should the prompt use?", context="string")
                return t.InputRequiredResult(input_requests={"user_context": question})
            return _messages(_text(str(context)))
    raise MCPError(code=t.INVALID_PARAMS, message=f"Unknown prompt: {params.name}")


def _text(text: str) -> t.TextContent:
    return t.TextContent(type="text", text=text)


def _messages(*contents: t.ContentBlock) -> t.GetPromptResult:
    return t.GetPromptResult(messages=[t.PromptMessage(role="user", content=content) for content in contents])


def everything_server() -> Server[Any]:
    """The server itself, on the SDK's low level as the product is."""
    hint = CacheHint(ttl_ms=1000, scope="public")
    server: Server[Any] = Server(
        "everything",
        version="1.0.0",
        cache_hints={
            "tools/list": hint,
            "prompts/list": hint,
            "resources/list": hint,
            "resources/templates/list": hint,
            "resources/read": hint,
        },
        on_list_tools=_list_tools,
        on_call_tool=_call_tool,
        on_list_resources=_list_resources,
        on_list_resource_templates=_list_templates,
        on_read_resource=_read_resource,
        on_subscribe_resource=_done,
        on_unsubscribe_resource=_done,
        on_list_prompts=_list_prompts,
        on_get_prompt=_get_prompt,
        on_completion=_complete,
        on_subscriptions_listen=ListenHandler(BUS),
    )
    # The constructor would warn that logging is deprecated. The suite tests logging with the older revisions.
    server.add_request_handler("logging/setLevel", t.SetLevelRequestParams, _done)
    return server


async def serve(port: int, token: str | None, ready: Callable[[str], None]) -> None:
    """Serve over HTTP behind all middleware of the server."""
    listener = listen("127.0.0.1", port)
    names = ServerConfig(host=listener.host, port=listener.port)
    mcp = mcp_app(everything_server(), hosts=names.hosts, origins=names.origins)
    app = compose(mcp, None, authenticate=token_only(token), hosts=names.hosts, origins=names.origins)
    await serve_http(app, listener, shutdown_grace=1, ready=ready)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("transport", choices=["stdio", "http"])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token")
    parser.add_argument("--max-line", type=int, default=4 * 1024 * 1024)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if options.transport == "stdio":
        anyio.run(lambda: serve_stdio(everything_server(), max_line=options.max_line))
    else:
        anyio.run(serve, options.port, options.token, lambda url: print(url, flush=True))  # noqa: T201 - its one output


if __name__ == "__main__":
    main()
