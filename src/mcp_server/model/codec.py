"""Hosts and runs as plain JSON-ready dictionaries and back, for the store.

Field names are those of the dataclasses. What is empty (None, ``""``, no items) is left out; counts and
verdicts of a run and its coverage always stand, because a missing zero would read as "not known". Times are
ISO 8601 in UTC with a ``Z``, tuples are lists, an outcome is its value and a risk its lower-case name.
This is the stored form; interfaces show the one of `mcp_server.model.record`, which is read back here too.
Written by hand: ``dataclasses.asdict`` takes ten times as long, and this is on the way of every answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mcp_server.errors import ArgumentError
from mcp_server.model.host import ExtraPorts, Host, OsMatch, Port, Script, Service
from mcp_server.model.run import Actor, Coverage, Outcome, PortsTested, Raw, Risk, Run

_EMPTY: tuple[Any, ...] = (None, "", [], {})


def time_text(value: datetime) -> str:
    """Return an aware time as ``2025-01-31T12:00:00.000000Z``; raise ArgumentError for one without a zone."""
    if value.tzinfo is None:
        raise ArgumentError(f"the time {value.isoformat()} has no time zone", hint="Give times in UTC.")
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _time_from(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _full(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in _EMPTY}


def _script(value: Script) -> dict[str, Any]:
    return {"id": value.id, "output": value.output}


def _service(value: Service) -> dict[str, Any]:
    out: dict[str, Any] = {"name": value.name}
    if value.product:
        out["product"] = value.product
    if value.version:
        out["version"] = value.version
    if value.extra_info:
        out["extra_info"] = value.extra_info
    if value.tunnel:
        out["tunnel"] = value.tunnel
    if value.hostname:
        out["hostname"] = value.hostname
    if value.os_type:
        out["os_type"] = value.os_type
    if value.method:
        out["method"] = value.method
    if value.conf:
        out["conf"] = value.conf
    if value.cpe:
        out["cpe"] = list(value.cpe)
    return out


def _port(value: Port) -> dict[str, Any]:
    out: dict[str, Any] = {"transport": value.transport, "number": value.number, "state": value.state}
    if value.reason:
        out["reason"] = value.reason
    if value.service is not None:
        out["service"] = _service(value.service)
    if value.scripts:
        out["scripts"] = [_script(item) for item in value.scripts]
    return out


def _extra_ports(value: ExtraPorts) -> dict[str, Any]:
    out: dict[str, Any] = {"state": value.state, "count": value.count}
    if value.reason:
        out["reason"] = value.reason
    return out


def _os(value: OsMatch) -> dict[str, Any]:
    out: dict[str, Any] = {"name": value.name, "accuracy": value.accuracy}
    if value.cpe:
        out["cpe"] = list(value.cpe)
    return out


def _host(value: Host) -> dict[str, Any]:
    out: dict[str, Any] = {"address": value.address, "state": value.state}
    if value.reason:
        out["reason"] = value.reason
    if value.names:
        out["names"] = list(value.names)
    if value.mac:
        out["mac"] = value.mac
    if value.vendor:
        out["vendor"] = value.vendor
    if value.ports:
        out["ports"] = [_port(item) for item in value.ports]
    if value.extra_ports:
        out["extra_ports"] = [_extra_ports(item) for item in value.extra_ports]
    _host_details(value, out)
    return out


def _host_details(value: Host, out: dict[str, Any]) -> None:
    if value.os:
        out["os"] = [_os(item) for item in value.os]
    if value.scripts:
        out["scripts"] = [_script(item) for item in value.scripts]
    if value.timed_out:
        out["timed_out"] = True
    if value.distance is not None:
        out["distance"] = value.distance
    if value.rtt_ms is not None:
        out["rtt_ms"] = value.rtt_ms


def _actor(value: Actor) -> dict[str, Any]:
    out = {"name": value.name, "interface": value.interface}
    if value.client:
        out["client"] = value.client
    return out


def _ports_tested(value: PortsTested) -> dict[str, Any]:
    return {"transport": value.transport, "spec": value.spec, "count": value.count, "method": value.method}


def _coverage(value: Coverage) -> dict[str, Any]:
    return _full(
        addresses=list(value.addresses),
        planned=value.planned,
        ports=[_ports_tested(item) for item in value.ports],
        looked_at=value.looked_at,
        up=value.up,
        down=value.down,
        not_looked_at=list(value.not_looked_at),
        not_looked_at_count=value.not_looked_at_count,
        complete=value.complete,
    )


def _raw(value: Raw) -> dict[str, Any]:
    return {"sha256": value.sha256, "size": value.size, "stored": value.stored, "truncated": value.truncated}


def _run(value: Run) -> dict[str, Any]:
    return _full(
        id=value.id,
        tool=value.tool,
        tool_version=value.tool_version,
        outcome=value.outcome.value,
        parameters=value.parameters,
        actor=_actor(value.actor),
        correlation_id=value.correlation_id,
        scope_hash=value.scope_hash,
        risk=str(value.risk),
        argv=list(value.argv),
        vantage=value.vantage,
        enforcement=value.enforcement,
        started=time_text(value.started),
        ended=time_text(value.ended) if value.ended else None,
        returncode=value.returncode,
        error_code=value.error_code,
        error_message=value.error_message,
        coverage=_coverage(value.coverage) if value.coverage else None,
        raw=_raw(value.raw) if value.raw else None,
        stderr=value.stderr,
        counts=dict(value.counts),
        metadata=value.metadata,
    )


_ENCODERS: dict[type, Any] = {
    Host: _host,
    Run: _run,
    Coverage: _coverage,
    PortsTested: _ports_tested,
    Raw: _raw,
    Actor: _actor,
    Port: _port,
    Service: _service,
    Script: _script,
    ExtraPorts: _extra_ports,
    OsMatch: _os,
}


def to_dict(obj: Any) -> dict[str, Any]:
    """Return any record of ``model.asset`` or ``model.run`` as a JSON-ready dictionary; TypeError for another type."""
    encode = _ENCODERS.get(type(obj))
    if encode is None:
        raise TypeError(f"{type(obj).__name__} is not a record of the model")
    encoded: dict[str, Any] = encode(obj)
    return encoded


def _script_from(data: Mapping[str, Any]) -> Script:
    if "from_target" in data:
        (output,) = data["from_target"].values()
        return Script(data["id"], output)
    return Script(data["id"], data["output"])


def _service_from(data: Mapping[str, Any]) -> Service:
    fields = dict(data)
    for said in fields.pop("from_target", {}).values():
        fields |= said
    return Service(**{**fields, "cpe": tuple(fields.get("cpe", ()))})


def _port_from(data: Mapping[str, Any]) -> Port:
    service = data.get("service")
    return Port(
        data["transport"],
        data["number"],
        data["state"],
        data.get("reason", ""),
        None if service is None else _service_from(service),
        tuple(_script_from(item) for item in data.get("scripts", ())),
    )


def host_from_dict(data: Mapping[str, Any]) -> Host:
    """Return the host that `to_dict` wrote; raise ArgumentError where a field is missing or unknown."""
    try:
        return Host(
            address=data["address"],
            state=data["state"],
            reason=data.get("reason", ""),
            names=tuple(data.get("names", ())),
            mac=data.get("mac", ""),
            vendor=data.get("vendor", ""),
            ports=tuple(_port_from(item) for item in data.get("ports", ())),
            extra_ports=tuple(ExtraPorts(**item) for item in data.get("extra_ports", ())),
            os=tuple(OsMatch(**{**item, "cpe": tuple(item.get("cpe", ()))}) for item in data.get("os", ())),
            scripts=tuple(_script_from(item) for item in data.get("scripts", ())),
            timed_out=data.get("timed_out", False),
            distance=data.get("distance"),
            rtt_ms=data.get("rtt_ms"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArgumentError(f"not a host: {error}") from error


def _coverage_from(data: Mapping[str, Any]) -> Coverage:
    return Coverage(
        **{
            **data,
            "addresses": tuple(data.get("addresses", ())),
            "ports": tuple(PortsTested(**item) for item in data.get("ports", ())),
            "not_looked_at": tuple(data.get("not_looked_at", ())),
        }
    )


def _actor_from(name: str, interface: str, client: str = "") -> Actor:
    return Actor(name, interface, client)


_RUN_TEXT_DEFAULTS = {"correlation_id": "", "scope_hash": ""}


def run_from_dict(data: Mapping[str, Any]) -> Run:
    """Return the run that `to_dict` wrote; raise ArgumentError where a field is missing, unknown or malformed."""
    try:
        said = data.get("from_target", {})
        return Run(
            **{
                **_RUN_TEXT_DEFAULTS,
                **{key: value for key, value in data.items() if key != "from_target"},
                **said,
                "parameters": data.get("parameters", {}),
                "actor": _actor_from(**data["actor"]),
                "risk": Risk[data["risk"].upper()],
                "argv": tuple(data.get("argv", ())),
                "started": _time_from(data["started"]),
                "ended": _time_from(data["ended"]) if "ended" in data else None,
                "outcome": Outcome(data["outcome"]),
                "coverage": _coverage_from(data["coverage"]) if "coverage" in data else None,
                "raw": Raw(**data["raw"]) if "raw" in data else None,
            }
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArgumentError(f"not a run: {error}") from error
