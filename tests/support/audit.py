"""Writes audit logs, and changes them as a forger would.

Run as ``python -m tests.support.audit MODE FOLDER …`` it writes to a log from separate processes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mcp_server.audit import AuditLog
from mcp_server.audit.records import FIRST_PREV, canonical
from mcp_server.audit.writer import AuditWriter
from mcp_server.config.sections import AuditConfig
from mcp_server.errors import PlatformError

ROOT = Path(__file__).resolve().parents[2]
SMALL = AuditConfig(max_file_size=64 * 1024)


def write_log(folder: Path, count: int, *, pad: int = 0) -> None:
    """Append ``count`` records with a new writer. With a ``pad`` of 1450, 40 records fill a file."""
    writer = AuditWriter(folder)
    for number in range(count):
        writer.append("decision", {"number": number, "pad": "p" * pad}, SMALL.max_file_size)


def files_of(folder: Path) -> list[Path]:
    """Return the files of the log in order."""
    return [*sorted(folder.glob("audit-0*.jsonl")), folder / "audit.jsonl"]


def records_of(folder: Path) -> list[dict[str, Any]]:
    """Return every record of a log."""
    return [json.loads(line) for path in files_of(folder) for line in path.read_bytes().splitlines()]


def change(path: Path, number: int, **fields: Any) -> None:
    """Edit the record on a line (from 0) and keep its canonical form."""
    lines = path.read_bytes().splitlines()
    lines[number] = canonical({**json.loads(lines[number]), **fields})
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def rechain(folder: Path) -> None:
    """Correct the number and the hash of every record, as a skilled forger would."""
    prev, seq = FIRST_PREV, 0
    for path in files_of(folder):
        out = []
        for line in path.read_bytes().splitlines():
            data = canonical({**json.loads(line), "seq": seq, "prev": prev})
            prev, seq = hashlib.sha256(data).hexdigest(), seq + 1
            out.append(data + b"\n")
        path.write_bytes(b"".join(out))


async def _append_many(folder: Path, who: str, count: int, pad: int) -> None:
    log = AuditLog(folder, lambda: SMALL)
    for number in range(count):
        await log.append("decision", who=who, number=number, pad="p" * pad)


async def _append_and_acknowledge(folder: Path, pad: int) -> None:
    log = AuditLog(folder, lambda: SMALL)
    while True:
        receipt = await log.append("decision", pad="p" * pad)
        os.write(1, f"{receipt.seq} {receipt.hash}\n".encode())


def _kill_writers(folder: Path, tries: int) -> None:
    """Fork writers one after the other and kill each at a different moment; print the records they acknowledged."""
    for number in range(tries):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(write, 1)
            asyncio.run(_append_and_acknowledge(folder, pad=(number * 977) % 40_000))
        os.close(write)
        assert select.select([read], [], [], 30)[0], "the writer wrote nothing within 30 s"
        time.sleep((number % 10) * 0.0013)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(read) as acknowledged:
            # A line that the kill cut off was not acknowledged.
            sys.stdout.writelines(line for line in acknowledged if line.endswith("\n"))


async def _until_refused(folder: Path) -> None:
    """Append until that fails; print the number of acknowledged records and the error."""
    log = AuditLog(folder)
    for number in range(100_000):
        try:
            await log.append("decision", number=number, pad="p" * 3000)
        except PlatformError as error:
            json.dump({"written": number, "code": error.code, "message": error.message}, sys.stdout)
            return


if __name__ == "__main__":
    mode, where, *more = sys.argv[1:]
    if mode == "append":
        asyncio.run(_append_many(Path(where), more[0], int(more[1]), int(more[2])))
    elif mode == "kill":
        _kill_writers(Path(where), int(more[0]))
    else:
        asyncio.run(_until_refused(Path(where)))
