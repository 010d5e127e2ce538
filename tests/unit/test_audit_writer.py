"""Appending: an incomplete line is repaired and recorded, a full file is followed by the next, a link is refused."""

from __future__ import annotations

import base64
import errno
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mcp_server.audit import AuditLog, writer
from mcp_server.audit.checkpoint import Sealer
from mcp_server.audit.files import LEGACY
from mcp_server.audit.verify import BreakKind, verify
from mcp_server.errors import PlatformError
from tests.support.audit import SMALL, files_of, records_of, write_log


async def refused(log: AuditLog, code: str = "audit_unavailable") -> str:
    with pytest.raises(PlatformError) as caught:
        await log.append("decision")
    assert caught.value.code == code
    assert "audit log" in caught.value.message
    return caught.value.message


async def test_a_log_that_cannot_be_written_raises_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    await refused(AuditLog(tmp_path))
    await refused(AuditLog(tmp_path / "no such folder"))


async def test_a_link_instead_of_the_log_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    (tmp_path / "audit.jsonl").symlink_to(elsewhere)
    await refused(AuditLog(tmp_path))
    assert elsewhere.read_bytes() == b""


async def test_a_pipe_instead_of_the_log_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "audit.jsonl")
    assert "not a regular file" in await refused(AuditLog(tmp_path))


@pytest.mark.parametrize("torn", [b'{"event":"decision","decision":"acc', b"\0" * 5000, b"x" * 100_000, b"\xff"])
async def test_a_line_that_a_crash_cut_off_is_repaired_and_recorded(tmp_path: Path, torn: bytes) -> None:
    log = AuditLog(tmp_path)
    await log.append("decision", decision="accept")
    before = log.path.read_bytes()
    log.path.write_bytes(before + torn)
    receipt = await log.append("decision", decision="deny")
    assert log.path.read_bytes().startswith(before)
    first, repair, last = records_of(tmp_path)
    assert (first["decision"], repair["event"], last["decision"]) == ("accept", "repair", "deny")
    assert (repair["torn_bytes"], repair["torn_sha256"]) == (len(torn), hashlib.sha256(torn).hexdigest())
    assert base64.b64decode(repair["torn"]) == torn[: 16 * 1024]
    assert receipt.seq == 2
    report = verify(tmp_path)
    assert (report.broken, report.repairs) == (None, 1)


async def test_a_log_with_only_an_incomplete_line_is_repaired(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").write_bytes(b'{"event":"deci')
    await AuditLog(tmp_path).append("decision")
    assert [record["event"] for record in records_of(tmp_path)] == ["repair", "decision"]
    assert verify(tmp_path).broken is None


async def test_a_log_continues_after_a_crash_between_two_files(tmp_path: Path) -> None:
    write_log(tmp_path, 10)
    (tmp_path / "audit.jsonl").rename(tmp_path / "audit-000001.jsonl")
    assert (await AuditLog(tmp_path).append("decision")).seq == 10
    (tmp_path / "audit.jsonl").write_bytes(b'{"to')
    assert (await AuditLog(tmp_path).append("decision")).seq == 11
    assert verify(tmp_path).broken is None


@pytest.mark.parametrize("torn", [b"", b"t" * 40_000], ids=["complete", "incomplete"])
async def test_a_failed_write_does_not_change_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bytes
) -> None:
    log = AuditLog(tmp_path)
    await log.append("first")
    log.path.write_bytes(log.path.read_bytes() + torn)
    before = log.path.read_bytes()

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        await refused(log)
    assert log.path.read_bytes() == before
    real = os.pwrite
    with monkeypatch.context() as patched:
        # Fail once: the second call restores the incomplete line.
        calls: list[int] = []

        def short(descriptor: int, data: bytes, offset: int) -> int:
            calls.append(1)
            return real(descriptor, data[:10] if len(calls) == 1 else data, offset)

        patched.setattr(os, "pwrite", short)
        assert "No space left" in await refused(log, "disk_full")
    assert log.path.read_bytes() == before
    assert (await log.append("second")).seq == (2 if torn else 1)
    assert verify(tmp_path).broken is None


def test_a_log_without_a_chain_is_kept_and_its_hash_is_in_the_first_record(tmp_path: Path) -> None:
    old = b'{"time":"2026-01-01T00:00:00+00:00","event":"decision","decision":"accept"}\n' * 3
    (tmp_path / "audit.jsonl").write_bytes(old)
    write_log(tmp_path, 2)
    assert (tmp_path / LEGACY).read_bytes() == old
    genesis = records_of(tmp_path)[0]
    assert (genesis["event"], genesis["seq"], genesis["legacy_file"]) == ("genesis", 0, LEGACY)
    assert (genesis["legacy_bytes"], genesis["legacy_sha256"]) == (len(old), hashlib.sha256(old).hexdigest())
    assert (verify(tmp_path).broken, verify(tmp_path).size) == (None, 3)
    (tmp_path / LEGACY).write_bytes(old.replace(b"accept", b"deny"))
    edited = verify(tmp_path).broken
    assert edited is not None
    assert (edited.kind, edited.file) == (BreakKind.EDITED, LEGACY)
    (tmp_path / LEGACY).unlink()
    deleted = verify(tmp_path).broken
    assert deleted is not None
    assert deleted.kind is BreakKind.DELETED


