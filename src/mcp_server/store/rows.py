"""Runs and hosts as rows, and rows as runs and hosts. Pure: no connection is seen here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from mcp_server.errors import ArgumentError
from mcp_server.model.codec import host_from_dict, to_dict
from mcp_server.model.host import Host
from mcp_server.model.run import Actor, Coverage, Outcome, PortsTested, Raw, Risk, Run

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_COUNT_MAX = (1 << 63) - 1
_DIGEST_BYTES = 8


def micros(value: datetime) -> int:
    """Microseconds since 1970 of an aware time, exactly; raise ArgumentError for a time without a zone."""
    if value.tzinfo is None:
        raise ArgumentError(f"the time {value.isoformat()} has no time zone", hint="Give times in UTC.")
    return (value - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    """The UTC time of `micros`."""
    return _EPOCH + timedelta(microseconds=value)


def address_key(text: str) -> bytes:
    """Bytes that sort as addresses do: the version, then the address; raise ArgumentError for anything else."""
    try:
        # A fifth of the time of ipaddress.ip_address, and as strict.
        return b"\x06" + inet_pton(AF_INET6, text) if ":" in text else b"\x04" + inet_pton(AF_INET, text)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"the observed address {text[:64]!r} is not an IP address") from error


def digest(data: bytes) -> bytes:
    """Eight bytes that stand for ``data`` beside the rest of a key; not a protection against forgery."""
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _storable(text: str) -> str:
    """Text as both databases take it: PostgreSQL has no NUL, and neither has lone surrogates."""
    if "\0" not in text and text.isascii():
        return text
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def run_row(run: Run) -> dict[str, Any]:
    """The columns of ``runs`` that a run itself decides."""
    return {
        "id": run.id,
        "tool": run.tool,
        "tool_version": _storable(run.tool_version),
        "outcome": run.outcome.value,
        "started": micros(run.started),
        "ended": None if run.ended is None else micros(run.ended),
        "actor_name": _storable(run.actor.name),
        "interface": run.actor.interface,
        "actor_client": _storable(run.actor.client),
        "correlation_id": _storable(run.correlation_id),
        "scope_hash": run.scope_hash,
        "risk": int(run.risk),
        "vantage": run.vantage,
        "enforcement": run.enforcement,
        "parameters": _json(run.parameters),
        "argv": _json(run.argv),
        "metadata": _json(run.metadata),
        "returncode": run.returncode,
        "error_code": run.error_code,
        "error_message": None if run.error_message is None else _storable(run.error_message),
        "stderr": _storable(run.stderr),
        "counts": _json(dict(run.counts)),
        "raw_sha256": run.raw.sha256 if run.raw else None,
        "raw_truncated": bool(run.raw and run.raw.truncated),
    }


def coverage_row(seq: int, coverage: Coverage) -> dict[str, Any]:
    """The row of ``coverage``. An IPv6 network can hold more addresses than a column counts: that is capped."""
    return {
        "run": seq,
        "addresses": _json(coverage.addresses),
        "planned": min(coverage.planned, _COUNT_MAX),
        "looked_at": coverage.looked_at,
        "up": coverage.up,
        "down": coverage.down,
        "not_looked_at": _json(coverage.not_looked_at),
        "not_looked_at_count": min(coverage.not_looked_at_count, _COUNT_MAX),
        "complete": coverage.complete,
    }


def coverage_port_rows(seq: int, coverage: Coverage) -> list[tuple[Any, ...]]:
    """The rows of ``coverage_ports``, in the order of its columns."""
    return [
        (seq, position, ports.transport, ports.spec, ports.count, ports.method)
        for position, ports in enumerate(coverage.ports)
    ]


def run_from_row(row: Mapping[Any, Any], ports: Iterable[Mapping[Any, Any]]) -> Run:
    """The run of a row of ``runs`` joined with ``coverage`` (columns prefixed ``coverage_``) and ``blobs``."""
    coverage = raw = None
    if row["coverage_addresses"] is not None:
        coverage = Coverage(
            addresses=tuple(json.loads(row["coverage_addresses"])),
            planned=row["coverage_planned"],
            ports=tuple(PortsTested(port["transport"], port["spec"], port["count"], port["method"]) for port in ports),
            looked_at=row["coverage_looked_at"],
            up=row["coverage_up"],
            down=row["coverage_down"],
            not_looked_at=tuple(json.loads(row["coverage_not_looked_at"])),
            not_looked_at_count=row["coverage_not_looked_at_count"],
            complete=bool(row["coverage_complete"]),
        )
    if row["raw_sha256"] is not None:
        raw = Raw(row["raw_sha256"], row["raw_size"], row["raw_stored"], bool(row["raw_truncated"]))
    return Run(
        id=row["id"],
        tool=row["tool"],
        parameters=json.loads(row["parameters"]),
        actor=Actor(row["actor_name"], row["interface"], row["actor_client"]),
        correlation_id=row["correlation_id"],
        scope_hash=row["scope_hash"],
        risk=Risk(row["risk"]),
        argv=tuple(json.loads(row["argv"])),
        started=moment(row["started"]),
        outcome=Outcome(row["outcome"]),
        tool_version=row["tool_version"],
        vantage=row["vantage"],
        enforcement=row["enforcement"],
        ended=None if row["ended"] is None else moment(row["ended"]),
        returncode=row["returncode"],
        error_code=row["error_code"],
        error_message=row["error_message"],
        coverage=coverage,
        raw=raw,
        stderr=row["stderr"],
        counts=json.loads(row["counts"]),
        metadata=json.loads(row["metadata"]),
    )


def observation_rows(seq: int, observed_at: int, hosts: Sequence[Host]) -> list[tuple[Any, ...]]:
    """Rows of ``observations`` without their id, in the order of its columns."""
    rows = []
    for host in hosts:
        payload = _payload(host)
        open_ports = sum(port.state == "open" for port in host.ports)
        rows.append(
            (seq, address_key(host.address), digest(payload), observed_at, host.state, open_ports, payload.decode())
        )
    return rows


def _payload(host: Host) -> bytes:
    encoded = to_dict(host)
    try:
        return to_json(encoded)
    except PydanticSerializationError:  # a lone surrogate: only the slower encoder can escape it
        return _json(encoded).encode()


def host_from_payload(payload: str) -> Host:
    """The host that an observation holds."""
    return host_from_dict(json.loads(payload))
