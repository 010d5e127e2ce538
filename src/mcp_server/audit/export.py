"""Converts records for log collectors: to OCSF 1.5 (API Activity) and to the Elastic Common Schema 8.17.

Each event also holds the whole record.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Final

from mcp_server import __version__
from mcp_server.audit.select import time_of

OCSF_VERSION: Final = "1.5.0"
ECS_VERSION: Final = "8.17.0"
PRODUCT: Final = "mcp-network-tools"

_API_ACTIVITY: Final = 6003
_APPLICATION_ACTIVITY: Final = 6
_OTHER: Final = 99
_INFORMATIONAL, _MEDIUM, _HIGH = 1, 3, 4
_ALLOWED, _DENIED, _OBSERVED = 1, 2, 3
_DISPOSITIONS: Final = {_ALLOWED: 1, _DENIED: 2}
_ALERT, _LOGGED = 19, 17
_SHA256: Final = 3
_FAILURES: Final = frozenset({"failed", "refused", "cancelled", "interrupted"})


def _present(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item not in (None, "", [], {})}


def _text(record: dict[str, Any], name: str) -> str | None:
    value = record.get(name)
    return None if value is None or value == "" else str(value)


def _count(record: dict[str, Any], name: str) -> int | None:
    value = record.get(name)
    return value if isinstance(value, int) else None


def _binary(record: dict[str, Any]) -> dict[str, Any]:
    binary = record.get("binary")
    return binary if isinstance(binary, dict) else {}


def _pinned(record: dict[str, Any]) -> list[str]:
    targets = record.get("targets")
    items = [item for item in targets if isinstance(item, dict)] if isinstance(targets, list) else []
    return [str(address) for item in items for address in item.get("pinned") or ()]


def _argv(record: dict[str, Any]) -> list[str]:
    argv = record.get("argv")
    return [str(word) for word in argv] if isinstance(argv, list) else []


def _is_alarm(record: dict[str, Any]) -> bool:
    return record.get("event") in {"alarm", "repair"}


def _succeeded(record: dict[str, Any]) -> bool | None:
    if "decision" in record:
        return bool(record["decision"] == "accept")
    if "outcome" in record:
        return record["outcome"] not in _FAILURES
    return None


def to_ocsf(record: dict[str, Any]) -> dict[str, Any]:
    """Return the OCSF event of a record: class API Activity with the profiles security_control and trace."""
    time, alarm, succeeded = time_of(record), _is_alarm(record), _succeeded(record)
    denied = record.get("decision") == "deny"
    action = _DENIED if denied else _ALLOWED if record.get("decision") == "accept" else _OBSERVED
    argv, binary = _argv(record), _binary(record)
    process = {
        "pid": _count(record, "pid"),
        "cmd_line": " ".join(argv) or None,
        "file": _present(
            {
                "name": str(binary["path"]).rsplit("/", 1)[-1],
                "path": str(binary["path"]),
                "type_id": 1,
                "hashes": [{"algorithm_id": _SHA256, "value": str(binary["sha256"])}] if binary.get("sha256") else None,
            }
        )
        if binary.get("path")
        else None,
    }
    return _present(
        {
            "activity_id": _OTHER,
            "activity_name": str(record.get("event")),
            "category_uid": _APPLICATION_ACTIVITY,
            "class_uid": _API_ACTIVITY,
            "type_uid": _API_ACTIVITY * 100 + _OTHER,
            "severity_id": _HIGH if alarm else _MEDIUM if denied else _INFORMATIONAL,
            "time": int(time.timestamp() * 1000) if time else 0,
            "action_id": action,
            "disposition_id": _DISPOSITIONS.get(action, _ALERT if alarm else _LOGGED),
            "is_alert": alarm or None,
            "status_id": 0 if succeeded is None else 1 if succeeded else 2,
            "status_code": _text(record, "code"),
            "status_detail": _text(record, "reason"),
            "metadata": _present(
                {
                    "version": OCSF_VERSION,
                    "profiles": ["security_control", "trace"],
                    "product": {"name": PRODUCT, "vendor_name": PRODUCT, "version": __version__},
                    "log_name": "audit",
                    "sequence": record["seq"],
                    "uid": f"audit-{record['seq']}",
                    "correlation_uid": _text(record, "correlation_id"),
                }
            ),
            "actor": _present(
                {
                    "user": {"name": _text(record, "actor") or "system"},
                    "app_name": _text(record, "client") or PRODUCT,
                    "process": _present(process) if process["pid"] else None,
                }
            ),
            "api": _present(
                {
                    "operation": _text(record, "tool") or str(record.get("event")),
                    "service": {"name": PRODUCT},
                    "request": _present({"uid": _text(record, "run_id"), "data": record.get("arguments")})
                    if _text(record, "run_id")
                    else None,
                    "response": _present({"code": _count(record, "returncode"), "error": _text(record, "code")}),
                }
            ),
            "src_endpoint": {"name": _text(record, "client") or _text(record, "interface") or PRODUCT},
            "resources": [{"name": address, "type": "network"} for address in _pinned(record)],
            "policy": {"uid": policy, "name": "scope"} if (policy := _text(record, "scope_hash")) else None,
            "trace": {"uid": trace} if (trace := _text(record, "trace_id")) else None,
            "unmapped": record,
        }
    )


def to_ecs(record: dict[str, Any]) -> dict[str, Any]:
    """Return the ECS document of a record. The record itself is under ``mcp_network_tools.audit``."""
    succeeded, alarm = _succeeded(record), _is_alarm(record)
    decision, argv, binary = record.get("decision"), _argv(record), _binary(record)
    addresses = _pinned(record)
    event = {
        "kind": "alert" if alarm else "event",
        "category": ["network", "process"] if argv else ["network"],
        "type": ["denied"] if decision == "deny" else ["allowed"] if decision == "accept" else ["info"],
        "action": _text(record, "event"),
        "outcome": "unknown" if succeeded is None else "success" if succeeded else "failure",
        "code": _text(record, "code"),
        "reason": _text(record, "reason"),
        "sequence": record["seq"],
        "id": _text(record, "run_id"),
        "dataset": f"{PRODUCT}.audit",
        "provider": PRODUCT,
    }
    process = {
        "pid": _count(record, "pid"),
        "exit_code": _count(record, "returncode"),
        "args": argv,
        "args_count": len(argv) or None,
        "command_line": " ".join(argv) or None,
        "executable": binary.get("path"),
        "hash": _present({"sha256": binary.get("sha256")}),
    }
    time = _text(record, "time")
    return _present(
        {
            "@timestamp": time.replace("+00:00", "Z") if time else None,
            "ecs": {"version": ECS_VERSION},
            "message": f"{record.get('event')} {decision or record.get('outcome') or ''}".strip(),
            "event": _present(event),
            "user": _present({"name": _text(record, "actor")}),
            "source": _present({"address": _text(record, "client") or _text(record, "interface")}),
            "destination": _present({"address": addresses[0] if len(addresses) == 1 else None, **_ip(addresses)}),
            "related": _present({"ip": [each for each in addresses if _is_address(each)]}),
            "process": _present(process),
            "rule": _present(
                {"name": "scope" if record.get("scope_hash") else None, "uuid": _text(record, "scope_hash")}
            ),
            "trace": _present({"id": _text(record, "trace_id")}),
            "service": {"name": PRODUCT, "version": __version__},
            "mcp_network_tools": {"audit": record},
        }
    )


def _ip(addresses: list[str]) -> dict[str, str]:
    return {"ip": addresses[0]} if len(addresses) == 1 and _is_address(addresses[0]) else {}


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


FORMATS: Final[dict[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {"ocsf": to_ocsf, "ecs": to_ecs}
"""Maps the name of a format to the function that converts a record."""