async def test_the_genesis_record_is_written_after_a_crash_that_followed_the_renaming(tmp_path: Path) -> None:
    (tmp_path / LEGACY).write_bytes(b"{}\n")
    await AuditLog(tmp_path).append("decision")
    assert [record["event"] for record in records_of(tmp_path)] == ["genesis", "decision"]


def test_a_full_file_is_followed_by_the_next(tmp_path: Path) -> None:
    write_log(tmp_path, 130, pad=1450)
    files = files_of(tmp_path)
    assert [path.name for path in files] == [
        "audit-000001.jsonl",
        "audit-000002.jsonl",
        "audit-000003.jsonl",
        "audit.jsonl",
    ]
    assert all(path.stat().st_size <= SMALL.max_file_size for path in files)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    for before, after in itertools.pairwise(files):
        last = before.read_bytes().splitlines()[-1]
        assert json.loads(after.read_bytes().splitlines()[0])["prev"] == hashlib.sha256(last).hexdigest()
    assert [record["number"] for record in records_of(tmp_path)] == list(range(130))
    assert verify(tmp_path).files == 4


async def test_a_record_larger_than_the_limit_has_a_file_to_itself(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, lambda: SMALL)
    for number in range(3):
        await log.append("decision", number=number, argv=["a" * 50_000, "b" * 50_000])
    assert len(files_of(tmp_path)) == 3
    assert verify(tmp_path).size == 3


def _cut(folder: Path) -> None:
    lines = (folder / "audit.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "audit.jsonl").write_bytes(b"".join(lines[:-1]))


def _empty(folder: Path) -> None:
    (folder / "audit.jsonl").write_bytes(b"")


def _remove(folder: Path) -> None:
    (folder / "audit.jsonl").unlink()


@pytest.mark.parametrize("tamper", [_cut, _empty, _remove])
async def test_a_running_server_stops_logging_if_records_are_removed(tmp_path: Path, tamper: Any) -> None:
    log = AuditLog(tmp_path)
    for _ in range(3):
        await log.append("decision")
    tamper(tmp_path)
    for _ in range(2):
        assert "records were removed" in await refused(log, "audit_broken")


async def _replace_end(folder: Path) -> None:
    _cut(folder)
    for number in range(4):
        await AuditLog(folder).append("decision", number=number)


async def _replace_end_in_full_files(folder: Path) -> None:
    _cut(folder)
    for number in range(4):
        await AuditLog(folder, lambda: SMALL).append("decision", number=number, argv=["a" * 50_000])


async def _replace_file(folder: Path) -> None:
    data = (folder / "audit.jsonl").read_bytes()
    (folder / "audit.jsonl").rename(folder / "elsewhere")
    (folder / "audit.jsonl").write_bytes(data)
    await AuditLog(folder).append("decision")


@pytest.mark.parametrize("tamper", [_replace_end, _replace_end_in_full_files, _replace_file])
async def test_a_running_server_stops_logging_if_another_process_replaces_records(tmp_path: Path, tamper: Any) -> None:
    log = AuditLog(tmp_path)
    for _ in range(3):
        await log.append("decision")
    await tamper(tmp_path)
    for _ in range(2):
        assert "record 2 is not what this process wrote" in await refused(log, "audit_broken")


async def test_two_processes_continue_each_others_chain_over_full_files(tmp_path: Path) -> None:
    one, other = AuditLog(tmp_path, lambda: SMALL), AuditLog(tmp_path, lambda: SMALL)
    await one.append("decision")
    for _ in range(4):
        await other.append("decision", argv=["a" * 50_000])
    assert len(files_of(tmp_path)) > 2
    assert (await one.append("decision")).seq == 5
    assert (await other.append("decision")).seq == 6
    assert verify(tmp_path).broken is None


@pytest.mark.parametrize("end", [b"a line\n", b'{"event":"decision"}\n', b"\n", b"[" * 100_000 + b"\n"])
async def test_a_last_line_that_is_not_a_record_stops_the_log(tmp_path: Path, end: bytes) -> None:
    write_log(tmp_path, 3)
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(end)
    await refused(AuditLog(tmp_path), "audit_broken")


async def test_the_search_for_the_last_line_is_bounded(tmp_path: Path) -> None:
    write_log(tmp_path, 3)
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b"x" * 5_000_000)
    assert "does not end with a line" in await refused(AuditLog(tmp_path))


async def test_the_lock_is_released_after_any_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(writer, "line_of", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await log.append("decision")
    await log.append("decision")
    Sealer(tmp_path).seal("")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        await log.append("decision")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
