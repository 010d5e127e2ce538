"""The tools that the official conformance suite calls by name.

The suite describes what each tool must do (`conformance list`, and the description of each scenario).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import mcp_types as t
from mcp.server.context import ServerRequestContext
from mcp.server.subscriptions import InMemorySubscriptionBus, PromptsListChanged, ToolsListChanged
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError

Context: TypeAlias = ServerRequestContext[Any, Any]
Params: TypeAlias = t.CallToolRequestParams
Answer: TypeAlias = t.CallToolResult | t.InputRequiredResult
Handler: TypeAlias = Callable[[Context, Params], Awaitable[Answer]]

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEARKwAAIhYAQACABAAZGF0YQAAAAA="

BUS = InMemorySubscriptionBus()
_STATE_KEY = secrets.token_bytes(32)


@dataclass(frozen=True)
class Fixture:
    tool: t.Tool
    handler: Handler


FIXTURES: dict[str, Fixture] = {}


def fixture(
    description: str, *, schema: dict[str, Any] | None = None, name: str | None = None
) -> Callable[[Handler], Handler]:
    """Register a tool under the name of its function; ``schema`` is its whole input schema."""

    def register(handler: Handler) -> Handler:
        tool_name = name or str(handler.__name__)
        input_schema = schema or {"type": "object", "properties": {}}
        FIXTURES[tool_name] = Fixture(
            t.Tool(name=tool_name, description=description, input_schema=input_schema), handler
        )
        return handler

    return register


def text_result(text: str, *, is_error: bool = False) -> t.CallToolResult:
    return t.CallToolResult(content=[t.TextContent(type="text", text=text)], is_error=is_error)


def strings(*names: str) -> dict[str, Any]:
    """Return the schema of an object with these required string properties."""
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": list(names)}


def embedded(uri: str, mime_type: str, text: str) -> t.EmbeddedResource:
    return t.EmbeddedResource(type="resource", resource=t.TextResourceContents(uri=uri, mime_type=mime_type, text=text))


@fixture("Answers with one text")
async def test_simple_text(ctx: Context, params: Params) -> Answer:
    return text_result("This is a simple text response for testing.")


@fixture("Answers with one image")
async def test_image_content(ctx: Context, params: Params) -> Answer:
    return t.CallToolResult(content=[t.ImageContent(type="image", data=PNG, mime_type="image/png")])


@fixture("Answers with one sound")
async def test_audio_content(ctx: Context, params: Params) -> Answer:
    return t.CallToolResult(content=[t.AudioContent(type="audio", data=WAV, mime_type="audio/wav")])


@fixture("Answers with one embedded resource")
async def test_embedded_resource(ctx: Context, params: Params) -> Answer:
    resource = embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")
    return t.CallToolResult(content=[resource])


@fixture("Answers with a text, an image and a resource")
async def test_multiple_content_types(ctx: Context, params: Params) -> Answer:
    data = json.dumps({"test": "data", "value": 123})
    return t.CallToolResult(
        content=[
            t.TextContent(type="text", text="Multiple content types test:"),
            t.ImageContent(type="image", data=PNG, mime_type="image/png"),
            embedded("test://mixed-content-resource", "application/json", data),
        ]
    )


@fixture("Fails")
async def test_error_handling(ctx: Context, params: Params) -> Answer:
    return text_result("This tool intentionally returns an error for testing", is_error=True)


async def _log(ctx: Context, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MCPDeprecationWarning)  # the suite still tests logging
        await ctx.session.send_log_message("info", text, related_request_id=ctx.request_id)


@fixture("Sends three log messages")
async def test_tool_with_logging(ctx: Context, params: Params) -> Answer:
    for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await _log(ctx, text)
        await asyncio.sleep(0.05)
    return text_result("done")


@fixture("Sends a log message, which the client must have asked for", name="test_logging_tool")
async def log_once(ctx: Context, params: Params) -> Answer:
    await _log(ctx, "working")
    return text_result("done")


@fixture("Reports progress three times")
async def test_tool_with_progress(ctx: Context, params: Params) -> Answer:
    for progress in (0, 50, 100):
        await ctx.session.report_progress(progress, 100, f"{progress} of 100")
        await asyncio.sleep(0.05)
    return text_result("done")


@fixture("Closes its stream in the middle, if the transport can resume streams")
async def test_reconnection(ctx: Context, params: Params) -> Answer:
    if ctx.close_sse_stream is not None:
        await ctx.close_sse_stream()
    await asyncio.sleep(0.1)
    return text_result("Reconnection test completed successfully")


@fixture("Asks the client's model", schema=strings("prompt"))
async def test_sampling(ctx: Context, params: Params) -> Answer:
    question = t.TextContent(type="text", text=(params.arguments or {})["prompt"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MCPDeprecationWarning)  # the suite still tests sampling
        answer = await ctx.session.create_message(
            [t.SamplingMessage(role="user", content=question)], max_tokens=100, related_request_id=ctx.request_id
        )
    text = answer.content.text if isinstance(answer.content, t.TextContent) else ""
    return text_result(f"LLM response: {text}")


async def _elicit(ctx: Context, message: str, schema: dict[str, Any]) -> Answer:
    answer = await ctx.session.elicit_form(message, schema, related_request_id=ctx.request_id)
    return text_result(f"Elicitation completed: action={answer.action}, content={json.dumps(answer.content or {})}")


@fixture("Asks the client's user", schema=strings("message"))
async def test_elicitation(ctx: Context, params: Params) -> Answer:
    return await _elicit(ctx, (params.arguments or {})["message"], strings("username", "email"))


@fixture("Asks the client's user, with a default for each primitive type")
async def test_elicitation_sep1034_defaults(ctx: Context, params: Params) -> Answer:
    properties = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    }
    return await _elicit(ctx, "Who are you?", {"type": "object", "properties": properties})


@fixture("Asks the client's user, with each form of enumeration")
async def test_elicitation_sep1330_enums(ctx: Context, params: Params) -> Answer:
    plain = ["option1", "option2", "option3"]
    titled = [{"const": f"value{n}", "title": f"Choice {n}"} for n in (1, 2, 3)]
    properties = {
        "untitledSingle": {"type": "string", "enum": plain},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
    }
    return await _elicit(ctx, "Which ones?", {"type": "object", "properties": properties})


JSON_SCHEMA_2020_12 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


@fixture("Has a schema that uses all of JSON Schema 2020-12", schema=JSON_SCHEMA_2020_12)
async def json_schema_2020_12_tool(ctx: Context, params: Params) -> Answer:
    return text_result("done")


HEADER_SCHEMA = {
    "type": "object",
    "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
    "required": ["region"],
}


@fixture("Mirrors one parameter in a header", schema=HEADER_SCHEMA)
async def test_custom_headers(ctx: Context, params: Params) -> Answer:
    return text_result((params.arguments or {})["region"])


@fixture("Changes the list of tools")
async def test_trigger_tool_change(ctx: Context, params: Params) -> Answer:
    await BUS.publish(ToolsListChanged())
    return text_result("done")


@fixture("Changes the list of prompts")
async def test_trigger_prompt_change(ctx: Context, params: Params) -> Answer:
    await BUS.publish(PromptsListChanged())
    return text_result("done")


def ask_user(message: str, **properties: str) -> t.ElicitRequest:
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in properties.items()},
        "required": list(properties),
    }
    return t.ElicitRequest(params=t.ElicitRequestFormParams(message=message, requested_schema=schema))


def ask_model(question: str) -> t.CreateMessageRequest:
    content = t.TextContent(type="text", text=question)
    messages = [t.SamplingMessage(role="user", content=content)]
    return t.CreateMessageRequest(params=t.CreateMessageRequestParams(messages=messages, max_tokens=100))


def answered(params: t.InputResponseRequestParams, key: str, field: str) -> Any:
    """Return what the user entered in ``field`` of the form ``key``, or None if it is missing."""
    response = (params.input_responses or {}).get(key)
    return (response.content or {}).get(field) if isinstance(response, t.ElicitResult) else None


def seal(state: str) -> str:
    return f"{state}.{hmac.new(_STATE_KEY, state.encode(), hashlib.sha256).hexdigest()}"


def unseal(sealed: str | None) -> str | None:
    """Return the state of a request, or None if there is none; raise an error for a changed state."""
    if sealed is None:
        return None
    state = sealed.rpartition(".")[0]
    if not hmac.compare_digest(seal(state).encode(), sealed.encode()):
        raise MCPError(code=t.INVALID_PARAMS, message="requestState was tampered with")
    return state


@fixture("Needs the user's name")
async def test_input_required_result_elicitation(ctx: Context, params: Params) -> Answer:
    name = answered(params, "user_name", "name")
    if name is None:
        return t.InputRequiredResult(input_requests={"user_name": ask_user("What is your name?", name="string")})
    return text_result(f"Hello, {name}!")


@fixture("Needs an answer of the model")
async def test_input_required_result_sampling(ctx: Context, params: Params) -> Answer:
    answer = (params.input_responses or {}).get("capital_question")
    if answer is None:
        question = ask_model("What is the capital of France?")
        return t.InputRequiredResult(input_requests={"capital_question": question})
    return text_result(answer.model_dump_json())


@fixture("Needs the client's roots")
async def test_input_required_result_list_roots(ctx: Context, params: Params) -> Answer:
    answer = (params.input_responses or {}).get("client_roots")
    if answer is None:
        return t.InputRequiredResult(input_requests={"client_roots": t.ListRootsRequest()})
    return text_result(answer.model_dump_json())


async def _confirmed(ctx: Context, params: Params) -> Answer:
    state = unseal(params.request_state)
    if state is None or answered(params, "confirm", "ok") is None:
        confirm = {"confirm": ask_user("Please confirm", ok="boolean")}
        return t.InputRequiredResult(input_requests=dict(confirm), request_state=seal("asked"))
    return text_result("state-ok")


fixture("Carries state", name="test_input_required_result_request_state")(_confirmed)
fixture("Carries state that is sealed", name="test_input_required_result_tampered_state")(_confirmed)


@fixture("Needs three things at once")
async def test_input_required_result_multiple_inputs(ctx: Context, params: Params) -> Answer:
    requests: t.InputRequests = {
        "user_name": ask_user("What is your name?", name="string"),
        "greeting": ask_model("Generate a greeting"),
        "client_roots": t.ListRootsRequest(),
    }
    if unseal(params.request_state) is None or not requests.keys() <= (params.input_responses or {}).keys():
        return t.InputRequiredResult(input_requests=requests, request_state=seal("asked"))
    return text_result("done")


@fixture("Asks twice")
async def test_input_required_result_multi_round(ctx: Context, params: Params) -> Answer:
    state = unseal(params.request_state)
    if state is None:
        step = {"step1": ask_user("Step 1: What is your name?", name="string")}
        return t.InputRequiredResult(input_requests=dict(step), request_state=seal("1"))
    if state == "1":
        step = {"step2": ask_user("Step 2: What is your favorite color?", color="string")}
        return t.InputRequiredResult(input_requests=dict(step), request_state=seal("2"))
    return text_result("done")


@fixture("Asks only in ways that the client declared")
async def test_input_required_result_capabilities(ctx: Context, params: Params) -> Answer:
    capabilities = ctx.session.client_capabilities or t.ClientCapabilities()
    requests: t.InputRequests = {}
    if capabilities.sampling is not None:
        requests["model"] = ask_model("Generate a greeting")
    if capabilities.elicitation is not None:
        requests["user"] = ask_user("What is your name?", name="string")
    return (
        t.InputRequiredResult(input_requests=requests)
        if requests
        else text_result("the client declared neither sampling nor elicitation")
    )


@fixture("Needs a model at the client")
async def test_missing_capability(ctx: Context, params: Params) -> Answer:
    needed = t.ClientCapabilities(sampling=t.SamplingCapability())
    if not ctx.session.check_client_capability(needed):
        raise MCPError(
            code=t.MISSING_REQUIRED_CLIENT_CAPABILITY,
            message="this tool needs the sampling capability",
            data={"requiredCapabilities": {"sampling": {}}},
        )
    return text_result("done")


@fixture("Reports progress, then needs the user's name")
async def test_streaming_elicitation(ctx: Context, params: Params) -> Answer:
    await ctx.session.report_progress(1, 2)
    return await test_input_required_result_elicitation(ctx, params)
