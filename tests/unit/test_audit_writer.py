"""Appending: what a crash left is repaired on record, full files go on in the next, no link is followed."""

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
from mcp_server.audit.verify import Kind, verify
from mcp_server.errors import PlatformError
from tests.support.audit import SMALL, files_of, records_of, write_log


async def refused(log: AuditLog, code: str = "audit_unavailable") -> str:
    with pytest.raises(PlatformError) as caught:
        await log.append("decision")
    assert caught.value.code == code
    assert "decision log" in caught.value.message
    return caught.value.message


async def test_a_log_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    await refused(AuditLog(tmp_path))
    await refused(AuditLog(tmp_path / "no such folder"))


async def test_a_link_in_place_of_the_log_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    (tmp_path / "audit.jsonl").symlink_to(elsewhere)
    await refused(AuditLog(tmp_path))
    assert elsewhere.read_bytes() == b""


async def test_a_pipe_in_place_of_the_log_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "audit.jsonl")
    assert "not a regular file" in await refused(AuditLog(tmp_path))


@pytest.mark.parametrize("torn", [b'{"event":"decision","decision":"acc', b"\0" * 5000, b"x" * 100_000, b"\xff"])
async def test_what_a_crash_cut_off_is_repaired_on_record(tmp_path: Path, torn: bytes) -> None:
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


async def test_a_log_of_nothing_but_a_torn_line_is_repaired(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").write_bytes(b'{"event":"deci')
    await AuditLog(tmp_path).append("decision")
    assert [record["event"] for record in records_of(tmp_path)] == ["repair", "decision"]
    assert verify(tmp_path).broken is None


async def test_a_crash_between_two_files_is_gone_on_from(tmp_path: Path) -> None:
    write_log(tmp_path, 10)
    (tmp_path / "audit.jsonl").rename(tmp_path / "audit-000001.jsonl")
    assert (await AuditLog(tmp_path).append("decision")).seq == 10
    (tmp_path / "audit.jsonl").write_bytes(b'{"to')
    assert (await AuditLog(tmp_path).append("decision")).seq == 11
    assert verify(tmp_path).broken is None


@pytest.mark.parametrize("torn", [b"", b"t" * 40_000], ids=["whole", "torn"])
async def test_a_write_that_fails_leaves_the_log_as_it_was(
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
        # Once: the second call is what puts the torn bytes back.
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
    assert (edited.kind, edited.file) == (Kind.EDITED, LEGACY)
    (tmp_path / LEGACY).unlink()
    deleted = verify(tmp_path).broken
    assert deleted is not None
    assert deleted.kind is Kind.DELETED


async def test_a_crash_after_the_old_log_was_set_aside(tmp_path: Path) -> None:
    (tmp_path / LEGACY).write_bytes(b"{}\n")
    await AuditLog(tmp_path).append("decision")
    assert [record["event"] for record in records_of(tmp_path)] == ["genesis", "decision"]


def test_a_full_file_goes_on_in_the_next(tmp_path: Path) -> None:
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


async def test_a_record_larger_than_a_file_has_one_to_itself(tmp_path: Path) -> None:
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
async def test_records_taken_away_under_a_running_server_stop_it(tmp_path: Path, tamper: Any) -> None:
    log = AuditLog(tmp_path)
    for _ in range(3):
        await log.append("decision")
    tamper(tmp_path)
    for _ in range(2):
        assert "records were taken away" in await refused(log, "audit_broken")


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
async def test_records_replaced_by_another_process_stop_a_running_server(tmp_path: Path, tamper: Any) -> None:
    log = AuditLog(tmp_path)
    for _ in range(3):
        await log.append("decision")
    await tamper(tmp_path)
    for _ in range(2):
        assert "record 2 is no longer" in await refused(log, "audit_broken")


async def test_two_processes_go_on_over_full_files(tmp_path: Path) -> None:
    one, other = AuditLog(tmp_path, lambda: SMALL), AuditLog(tmp_path, lambda: SMALL)
    await one.append("decision")
    for _ in range(4):
        await other.append("decision", argv=["a" * 50_000])
    assert len(files_of(tmp_path)) > 2
    assert (await one.append("decision")).seq == 5
    assert (await other.append("decision")).seq == 6
    assert verify(tmp_path).broken is None


@pytest.mark.parametrize("end", [b"a line\n", b'{"event":"decision"}\n', b"\n", b"[" * 100_000 + b"\n"])
async def test_a_line_that_is_none_of_ours_stops_the_log(tmp_path: Path, end: bytes) -> None:
    write_log(tmp_path, 3)
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(end)
    await refused(AuditLog(tmp_path), "audit_broken")


async def test_an_end_without_a_line_is_not_searched_for_ever(tmp_path: Path) -> None:
    write_log(tmp_path, 3)
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b"x" * 5_000_000)
    assert "no line" in await refused(AuditLog(tmp_path))


async def test_the_lock_is_given_back_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
