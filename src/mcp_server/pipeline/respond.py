"""Step 7, respond: the result of a run as one value. Each interface shows its own view of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property

from mcp_server.errors import NetworkToolsError, PlatformError, ToolError
from mcp_server.model.run import Coverage, Outcome, Run
from mcp_server.model.untrusted import sanitize
from mcp_server.pipeline.execute import Execution
from mcp_server.pipeline.plan import Plan
from mcp_server.tools.results import Digest


@dataclass(frozen=True)
class CallResult:
    """The result of a call that became a run: the finished run, its digest, bounded output, and the error if any."""

    run: Run
    digest: Digest | None = None
    output: bytes = field(default=b"", repr=False)
    truncated_stdout: bool = False
    truncated_stderr: bool = False
    timed_out: bool = False
    seconds: float = 0.0
    error: NetworkToolsError | None = None

    @cached_property
    def stdout(self) -> str:
        """The sanitized output. Computed on first use: a megabyte takes 5 ms, and MCP does not show nmap's XML."""
        return sanitize_lines(self.output)


def conclude(run: Run, plan: Plan, execution: Execution) -> tuple[Run, NetworkToolsError | None]:
    """Return the run with its outcome, coverage and raw output, and the error if it did not complete.

    A run that was cut short is ``partial`` if it has results, and ``failed`` if it has none.
    """
    error = _error(plan, execution)
    parsed, digest = execution.parsed, execution.digest
    coverage = parsed.coverage if parsed else _plain_coverage(plan, complete=error is None)
    has_results = bool(coverage.looked_at or (parsed is None and execution.stdout))
    if error is not None:
        outcome = Outcome.PARTIAL if has_results else Outcome.FAILED
    else:
        outcome = Outcome.COMPLETED if coverage.complete else Outcome.PARTIAL
    stderr = sanitize_lines(execution.exit.stderr)
    return (
        replace(
            run,
            outcome=outcome,
            ended=datetime.now(UTC),
            returncode=execution.exit.returncode,
            error_code=error.code if error else None,
            error_message=error.message if error else None,
            coverage=coverage,
            raw=execution.raw,
            from_target={"stderr": stderr} if stderr else {},
            tool_version=parsed.version if parsed else "",
            counts=digest.counts if digest else {},
            metadata=run.metadata | ({"warnings": list(parsed.warnings)} if parsed and parsed.warnings else {}),
        ),
        error,
    )


def _error(plan: Plan, execution: Execution) -> NetworkToolsError | None:
    name, exit_, parsed = plan.call.tool.tool_name(), execution.exit, execution.parsed
    if exit_.timed_out:
        return ToolError(f"{name} was stopped after {plan.limits.timeout_sec:g} s.", code="timeout")
    if exit_.output_exceeded:
        return ToolError(
            f"{name} wrote more than {plan.limits.output_bytes} bytes and was stopped.", code="output_exceeded"
        )
    if exit_.returncode not in plan.command.ok_returncodes:
        return ToolError(f"{name} ended with return code {exit_.returncode}.", returncode=exit_.returncode)
    if parsed is not None and not parsed.complete:
        reason = f": {parsed.error}" if parsed.error else ""
        return ToolError(f"{name} ended before its output was complete{reason}.")
    if execution.raw.truncated:
        return PlatformError(f"{name} wrote more raw output than can be kept.", code="output_exceeded")
    return None


def _plain_coverage(plan: Plan, *, complete: bool) -> Coverage:
    """Return the coverage of a tool without a parser: all targets if it completed, else none."""
    count = plan.targets.count
    return Coverage(
        addresses=plan.targets.canonical(),
        planned=count,
        ports=plan.command.ports,
        looked_at=count if complete else 0,
        up=0,
        down=0,
        not_looked_at_count=0 if complete else count,
        complete=complete,
    )


def make_result(run: Run, execution: Execution, error: NetworkToolsError | None) -> CallResult:
    """Build the result of a finished run."""
    return CallResult(
        run=run,
        digest=execution.digest,
        output=execution.stdout,
        truncated_stdout=execution.truncated_stdout,
        truncated_stderr=execution.exit.stderr_truncated,
        timed_out=execution.exit.timed_out,
        seconds=execution.exit.seconds,
        error=error,
    )


def sanitize_lines(text: bytes) -> str:
    """Sanitize output line by line, so that its line breaks stay."""
    decoded = text.decode("utf-8", "surrogateescape")
    return "\n".join(sanitize(line, limit=1 << 20) for line in decoded.split("\n"))


def whole_characters(data: bytes) -> bytes:
    """Remove a UTF-8 character that the end of ``data`` cuts in two, unless nothing else is there."""
    for size in range(1, min(4, len(data))):
        byte = data[-size]
        if byte >= 0xC0:  # the first byte of a character of two to four bytes (RFC 3629)
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-size] if size < length else data
        if byte < 0x80:
            break
    return data
