"""Generate docs/mcp.md from the responses of a server to MCP clients of both protocol revisions."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_HEAD: Final = """# MCP reference

This page describes the MCP interface. It is the same over stdio and over streamable HTTP at `/mcp`. The tools, schemas, resources
and capabilities on this page are the responses of a server with the default configuration; a test compares them. Tools that the
operator has added are listed after the built-in ones.

The server is named `{name}` and sends these instructions to the model:

> {instructions}

## Protocol versions

{versions}

`make conformance` runs the official conformance suite against the server.

## Capabilities

| revisions | capabilities |
|---|---|
{capabilities}

There are no prompts, no sampling and no elicitation, so a result does not depend on the capabilities of the client.
"""
_AFTER_TOOLS: Final = """## Results

A result has structured content in the output schema of the tool, and one short text with the same facts. A result of at most 400
characters is in the text too; a longer one is only in the structured content. With `MCP_SERVER_ANSWER_TEXT=full`, or a protocol
revision before 2025-06-18, the text has everything. A result has at most about 3,000 tokens. `omitted` counts what was left out, or
`truncated` marks it; the full data is at the resource of the run.

| field | meaning |
|---|---|
| `outcome` | `completed`, `partial`, `failed`, `refused`, `cancelled` or `interrupted`. A run that was cut short is never `completed` |
| `coverage` | how many addresses were planned and scanned, which ports, and how. A port that was not scanned is not closed |
| `enforcement` | the tier that enforced the scope: `kernel`, `rootless` or `argument` ([The guard](guard.md)) |
| `from_target` | text that scanned hosts wrote, by its source. It is data, never an instruction ([Text from targets](untrusted-output.md)) |
| `run_id` | the id of the run; its record is at `run://RUN_ID` |
| `error` | `code`, `message`, `hint`, `retryable`, and `details` such as `retry_after` ([Errors](errors.md)) |

"""
_FOOT: Final = """## Progress, cancelling, notifications

- **Progress**: a call with a `progressToken` gets `notifications/progress` about once a second while it waits and runs. Each has a
  number from 0 to 1 that never decreases, and a sentence.
- **Cancelling**: the client sends `notifications/cancelled` (up to 2025-11-25) or ends the request. The program is ended, and the run
  is `cancelled` and keeps its results so far.
- **Changed tools**: a client of 2026-07-28 subscribes with `subscriptions/listen`. Earlier clients get
  `notifications/tools/list_changed` on their connection; over HTTP, on the stream that they opened with `GET /mcp`. At most 32
  clients of an interface can listen at the same time.
- Clients that read the cache hint of `tools/list` may keep it for five minutes.

## Errors

| case | response |
|---|---|
| a refused call; a run that failed or was cut short | a tool result with `isError`, and `error` in the structured content |
| an unknown tool | JSON-RPC error -32602 (invalid params), with code `unknown_tool` in `data` |
| an unknown resource; a wrong cursor or offset | JSON-RPC error -32602, with the code (`unknown_run`, `invalid_arguments`, …) in `data` |
| a resource that cannot be read at the moment | JSON-RPC error -32603 (internal error), with the code (`store_unavailable`, …) in `data` |
| an unknown method | JSON-RPC error -32601 |
| a line or body that is not JSON | JSON-RPC error -32700 |
| over HTTP, before MCP: no valid credential, a missing permission, a Host or Origin that is not allowed, a body that is too large, no free slot | the status and problem body of [Errors](errors.md) |

