"""Every error of the project: one tree of classes, and one table from code to HTTP status, exit code and hint.

::

    NetworkToolsError
    ├── ConfigError             the configuration cannot be used
    ├── RefusedError            the call was refused before a process was started
    │   ├── ArgumentError       a parameter is unknown, mistyped, out of bounds or unsafe
    │   ├── TargetError         a target is malformed, unresolvable or out of scope
    │   ├── AccessError         authentication, role, risk tier or approval is missing
    │   ├── NotFoundError       there is no such tool, run or page
    │   ├── ConflictError       the object exists, but its present state does not allow the call
    │   └── BusyError           a limit on rate, concurrency or queue length was reached
    └── ToolError               the call was allowed, and running it failed
        └── PlatformError       the host cannot run it: binary, disk, permission

Each error has a stable ``code`` (a row of `ERRORS`), a message that names the wrong value, a hint that says what to do,
and whether the same call may succeed later. Message and hint are complete sentences with a full stop, so they can be
shown one after the other. Interfaces translate errors only by this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class ToolErrorType(StrEnum):
    """The kinds of failure that a `ToolOutput` reports."""

    TIMEOUT = "timeout"
    NOT_FOUND = "not_found"
    VALIDATION_ERROR = "validation_error"
    EXECUTION_ERROR = "execution_error"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    CIRCUIT_BREAKER_OPEN = "circuit_breaker_open"
    UNKNOWN = "unknown"


class ExitCode:
    """Exit codes of the command line. Errors with the same remedy share a code."""

    OK: Final = 0
    INTERNAL: Final = 1
    USAGE: Final = 2
    REFUSED: Final = 3
    NOT_FOUND: Final = 4
    TOOL_FAILED: Final = 5
    INCOMPLETE: Final = 6
    BUSY: Final = 7
    CONFIG: Final = 8
    ENVIRONMENT: Final = 9


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """One row of the table: how every interface reports an error code."""

    http: int
    exit: int
    hint: str
    type: ToolErrorType = ToolErrorType.VALIDATION_ERROR
    retryable: bool = False


_EXECUTION, _RESOURCES = ToolErrorType.EXECUTION_ERROR, ToolErrorType.RESOURCE_EXHAUSTED
_UNKNOWN = ToolErrorType.UNKNOWN

ERRORS: Final[dict[str, ErrorSpec]] = {
    # the call
    "invalid_arguments": ErrorSpec(
        422, ExitCode.USAGE, "Correct the named parameter. The input schema of the tool lists all parameters."
    ),
    "forbidden_characters": ErrorSpec(
        400, ExitCode.REFUSED, "Remove the named character. Parameters are typed values, never shell text."
    ),
    "argument_not_allowed": ErrorSpec(
        400, ExitCode.REFUSED, "Use only flags from the table of the tool, in the exact spelling."
    ),
    "arguments_too_long": ErrorSpec(400, ExitCode.REFUSED, "Shorten the value below the limit in the message."),
    "body_too_large": ErrorSpec(413, ExitCode.REFUSED, "Send a body of less than 4 MiB."),
    "request_timeout": ErrorSpec(
        408, ExitCode.BUSY, "Send the whole body without long pauses.", type=ToolErrorType.TIMEOUT, retryable=True
    ),
    "unknown_tool": ErrorSpec(404, ExitCode.NOT_FOUND, "List the tools, and use one of their names."),
    "unknown_run": ErrorSpec(404, ExitCode.NOT_FOUND, "List the runs, and use one of their ids."),
    "not_found": ErrorSpec(404, ExitCode.NOT_FOUND, "Check the path against the page of the REST API."),
    "method_not_allowed": ErrorSpec(405, ExitCode.USAGE, "Use one of the methods in the Allow header."),
    "run_not_finished": ErrorSpec(409, ExitCode.BUSY, "Wait until the run has ended, and ask again.", retryable=True),
    # the target
    "invalid_target": ErrorSpec(
        400, ExitCode.REFUSED, "Write addresses in canonical form: 10.0.0.1, 10.0.0.0/24, fd00::1 or host.lab.internal."
    ),
    "target_out_of_scope": ErrorSpec(
        400, ExitCode.REFUSED, "Choose a target inside the scope. Only the operator can widen the scope."
    ),
    "target_unresolvable": ErrorSpec(400, ExitCode.REFUSED, "Check the name, or give the address.", retryable=True),
    "too_many_targets": ErrorSpec(400, ExitCode.REFUSED, "Split the call into smaller networks."),
    # permission
    "unauthorized": ErrorSpec(
        401, ExitCode.REFUSED, "Send 'Authorization: Bearer CREDENTIAL' with a valid token or API key."
    ),
    "locked_out": ErrorSpec(
        429, ExitCode.BUSY, "Wait for the time in retry_after, then send a valid credential.", retryable=True
    ),
    "identity_unavailable": ErrorSpec(
        503,
        ExitCode.ENVIRONMENT,
        "Try again after the time in retry_after. The operator finds the reason with 'mcp-network-tools doctor'.",
        type=_EXECUTION,
        retryable=True,
    ),
    "forbidden_origin": ErrorSpec(403, ExitCode.REFUSED, "Use a Host and an Origin that the server allows."),
    "insufficient_scope": ErrorSpec(
        403, ExitCode.REFUSED, "Use a credential with the scope listed in details. Ask the administrator for one."
    ),
    "intrusive_not_allowed": ErrorSpec(
        403, ExitCode.REFUSED, "Ask the operator to set security.allow_intrusive to true."
    ),
    "risk_not_allowed": ErrorSpec(
        403,
        ExitCode.REFUSED,
        "Make a call of lower risk, such as mode discover, or ask the operator to raise max_risk.",
    ),
    "outside_time_window": ErrorSpec(
        403, ExitCode.BUSY, "Call again inside the time window, which 'scope check' shows.", retryable=True
    ),
    "budget_exceeded": ErrorSpec(
        429, ExitCode.BUSY, "Ask for fewer addresses or ports, or try again later.", type=_RESOURCES, retryable=True
    ),
    # admission
    "too_many_requests": ErrorSpec(
        429, ExitCode.BUSY, "Wait until running calls have ended, then try again.", type=_RESOURCES, retryable=True
    ),
    "rate_limited": ErrorSpec(
        429, ExitCode.BUSY, "Wait for the time in retry_after, then try again.", type=_RESOURCES, retryable=True
    ),
    "circuit_open": ErrorSpec(
        503,
        ExitCode.BUSY,
        "Wait for the time in retry_after. 'mcp-network-tools doctor' may show why the tool has failed.",
        type=ToolErrorType.CIRCUIT_BREAKER_OPEN,
        retryable=True,
    ),
    "tool_disabled": ErrorSpec(
        409, ExitCode.REFUSED, "Use another tool, or ask the operator to enable this one.", type=_EXECUTION
    ),
    "shutting_down": ErrorSpec(
        503,
        ExitCode.BUSY,
        "The server is stopping. Call again when a server is ready.",
        type=_RESOURCES,
        retryable=True,
    ),
    # running
    "binary_not_found": ErrorSpec(
        503,
        ExitCode.ENVIRONMENT,
        "Install the program. 'mcp-network-tools doctor' prints the command.",
        type=ToolErrorType.NOT_FOUND,
    ),
    "permission_denied": ErrorSpec(
        503,
        ExitCode.ENVIRONMENT,
        "Run 'mcp-network-tools doctor' to see which privilege or folder is missing.",
        type=_EXECUTION,
    ),
    "binary_changed": ErrorSpec(
        503,
        ExitCode.ENVIRONMENT,
        "Find out who replaced the program. If it was an upgrade, reload or restart the server to accept it.",
        type=_EXECUTION,
    ),
    "guard_unavailable": ErrorSpec(
        503,
        ExitCode.ENVIRONMENT,
        "Restart the server to set up the guard. Nothing runs without it. 'mcp-network-tools doctor' shows details.",
        type=_EXECUTION,
        retryable=True,
    ),
    "enforcement_too_weak": ErrorSpec(
        503,
        ExitCode.ENVIRONMENT,
        "Start 'mcp-network-tools serve --guard kernel' as root, or lower security.require_enforcement.",
        type=_EXECUTION,
    ),
    "disk_full": ErrorSpec(
        507, ExitCode.ENVIRONMENT, "Free space in the state folder, and try again.", type=_RESOURCES, retryable=True
    ),
    "audit_unavailable": ErrorSpec(
        503,
        ExitCode.ENVIRONMENT,
        "Make the audit log in the state folder writable. Nothing runs without it.",
        type=_EXECUTION,
        retryable=True,
    ),
    "store_unavailable": ErrorSpec(
        503,
        ExitCode.ENVIRONMENT,
        "Make the store reachable and writable. 'mcp-network-tools doctor' shows where it is.",
        type=_EXECUTION,
        retryable=True,
    ),
    "timeout": ErrorSpec(
        504,
        ExitCode.INCOMPLETE,
        "Raise timeout_sec, or scan fewer addresses or ports.",
        type=ToolErrorType.TIMEOUT,
        retryable=True,
    ),
    "tool_failed": ErrorSpec(
        502, ExitCode.TOOL_FAILED, "Read stderr in the result. The raw output is kept with the run.", type=_EXECUTION
    ),
    "output_exceeded": ErrorSpec(
        502,
        ExitCode.INCOMPLETE,
        "Split the call into smaller calls, or ask the operator to raise limits.max_raw_bytes.",
        type=_RESOURCES,
    ),
    "cancelled": ErrorSpec(
        499,
        ExitCode.INCOMPLETE,
        "Call again. The results so far are kept with the run.",
        type=_EXECUTION,
        retryable=True,
    ),
    "internal_error": ErrorSpec(
        500, ExitCode.INTERNAL, "This is a defect of the server. Its log has the details.", type=_UNKNOWN
    ),
    "audit_broken": ErrorSpec(
        500,
        ExitCode.TOOL_FAILED,
        "Keep the files, compare them with a checkpoint that is kept elsewhere, and find out who changed them.",
        type=_UNKNOWN,
    ),
    # configuration
    "config_invalid": ErrorSpec(
        500, ExitCode.CONFIG, "Correct the named key. 'mcp-network-tools config check' tests a file."
    ),
}
"""The row of each code. `docs/errors.md` has a line for each row, and a test compares them."""


class NetworkToolsError(Exception):
    """The base class of every error that this project raises on purpose.

    ``code`` is a key of `ERRORS`, and ``hint`` defaults to the hint of that row. ``details`` are JSON-ready facts, such
    as the name of a parameter or the limit that was exceeded.
    """

    default_code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint or self.spec.hint
        self.details = details

    @property
    def spec(self) -> ErrorSpec:
        """The row of this error's code."""
        return ERRORS[self.code]

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later."""
        return self.spec.retryable

    def as_dict(self) -> dict[str, Any]:
        """Return the error as every interface shows it: code, message, hint, retryable, and details if any."""
        body: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "retryable": self.retryable,
        }
        if self.details:
            body["details"] = self.details
        return body


class ConfigError(NetworkToolsError):
    """The configuration cannot be used; the message names the key or the file."""

    default_code = "config_invalid"


class RefusedError(NetworkToolsError):
    """The call was refused before a process was started."""


class ArgumentError(RefusedError):
    """A parameter is unknown, mistyped, out of bounds or unsafe."""

    default_code = "invalid_arguments"


class TargetError(RefusedError):
    """A target is malformed, unresolvable or out of scope."""

    default_code = "invalid_target"


class AccessError(RefusedError):
    """Authentication, role, risk tier or approval is missing."""

    default_code = "unauthorized"


class NotFoundError(RefusedError):
    """There is no such tool, run or page."""

    default_code = "not_found"


class ConflictError(RefusedError):
    """The object exists, but its present state does not allow the call."""

    default_code = "run_not_finished"


class BusyError(RefusedError):
    """A limit on rate, concurrency or queue length was reached."""

    default_code = "too_many_requests"


class ToolError(NetworkToolsError):
    """The call was allowed, and running it failed."""

    default_code = "tool_failed"


class PlatformError(ToolError):
    """The host cannot run the tool: a binary, disk space or a permission is missing."""

    default_code = "permission_denied"
