"""docs/mcp.md, written from what a server says to MCP clients of both wire eras."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_HEAD: Final = """# MCP reference

What a client sees, over stdio and over streamable HTTP at `/mcp` alike. The tools, schemas, resources and capabilities on this
page are what a server with the default configuration answered when the page was written; a test holds them to it. Tools of the
owner's own are listed after the built-in ones.

Server `{name}`, with these instructions for the model:

> {instructions}

## Protocol versions

{versions}

`scripts/conformance.sh` (`make conformance`) runs the official conformance suite against it.

## Capabilities

| era | capabilities |
|---|---|
{capabilities}

There are no prompts, no sampling and no elicitation: nothing of an answer depends on what a client can do.
"""
_AFTER_TOOLS: Final = """## Answers

A call is answered with structured content in the tool's output schema and one short text with the same facts. A result of at
most 400 characters stands in the text too; a longer one only in the structure. `MCP_SERVER_ANSWER_TEXT=full`, or a protocol
version before 2025-06-18, brings all of it as text as well. An answer has at most about 3,000 tokens; what was left out is
counted in `omitted`, or said by `truncated`, and is at the run's resource.

| field | what it says |
|---|---|
| `outcome` | `completed`, `partial`, `failed`, `refused`, `cancelled` or `interrupted`: a run that was cut short never says `completed` |
| `coverage` | how many addresses were planned and looked at, which ports and how; what was not looked at is not closed |
| `enforcement` | the tier the scope was held by: `kernel`, `rootless` or `argument` ([The guard](guard.md)) |
| `from_target` | text that scanned hosts wrote, by its source: data, never instructions ([Text from targets](untrusted-output.md)) |
| `run_id` | the run's record is at `run://RUN_ID` |
| `error` | `code`, `message`, `hint`, `retryable`, and `details` such as `retry_after` ([Errors](errors.md)) |

"""
_FOOT: Final = """## Progress, cancelling, notifications

- **Progress**: a call with a `progressToken` gets `notifications/progress` about once a second while it waits and runs: a share
  from 0 to 1 that never falls, and a sentence.
- **Cancelling**: `notifications/cancelled` (up to 2025-11-25), or a request that its client ends. The program is ended, the run is
  `cancelled` and keeps what it had.
- **Changed tools**: a client of 2026-07-28 asks for it with `subscriptions/listen`; earlier ones get
  `notifications/tools/list_changed` on their connection, over HTTP on the stream that they opened with `GET /mcp`. At most
  32 clients of a interface listen at once.
- `tools/list` may be kept for five minutes by clients that read its cache hint.

## Errors

| what | answer |
|---|---|
| a refused call, a run that failed or was cut short | a tool result with `isError`, and `error` in its structure |
| a tool that there is not | JSON-RPC error -32602 (invalid params), with code `unknown_tool` in `data` |
| a resource that there is not, a wrong cursor or offset | JSON-RPC error -32602, with the code (`unknown_run`, `invalid_arguments`, …) in `data` |
| a resource that cannot be read now | JSON-RPC error -32603 (internal error), with the code (`store_unavailable`, …) in `data` |
| a method that there is not | JSON-RPC error -32601 |
| a line or body that is no JSON | JSON-RPC error -32700 |
| over HTTP, before MCP is reached: no good credential, a scope that is missing, another Host or Origin, too large, no place | the status and problem body of [Errors](errors.md) |

Every code is a row of [Errors](errors.md), the same in all interfaces.
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one client was told."""

    version: str
    capabilities: dict[str, Any]
    tools: list[dict[str, Any]]
    templates: list[dict[str, Any]]
    name: str
    instructions: str


def page() -> str:
    """The whole page."""
    return "\n".join(_lines(*asyncio.run(_ask())))


async def _ask() -> tuple[Seen, Seen]:
    """Connect a client of the handshake era and one of the later, each to a real server in this process."""
    from mcp_server.config import load_config
    from mcp_server.server import EnhancedMCPServer

    with tempfile.TemporaryDirectory() as folder:
        server = EnhancedMCPServer(load_config(env={"MCP_STATE_DIR": str(Path(folder) / "state")}))
        try:
            return await _see(server, "legacy"), await _see(server, "auto")
        finally:
            await server.cleanup()


async def _see(server: Any, mode: Any) -> Seen:
    from mcp import Client

    from mcp_server.api.mcp.handlers import build_mcp_server

    def plain(value: Any) -> Any:
        return value.model_dump(by_alias=True, exclude_none=True, mode="json")

    async with Client(build_mcp_server(server.pipeline, "stdio"), mode=mode) as client:
        return Seen(
            version=client.protocol_version,
            capabilities=plain(client.server_capabilities),
            tools=[plain(tool) for tool in (await client.list_tools()).tools],
            templates=[plain(each) for each in (await client.list_resource_templates()).resource_templates],
            name=client.server_info.name if client.server_info else "",
            instructions=client.instructions or "",
        )


def _lines(handshake: Seen, modern: Seen) -> Iterator[str]:
    from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

    if handshake.tools != modern.tools or handshake.templates != modern.templates:
        raise RuntimeError("the eras list different tools or resources: the page has to say so")
    revisions = {"handshake": HANDSHAKE_PROTOCOL_VERSIONS, "per request": MODERN_PROTOCOL_VERSIONS}
    versions = "\n".join(
        [
            f"- **{', '.join(revisions['handshake'])}**: a session that begins with `initialize`.",
            f"- **{', '.join(revisions['per request'])}**: no session; each request says its version and what its client can do.",
        ]
    )
    capabilities = "\n".join(
        f"| {revision} ({seen.version}) | `{json.dumps(seen.capabilities)}` |"
        for revision, seen in zip(revisions, (handshake, modern), strict=True)
    )
    yield _HEAD.format(name=modern.name, instructions=modern.instructions, versions=versions, capabilities=capabilities)
    yield "## Tools\n"
    for tool in modern.tools:
        yield from _tool(tool)
    yield _AFTER_TOOLS
    yield "## Resources\n\n`resources/list` names the runs, newest first, in pages of 50.\n"
    yield "| template | type | what it is |\n|---|---|---|"
    for each in modern.templates:
        yield f"| `{each['uriTemplate']}` | `{each['mimeType']}` | {each['description']} |"
    yield "\nWhere there is more, `next` in the contents' `_meta` is the address of the next page (in a run's page `next` as well).\n"
    yield _FOOT


def _tool(tool: dict[str, Any]) -> Iterator[str]:
    hints = ", ".join(f"`{key}`: {str(value).lower()}" for key, value in tool["annotations"].items())
    yield f"### {tool['name']}\n\n{tool['title']}. {tool['description']} How it is used: [{tool['name']}](tools/{tool['name']}.md).\n"
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
        mark = " (always there)" if name in required else ""
        yield f"| `{name}`{mark} | {_code(rest)} | {schema.get('description', '')} |"
    yield ""


def _code(schema: dict[str, Any]) -> str:
    text = json.dumps(schema, separators=(",", ":")).replace("|", "\\|")
    return f"`{text}`"