Every code is a row of [Errors](errors.md) and is the same in all interfaces.
"""


@dataclass(frozen=True, slots=True)
class Responses:
    """The responses of the server to one client."""

    version: str
    capabilities: dict[str, Any]
    tools: list[dict[str, Any]]
    templates: list[dict[str, Any]]
    name: str
    instructions: str


def page() -> str:
    """Return the page."""
    return "\n".join(_lines(*asyncio.run(_ask())))


async def _ask() -> tuple[Responses, Responses]:
    """Connect a client with a handshake and one without, each to a real server in this process."""
    from mcp_server.config import load_config
    from mcp_server.server import EnhancedMCPServer

    with tempfile.TemporaryDirectory() as folder:
        server = EnhancedMCPServer(load_config(env={"MCP_STATE_DIR": str(Path(folder) / "state")}))
        try:
            return await _connect(server, "legacy"), await _connect(server, "auto")
        finally:
            await server.cleanup()


async def _connect(server: Any, mode: Any) -> Responses:
    from mcp import Client

    from mcp_server.api.mcp.handlers import build_mcp_server

    def plain(value: Any) -> Any:
        return value.model_dump(by_alias=True, exclude_none=True, mode="json")

    async with Client(build_mcp_server(server.pipeline, "stdio"), mode=mode) as client:
        return Responses(
            version=client.protocol_version,
            capabilities=plain(client.server_capabilities),
            tools=[plain(tool) for tool in (await client.list_tools()).tools],
            templates=[plain(each) for each in (await client.list_resource_templates()).resource_templates],
            name=client.server_info.name if client.server_info else "",
            instructions=client.instructions or "",
        )


def _lines(handshake: Responses, modern: Responses) -> Iterator[str]:
    from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

    if handshake.tools != modern.tools or handshake.templates != modern.templates:
        raise RuntimeError("The protocol revisions list different tools or resources. Describe this on the page.")
    revisions = {"handshake": HANDSHAKE_PROTOCOL_VERSIONS, "per request": MODERN_PROTOCOL_VERSIONS}
    versions = "\n".join(
        [
            f"- **{', '.join(revisions['handshake'])}**: a session that begins with `initialize`.",
            f"- **{', '.join(revisions['per request'])}**: no session; each request has its revision and the client's capabilities.",
        ]
    )
    capabilities = "\n".join(
        f"| {revision} ({responses.version}) | `{json.dumps(responses.capabilities)}` |"
        for revision, responses in zip(revisions, (handshake, modern), strict=True)
    )
    yield _HEAD.format(name=modern.name, instructions=modern.instructions, versions=versions, capabilities=capabilities)
    yield "## Tools\n"
    for tool in modern.tools:
        yield from _tool(tool)
    yield _AFTER_TOOLS
    yield "## Resources\n\n`resources/list` lists the runs, newest first, in pages of 50.\n"
    yield "| template | type | content |\n|---|---|---|"
    for each in modern.templates:
        yield f"| `{each['uriTemplate']}` | `{each['mimeType']}` | {each['description']} |"
    yield "\nIf there are more pages, `next` in the `_meta` of the contents is the URI of the next page. A page of a run also has `next`.\n"
    yield _FOOT


def _tool(tool: dict[str, Any]) -> Iterator[str]:
    hints = ", ".join(f"`{key}`: {str(value).lower()}" for key, value in tool["annotations"].items())
    yield f"### {tool['name']}\n\n{tool['title']}. {tool['description']} See [{tool['name']}](tools/{tool['name']}.md).\n"
    yield f"Annotations: {hints}.\n\n| parameter | schema | meaning |\n|---|---|---|"
    required = tool["inputSchema"].get("required", ())
    for name, schema in tool["inputSchema"]["properties"].items():
        rest = {key: value for key, value in schema.items() if key != "description"}
        mark = " (required)" if name in required else ""
        meaning = schema.get("description", "").replace("|", "\\|")
        yield f"| `{name}`{mark} | {_code(rest)} | {meaning} |"
    yield "\nOutput:\n\n| field | schema | meaning |\n|---|---|---|"
    required = tool["outputSchema"].get("required", ())
    for name, schema in tool["outputSchema"]["properties"].items():
        rest = {key: value for key, value in schema.items() if key != "description"}
        mark = " (always present)" if name in required else ""
        yield f"| `{name}`{mark} | {_code(rest)} | {schema.get('description', '')} |"
    yield ""


def _code(schema: dict[str, Any]) -> str:
    text = json.dumps(schema, separators=(",", ":")).replace("|", "\\|")
    return f"`{text}`"
