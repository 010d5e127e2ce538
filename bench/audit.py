"""Measure the audit log: the cost of a synced record over a plain write and sync, and the time of a verification.

Appends of a record alternate with plain writes of as many bytes to another file, so that both use the disk under the
same conditions. The record is like that of an allowed call.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.result import Range, Result
from mcp_server.audit import AuditLog
from mcp_server.audit.checkpoint import Sealer
from mcp_server.audit.records import ChainHead, cleaned, line_of
from mcp_server.audit.verify import verify

ROUNDS: Final = 500
WARM_UP: Final = 20
APPEND_MS: Final = 1.0
RECORDS: Final = 20_000
VERIFY_SEC: Final = 2.0

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
        return [asyncio.run(_append(Path(folder))), *_verify(Path(folder) / "many")]


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
    append, floor = Range.of(appended, "ms"), Range.of(plain, "ms")
    return Result(
        "an audit record, synced",
        str(append),
        f"<= {APPEND_MS:g} ms",
        append.median <= APPEND_MS,
        floor=str(floor),
        ratio=append.median / floor.median,
        notes=(f"{len(line)} bytes; the floor is a plain write and fdatasync of as many bytes",),
    )


def _verify(folder: Path) -> list[Result]:
    folder.mkdir()
    fields, head, size = cleaned(_RECORD), ChainHead(), 0
    with (folder / "audit.jsonl").open("wb") as file:
        for _ in range(RECORDS):
            line, head = line_of(head, datetime.now(UTC).isoformat(timespec="microseconds"), "decision", fields)
            size += file.write(line)
    started = time.perf_counter()
    Sealer(folder).seal("")
    sealed = time.perf_counter()
    report = verify(folder)
    verified = time.perf_counter() - sealed
    if report.broken is not None or report.size != RECORDS:
        raise RuntimeError(f"The log fails verification: {report}")
    return [
        Result(
            f"verifying {RECORDS:,} records",
            f"{verified:.2f} s",
            f"<= {VERIFY_SEC:g} s",
            verified <= VERIFY_SEC,
            notes=(f"{size / 1e6:.0f} MB; the first checkpoint of all records took {sealed - started:.2f} s",),
        )
    ]
