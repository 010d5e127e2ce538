"""Step 1, call: who asks for which tool with which parameters, read strictly into types."""

from __future__ import annotations

import getpass
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mcp_server.config.redact import without_secrets
from mcp_server.errors import ArgumentError
from mcp_server.model.run import Actor
from mcp_server.model.untrusted import sanitize
from mcp_server.tools.base import MCPBaseTool, ToolParameters

MAX_PARAMETERS = 64


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it was understood: the tool, its typed parameters, the actor and the ids that follow it."""

    id: str
    tool: MCPBaseTool
    parameters: ToolParameters
    actor: Actor
    correlation_id: str


def user_name() -> str:
    """The user this process runs as; its number where the system knows no name for it, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError up to Python 3.12
        return f"uid {os.getuid()}"


def new_run_id() -> str:
    """An unguessable run id, sortable by nothing: ``r_`` and 96 random bits."""
    return "r_" + secrets.token_hex(12)


def read_call(tool: MCPBaseTool, arguments: Mapping[str, Any], actor: Actor) -> Call:
    """Read ``arguments`` into the tool's parameter model; nothing is coerced.

    Raises ArgumentError naming the first wrong parameter, with all of them in ``details``.
    """
    run_id = new_run_id()
    if len(arguments) > MAX_PARAMETERS:
        # Judging each of very many unknown ones would hold up every other caller.
        raise ArgumentError(f"{tool.tool_name()}: {len(arguments)} parameters are too many, {MAX_PARAMETERS} at most")
    try:
        parameters = tool.parameters.model_validate(dict(arguments))
    except ValidationError as error:
        raise _argument_error(tool, error) from None
    given = parameters.correlation_id
    if given is not None and without_secrets(given) != given:
        # It is kept with the run, and told to others that may read of it.
        raise ArgumentError(f"{tool.tool_name()}: parameter 'correlation_id' holds what reads like a credential")
    return Call(run_id, tool, parameters, actor, parameters.correlation_id or run_id)


def _argument_error(tool: MCPBaseTool, error: ValidationError) -> ArgumentError:
    problems = [_problem(item) for item in _notifying(error.errors(include_url=False, include_context=False))][:8]
    known = ", ".join(tool.parameters.model_fields)
    return ArgumentError(f"{tool.tool_name()}: {problems[0]}", hint=f"Known parameters: {known}.", problems=problems)


def _notifying(errors: list[Any]) -> list[Any]:
    """Leave out the complaints about other types where a parameter has several and one of them nearly fits."""
    told = {_location(item)[0] for item in errors if not item["type"].endswith("_type")}
    return [item for item in errors if not item["type"].endswith("_type") or _location(item)[0] not in told]


def _location(item: Any) -> tuple[Any, ...]:
    # A name that is not even Unicode text has no place: it is the input itself.
    return item["loc"] or (str(item["input"]),)


def _problem(item: Any) -> str:
    # Of a place only the parameter and positions in a list mean something to a caller; the rest names our types.
    first, *rest = _location(item)
    name = sanitize(str(first), 64) + "".join(f".{part}" for part in rest if isinstance(part, int))
    if item["type"] == "extra_forbidden" or not item["loc"]:
        return f"unknown parameter {name!r}"
    if item["type"] == "missing":
        return f"parameter {name!r} is required"
    given = item["input"]
    shown = sanitize(given, 60) if isinstance(given, str) else type(given).__name__
    return f"parameter {name!r}: {item['msg']} (given: {shown})"
