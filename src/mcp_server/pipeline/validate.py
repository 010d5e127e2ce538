"""Step 1, validate: the tool, its strictly typed parameters, and whether the actor may make this call.

A request is validated once. The result goes to every later step.
"""

from __future__ import annotations

import getpass
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mcp_server.config.redact import without_secrets
from mcp_server.errors import ArgumentError, NetworkToolsError
from mcp_server.model.run import Actor
from mcp_server.model.untrusted import sanitize
from mcp_server.scope.permissions import require_any_call, require_risk
from mcp_server.tools.base import MCPBaseTool, PreparedParameters, ServerTool, Tool, ToolParameters
from mcp_server.tools.flags import read
from mcp_server.tools.registry import ToolRegistry

M = TypeVar("M", bound=BaseModel)

MAX_PARAMETERS = 64


@dataclass(frozen=True, slots=True)
class Call:
    """A validated call of a tool that runs a program: the prepared parameters, the actor, and the ids of the run."""

    id: str
    tool: MCPBaseTool
    prepared: PreparedParameters
    actor: Actor
    correlation_id: str

    @property
    def parameters(self) -> ToolParameters:
        """The typed parameters."""
        parameters: ToolParameters = self.prepared.parameters
        return parameters


@dataclass(frozen=True, slots=True)
class Query:
    """A validated call of a tool that runs no program."""

    tool: ServerTool
    parameters: BaseModel


R = TypeVar("R", Call, Query)


@dataclass(frozen=True, slots=True)
class ValidatedRequest:
    """A request as it arrived, and the result of its validation: a call, a query, or the error that refuses it."""

    name: str
    arguments: Mapping[str, Any]
    actor: Actor
    result: Call | Query | NetworkToolsError

    @property
    def lacks_permission(self) -> bool:
        """Whether the actor lacks a permission that this request needs."""
        return isinstance(self.result, NetworkToolsError) and self.result.code == "insufficient_scope"

    def require(self, kind: type[R]) -> R:
        """Return the call or query. Raises the error that refuses the request, or ArgumentError for another kind."""
        if isinstance(self.result, kind):
            return self.result
        if isinstance(self.result, NetworkToolsError):
            raise self.result
        raise ArgumentError(
            f"{self.name} runs no program, so it has no plan.",
            hint="Use a tool that runs a program.",
            parameter="tool",
        )


def validate(
    registry: ToolRegistry, name: str, arguments: Mapping[str, Any], actor: Actor, *, max_args_length: int
) -> ValidatedRequest:
    """Validate a request of an actor for a tool of ``registry``. Looks nothing up and logs nothing."""
    result: Call | Query | NetworkToolsError
    try:
        require_any_call(actor.access)
        tool = registry.get(name)
        if isinstance(tool, ServerTool):
            require_risk(actor.access, tool.risk, tool.tool_name())
            result = Query(tool, _read_parameters(tool, tool.parameters, arguments))
        else:
            result = _read_call(tool, arguments, actor, max_args_length)
    except NetworkToolsError as error:
        result = error
    return ValidatedRequest(name, arguments, actor, result)


def _read_call(tool: MCPBaseTool, arguments: Mapping[str, Any], actor: Actor, max_args_length: int) -> Call:
    """Read a call, and require the permission for its risk.

    If the actor lacks even the permission for the tool's least risk, the refusal names the permission that this call
    needs, so that the client has to ask for more permissions only once. The refusal does not describe the arguments.
    """
    run_id = new_run_id()
    try:
        parameters = _read_parameters(tool, tool.parameters, arguments)
        _check_correlation_id(tool, parameters.correlation_id)
        settings = read(parameters.extra_args, tool.flags(), max_length=max_args_length)
        prepared = tool.prepare(parameters, settings)
    except ArgumentError:
        least = tool.risk if tool.least_risk is None else tool.least_risk
        require_risk(actor.access, least, tool.tool_name())
        raise
    require_risk(actor.access, prepared.risk, tool.tool_name())
    return Call(run_id, tool, prepared, actor, parameters.correlation_id or run_id)


def _check_correlation_id(tool: Tool, given: str | None) -> None:
    # The id is kept with the run, and everybody who may read the run can read it.
    if given is not None and without_secrets(given) != given:
        raise ArgumentError(f"{tool.tool_name()}: parameter 'correlation_id' looks like a credential.")


def _read_parameters(tool: Tool, model: type[M], arguments: Mapping[str, Any]) -> M:
    """Read arguments into the parameter model of a tool, without converting any value.

    Raises ArgumentError that names the first wrong parameter, with up to eight problems in ``details``.
    """
    if len(arguments) > MAX_PARAMETERS:
        # Checking very many unknown parameters would delay every other caller.
        raise ArgumentError(
            f"{tool.tool_name()}: {len(arguments)} parameters are too many. At most {MAX_PARAMETERS} are allowed."
        )
    try:
        return model.model_validate(dict(arguments))
    except ValidationError as error:
        problems = [_problem(item) for item in _relevant(error.errors(include_url=False, include_context=False))][:8]
        known = ", ".join(model.model_fields)
        raise ArgumentError(
            f"{tool.tool_name()}: {problems[0]}.", hint=f"Known parameters: {known}.", problems=problems
        ) from None


def _relevant(errors: list[Any]) -> list[Any]:
    """Leave out errors about one type of a parameter if the value nearly fits a different allowed type."""
    fitting = {_location(item)[0] for item in errors if not item["type"].endswith("_type")}
    return [item for item in errors if not item["type"].endswith("_type") or _location(item)[0] not in fitting]


def _location(item: Any) -> tuple[Any, ...]:
    # A parameter name that is not Unicode text has no location. In that case, the input is the name itself.
    return item["loc"] or (str(item["input"]),)


def _problem(item: Any) -> str:
    # A caller needs only the parameter and positions in a list. The rest of a location names types of this server.
    first, *rest = _location(item)
    name = sanitize(str(first), 64) + "".join(f".{part}" for part in rest if isinstance(part, int))
    if item["type"] == "extra_forbidden" or not item["loc"]:
        return f"unknown parameter {name!r}"
    if item["type"] == "missing":
        return f"parameter {name!r} is required"
    given = item["input"]
    shown = sanitize(given, 60) if isinstance(given, str) else type(given).__name__
    return f"parameter {name!r}: {item['msg']} (given: {shown})"


def user_name() -> str:
    """Return the name of the user that this process runs as, or its number if the system has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError up to Python 3.12
        return f"uid {os.getuid()}"


def new_run_id() -> str:
    """Return a new run id: ``r_`` and 96 random bits, so that it cannot be guessed."""
    return "r_" + secrets.token_hex(12)
