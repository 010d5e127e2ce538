"""The decision log: synced lines, bounded and printable, and no run without it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_server.audit import AuditLog, printable
from mcp_server.errors import PlatformError


async def test_records_are_whole_json_lines_readable_only_by_the_owner(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    await asyncio.gather(*(log.append("decision", number=number) for number in range(50)))
    records = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert sorted(record["number"] for record in records) == list(range(50))
    assert all(record["time"].endswith("+00:00") for record in records)
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_arguments_are_bounded_and_printable() -> None:
    shown = printable({"target": "a\x1b[31m\n" * 5000, "ports": ["1"] * 500, "n\x00": object(), "ok": True})
    assert len(shown["target"]) < 4200
    assert "\x1b" not in shown["target"]
    assert len(shown["ports"]) == 64
    assert "n\\x00" in shown
    json.dumps(shown)


async def test_two_processes_append_without_mixing(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path; from mcp_server.audit import AuditLog\n"
        "async def main():\n"
        "    log = AuditLog(Path(sys.argv[1]))\n"
        "    for n in range(100): await log.append('x', who=sys.argv[2], pad='p' * 3000)\n"
        "asyncio.run(main())"
    )
    children = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), who]) for who in "ab"]
    assert [child.wait() for child in children] == [0, 0]
    records = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [record["who"] for record in records].count("a") == 100
    assert len(records) == 200


async def test_a_log_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(PlatformError) as caught:
        await AuditLog(tmp_path).append("decision")
    assert caught.value.code == "audit_unavailable"


async def test_a_link_in_place_of_the_log_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    (tmp_path / "audit.jsonl").symlink_to(elsewhere)
    with pytest.raises(PlatformError):
        await AuditLog(tmp_path).append("decision")
    assert elsewhere.read_bytes() == b""


async def test_a_record_cut_by_a_full_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path)
    await log.append("first")
    before = log.path.read_bytes()
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:10]))
    with pytest.raises(PlatformError, match="No space left"):
        await log.append("second")
    assert log.path.read_bytes() == before


async def test_a_record_after_one_that_a_crash_cut_off_stands_on_its_own_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.path.write_bytes(b'{"event":"decision","decision":"acc')
    await log.append("decision", decision="deny")
    torn, whole = log.path.read_text().splitlines()
    assert torn.endswith('"acc')
    assert json.loads(whole)["decision"] == "deny"


async def test_a_pipe_in_place_of_the_log_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "audit.jsonl")
    with pytest.raises(PlatformError, match="not a regular file"):
        await AuditLog(tmp_path).append("decision")
