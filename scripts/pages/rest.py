"""Generate docs/rest.md from the OpenAPI document that a server returns at ``/openapi.json``."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_HEAD: Final = """# REST reference

`mcp-network-tools serve --transport http` provides these routes beside `/mcp` of MCP. This page is generated from the OpenAPI document of
the server, which is at `/openapi.json` and, for people, at `/docs`. A test compares the page with the document, and another test
compares a real server with the document.

```
curl -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8080/tools
curl -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \\
  -d '{"target": "192.168.1.10", "ports": "22,80"}' http://127.0.0.1:8080/tools/nmap/execute
```

- Every route except `/livez` and `/readyz` needs a credential ([Authentication](identity.md)), and most need a permission
  ([Authorization](actors.md)).
- An error is an `application/problem+json` body (RFC 9457) with the schema `Problem` below and a `code` of the
  [table of errors](errors.md). If it says when to try again, the header `Retry-After` has the same value.
- An unknown query parameter or body key is refused (422). Otherwise a misspelled filter would look like no filter.
- Lists have pages: send `next_cursor` of one page as `cursor` to get the next one.
- Later versions may add fields to responses. Clients must ignore fields that they do not know.
- Text from a target is only under `from_target` ([Text from targets](untrusted-output.md)).
"""
_METHODS: Final = ("get", "post", "put", "patch", "delete")


def page() -> str:
    """Return the page."""
    return "\n".join(_lines(document()))


def document() -> dict[str, Any]:
    """Return the OpenAPI document of a server with the default configuration."""
    from mcp_server.api.rest.app import build_rest
    from mcp_server.config import load_config
    from mcp_server.server import EnhancedMCPServer
    from mcp_server.server.services import rest_services

    async def build() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            server = EnhancedMCPServer(load_config(env={"MCP_STATE_DIR": str(Path(folder) / "state")}))
            try:
                return build_rest(rest_services(server.services)).openapi()
            finally:
                await server.cleanup()

    return asyncio.run(build())


def _lines(openapi: dict[str, Any]) -> Iterator[str]:
    yield _HEAD
    yield "## Routes\n\n| route | purpose |\n|---|---|"
    routes = [
        (method, path, operation)
        for path, operations in sorted(openapi["paths"].items())
        for method, operation in operations.items()
        if method in _METHODS
    ]
    for method, path, operation in routes:
        yield f"| {_link(method, path)} | {_cell(operation['summary'])} |"
    yield ""
    for method, path, operation in routes:
        yield from _route(method, path, operation)
    yield "## Schemas\n"
    for name, schema in sorted(openapi["components"]["schemas"].items()):
        yield from _schema(name, schema)


def _route(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### {method.upper()} {path}\n\n{operation['summary']}.\n"
    if operation.get("parameters"):
        yield "| parameter | in | type | default | meaning |\n|---|---|---|---|---|"
        for parameter in operation["parameters"]:
            schema = parameter["schema"]
            default = f"`{schema['default']}`" if schema.get("default") is not None else ""
            required = " (required)" if parameter.get("required") else ""
            meaning = _cell(parameter.get("description", ""))
            yield f"| `{parameter['name']}`{required} | {parameter['in']} | {_type(schema)} | {default} | {meaning} |"
        yield ""
    if "requestBody" in operation:
        (schema,) = (content["schema"] for content in operation["requestBody"]["content"].values())
        yield f"Body: {_type(schema)}. {schema.get('description', '')}\n"
    yield "| status | response |\n|---|---|"
    problems = []
    for status, response in sorted(operation["responses"].items()):
        kinds = response.get("content", {})
        if "application/problem+json" in kinds and set(kinds) == {"application/problem+json"}:
            problems.append(status)
            continue
        schemas = "; ".join(f"{_type(content.get('schema', {}))} as `{kind}`" for kind, content in kinds.items())
        headers = ", ".join(f"`{name}`" for name in response.get("headers", {}))
        description = _cell(response.get("description", "")).removeprefix("Successful Response")
        yield f"| {status} | {': '.join(filter(None, (description, schemas)))}{'; headers ' + headers if headers else ''} |"
    if problems:
        yield f"| {', '.join(problems)} | [Problem](#problem) |"
    yield ""


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    if schema.get("description"):
        yield f"{' '.join(schema['description'].split()).replace('``', '`')}\n"
    if "properties" not in schema:
        yield f"{_type(schema)}\n"
        return
    required = schema.get("required", ())
    yield "| field | type | meaning |\n|---|---|---|"
    for key, field in schema["properties"].items():
        mark = "" if key in required else " (may be missing)"
        yield f"| `{key}`{mark} | {_type(field, codes=key != 'code')} | {_cell(field.get('description', ''))} |"
    yield ""


def _type(schema: dict[str, Any], *, codes: bool = True) -> str:
    """Return a schema in a few words, with links to the schemas it names; without ``codes``, values are left out."""
    branches = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf") or ()
    if branches:
        named = (_type(branch, codes=codes) for branch in branches if branch != {"type": "null"})
        return " or ".join(dict.fromkeys(named))
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if values:
        return ", ".join(f"`{value}`" for value in values) if codes else "text"
    name = schema.get("$ref", "").rpartition("/")[2]
    return f"[{name}](#{name.lower()})" if name else _plain(schema)


def _plain(schema: dict[str, Any]) -> str:
    """Return the description of a basic JSON type."""
    low, high = schema.get("minimum"), schema.get("maximum")
    match schema.get("type"):
        case "array":
            text = f"list of {_type(schema.get('items', {}))}{_bounds(schema, 'Items')}"
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            inner = _type(schema["additionalProperties"])
            text = f"object of {inner}" if inner != "anything" else "object"
        case "string":
            special = {"date-time": "time (RFC 3339)", "binary": "bytes"}
            text = special.get(schema.get("format", ""), "text") + _bounds(schema, "Length")
        case "integer" | "number" as kind:
            span = f" {low:g} to {high:g}" if high is not None else f" from {low:g}" if low is not None else ""
            text = f"{kind}{span}"
        case kind:
            text = str(kind or "anything")
    return text


def _bounds(schema: dict[str, Any], what: str) -> str:
    high = schema.get(f"max{what}")
    return "" if high is None else f", at most {high}{' characters' if what == 'Length' else ''}"


def _link(method: str, path: str) -> str:
    """Return a link to the heading of a route, but not for ``GET /``, whose anchor differs between renderers."""
    text = f"`{method.upper()} {path}`"
    letters = re.sub(r"[^\w-]", "", path)
    return f"[{text}](#{method}-{letters.lower()})" if letters else text


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")
