"""Measure the audit log: the time of a synced record, and of a verification.

Appends of a record alternate with plain writes of as many bytes to another file, so that both use the disk under the
same conditions. The record is like that of an allowed call. A verification alternates with the least that any check of
the log must do: read the lines, parse their JSON, and hash them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.result import Result
from mcp_server.audit import AuditLog
from mcp_server.audit.checkpoint import Sealer
from mcp_server.audit.records import ChainHead, cleaned, line_of
from mcp_server.audit.verify import verify

ROUNDS: Final = 500
WARM_UP: Final = 20
APPEND_RATIO: Final = 5.0
RECORDS: Final = 20_000
VERIFICATIONS: Final = 5
VERIFY_RATIO: Final = 4.0

_ARGV: Final = ["/usr/bin/nmap", "-n", "-oX", "-", "--noninteractive", "-sS", "-p", "1-1024", "10.0.0.0/24"]
_RECORD: Final[dict[str, Any]] = {
    "decision": "accept",
    "run_id": "r_0123456789abcdef01234567",
    "correlation_id": "r_0123456789abcdef01234567",
    "actor": "agent",
    "interface": "stdio",
    "client": "bench",
    "tool": "nmap",
    "arguments": {"target": "10.0.0.0/24", "mode": "ports", "ports": "1-1024"},
    "targets": [{"given": "10.0.0.0/24", "pinned": ["10.0.0.0/24"]}],
    "argv": _ARGV,
    "binary": {"path": "/usr/bin/nmap", "realpath": "/usr/bin/nmap", "sha256": "0" * 64},
    "risk": "scan",
    "addresses": 256,
    "estimate": {"probes": 262_144, "seconds": 26.2},
    "reason": "allowed by 10.0.0.0/8",
    "scope_hash": "0" * 64,
    "enforcement": "kernel",
    "executor": "here",
    "sandbox": {"tier": "pid-namespace", "files_confined": True},
    "ruleset": "0" * 64,
}


def measure() -> list[Result]:
    """Measure an append, and the first checkpoint and the verification of many records."""
    with tempfile.TemporaryDirectory(prefix="mcp-bench-") as folder:
        return [asyncio.run(_append(Path(folder))), _verify(Path(folder) / "many")]


async def _append(folder: Path) -> Result:
    log = AuditLog(folder)
    await log.append("decision", **_RECORD)
    line = log.path.read_bytes()
    appended, plain = [], []
    descriptor = os.open(folder / "plain", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for turn in range(WARM_UP + ROUNDS):
            started = time.perf_counter()
            await log.append("decision", **_RECORD)
            between = time.perf_counter()
            os.write(descriptor, line)
            os.fdatasync(descriptor)
            ended = time.perf_counter()
            if turn >= WARM_UP:
                appended.append(1000 * (between - started))
                plain.append(1000 * (ended - between))
    finally:
        os.close(descriptor)
    notes = (f"{len(line)} bytes; the floor is a plain write and fdatasync of as many bytes",)
    return Result.of_ratio("an audit record, synced", appended, plain, "ms", APPEND_RATIO, notes)


def _verify(folder: Path) -> Result:
    folder.mkdir()
    fields, head, size = cleaned(_RECORD), ChainHead(), 0
    with (folder / "audit.jsonl").open("wb") as file:
        for _ in range(RECORDS):
            line, head = line_of(head, datetime.now(UTC).isoformat(timespec="microseconds"), "decision", fields)
            size += file.write(line)
    started = time.perf_counter()
    Sealer(folder).seal("")
    sealed = time.perf_counter() - started
    verified, plain = [], []
    for _ in range(VERIFICATIONS):
        started = time.perf_counter()
        report = verify(folder)
        between = time.perf_counter()
        _parse_and_hash(folder / "audit.jsonl")
        verified.append(between - started)
        plain.append(time.perf_counter() - between)
        if report.broken is not None or report.size != RECORDS:
            raise RuntimeError(f"The log fails verification: {report}")
    notes = (f"{size / 1e6:.0f} MB; the first checkpoint of all records took {sealed:.2f} s",)
    return Result.of_ratio(f"verifying {RECORDS:,} records", verified, plain, "s", VERIFY_RATIO, notes)


def _parse_and_hash(log: Path) -> None:
    with log.open("rb") as file:
        for line in file:
            json.loads(line)
            hashlib.sha256(line).digest()
