"""Checkpoints: signed at an interval and at the end, continued after a restart, shipped, refused for a changed log."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mcp_server.audit import AuditLog, checkpoint
from mcp_server.audit.checkpoint import CHECKPOINTS, TREE, Sealer
from mcp_server.audit.keys import KEY, public_key
from mcp_server.audit.notes import Note, find_notes
from mcp_server.audit.records import read_record
from mcp_server.audit.verify import verify
from mcp_server.config.sections import AuditConfig
from mcp_server.errors import NotFoundError, PlatformError
from tests.support.audit import change, files_of, rechain, write_log


def notes_of(path: Path) -> list[Note]:
    return find_notes(path.read_text())


def sizes(folder: Path) -> list[int]:
    return [note.size for note in notes_of(folder / CHECKPOINTS)]


def test_a_checkpoint_is_signed_only_if_there_are_new_records(tmp_path: Path) -> None:
    sealer = Sealer(tmp_path)
    assert not sealer.pending("")
    assert sealer.seal("") is None
    write_log(tmp_path, 3)
    assert sealer.pending("")
    assert sealer.seal("") is not None
    assert not sealer.pending("")
    assert sealer.seal("") is None
    write_log(tmp_path, 100, pad=1450)
    assert Sealer(tmp_path).pending("")
    assert Sealer(tmp_path).seal("") is not None
    assert not sealer.pending("")
    assert sizes(tmp_path) == [3, 103]
    report = verify(tmp_path, notes_of(tmp_path / CHECKPOINTS), public_key(tmp_path))
    assert (report.broken, report.checked, report.sealed) == (None, 2, 103)
    for name in (KEY, CHECKPOINTS, TREE):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_the_key_is_created_with_the_first_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        public_key(tmp_path)
    write_log(tmp_path, 1)
    Sealer(tmp_path).seal("")
    assert public_key(tmp_path).signed(notes_of(tmp_path / CHECKPOINTS)[0])


def read_lines(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the records that a sealer reads."""
    counted: list[int] = []

    def read(line: bytes) -> dict[str, Any] | None:
        counted.append(1)
        return read_record(line)

    monkeypatch.setattr(checkpoint, "read_record", read)
    return counted


def test_a_restart_reads_only_the_new_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path, 100, pad=1450)
    Sealer(tmp_path).seal("")
    write_log(tmp_path, 50, pad=1450)  # into the next file
    counted = read_lines(monkeypatch)
    assert Sealer(tmp_path).seal("") is not None
    assert len(counted) == 50
    assert verify(tmp_path, notes_of(tmp_path / CHECKPOINTS), public_key(tmp_path)).broken is None


@pytest.mark.parametrize(
    "kept",
    [
        None,
        b"",
        b"not json",
        b"[]",
        b'{"size": 1}',
        lambda tree: {**tree, "prev": "0" * 64},
        lambda tree: {**tree, "offset": tree["offset"] - 5},
        lambda tree: {**tree, "offset": -1},
        lambda tree: {**tree, "number": 1},
        lambda tree: {**tree, "frontier": tree["frontier"][1:]},
        lambda tree: {**tree, "frontier": ["00" * 32 for _ in tree["frontier"]]},
    ],
    ids=["missing", "empty", "no-json", "list", "short", "prev", "offset", "negative", "file", "few", "hashes"],
)
def test_the_log_is_read_again_if_the_stored_tree_cannot_be_used(tmp_path: Path, kept: object) -> None:
    write_log(tmp_path, 100, pad=1450)
    Sealer(tmp_path).seal("")
    path = tmp_path / TREE
    if kept is None:
        path.unlink()
    else:
        path.write_bytes(kept if isinstance(kept, bytes) else json.dumps(kept(json.loads(path.read_text()))).encode())  # type: ignore[operator]  # a change
    write_log(tmp_path, 5)
    assert Sealer(tmp_path).seal("") is not None
    report = verify(tmp_path, notes_of(tmp_path / CHECKPOINTS), public_key(tmp_path))
    assert (report.broken, report.checked, report.sealed) == (None, 2, 105)


def _edit(folder: Path) -> None:
    change(folder / "audit.jsonl", 3, decision="deny")


def _rewrite(folder: Path) -> None:
    _edit(folder)
    rechain(folder)


def _cut(folder: Path) -> None:
    path = folder / "audit.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))


def _remove(folder: Path) -> None:
    (folder / "audit.jsonl").unlink()


def _cut_and_go_on(folder: Path) -> None:
    _cut(folder)
    write_log(folder, 9)


def _remove_full(folder: Path) -> None:
    files_of(folder)[1].unlink()
    (folder / TREE).unlink()


@pytest.mark.parametrize("tamper", [_rewrite, _cut, _remove, _remove_full, _cut_and_go_on])
def test_no_checkpoint_is_signed_for_a_log_that_differs_from_the_last_one(tmp_path: Path, tamper: object) -> None:
    write_log(tmp_path, 100, pad=1450)
    Sealer(tmp_path).seal("")
    before = (tmp_path / CHECKPOINTS).read_bytes()
    assert callable(tamper)
    tamper(tmp_path)
    for _ in range(2):
        with pytest.raises(PlatformError, match="broken") as caught:
            Sealer(tmp_path).seal("")
        assert caught.value.code == "audit_broken"
    assert (tmp_path / CHECKPOINTS).read_bytes() == before


def test_an_edit_is_found_when_the_log_is_read_again(tmp_path: Path) -> None:
    write_log(tmp_path, 20)
    Sealer(tmp_path).seal("")
    _edit(tmp_path)
    (tmp_path / TREE).unlink()
    with pytest.raises(PlatformError, match="record 4"):
        Sealer(tmp_path).seal("")


def test_a_lost_key_is_not_replaced(tmp_path: Path) -> None:
    write_log(tmp_path, 1)
    Sealer(tmp_path).seal("")
    (tmp_path / KEY).unlink()
    write_log(tmp_path, 1)
    with pytest.raises(PlatformError, match=r"audit\.key is missing"):
        Sealer(tmp_path).seal("")
    assert not (tmp_path / KEY).exists()


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_an_unusable_key_raises_a_typed_error(tmp_path: Path, content: bytes) -> None:
    write_log(tmp_path, 1)
    (tmp_path / KEY).write_bytes(content)
    (tmp_path / KEY).chmod(0o600)
    with pytest.raises(PlatformError, match="not an Ed25519 key"):
        Sealer(tmp_path).seal("")
    (tmp_path / KEY).chmod(0o640)
    with pytest.raises(PlatformError, match="Other users can read") as caught:
        Sealer(tmp_path).seal("")
    assert "chmod 600" in caught.value.hint


def test_an_incomplete_checkpoint_is_followed_by_a_complete_one(tmp_path: Path) -> None:
    write_log(tmp_path, 2)
    Sealer(tmp_path).seal("")
    path = tmp_path / CHECKPOINTS
    path.write_bytes(path.read_bytes()[:-40])
    (tmp_path / TREE).unlink()
    assert Sealer(tmp_path).seal("") is not None
    assert notes_of(path)[-1].size == 2
    assert public_key(tmp_path).signed(notes_of(path)[-1])


async def test_a_checkpoint_is_signed_at_the_interval_and_at_the_end(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, lambda: AuditConfig(checkpoint_interval=1))
    await log.start()
    await log.start()
    await log.append("decision")
    async with asyncio.timeout(20):
        while not (tmp_path / CHECKPOINTS).exists() or not sizes(tmp_path):
            await asyncio.sleep(0.05)
    await log.append("decision")
    await log.close()
    await log.close()
    assert sizes(tmp_path) == [1, 2]


async def test_a_command_signs_a_checkpoint_only_after_the_interval(tmp_path: Path) -> None:
    for _ in range(3):
        log = AuditLog(tmp_path)
        await log.append("decision")
        await log.close()
    assert sizes(tmp_path) == [1], "the later commands were within the interval"
    os.utime(tmp_path / CHECKPOINTS, (1, 1))
    await AuditLog(tmp_path).close()
    assert sizes(tmp_path) == [1], "this process wrote no record"
    log = AuditLog(tmp_path)
    await log.append("decision")
    await log.close()
    assert sizes(tmp_path) == [1, 4]


async def test_a_server_without_records_creates_no_file(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    await log.start()
    await log.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_failed_checkpoint_is_a_problem_until_one_succeeds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = AuditLog(tmp_path)
    await log.append("decision")
    (tmp_path / CHECKPOINTS).mkdir()
    for _ in range(2):
        assert await log.seal() is None
    assert log.problem is not None
    assert "No checkpoint can be made" in log.problem
    assert [record.levelno for record in caplog.records] == [logging.ERROR], (
        "the error must be logged once, not at every interval"
    )
    await log.append("decision")
    (tmp_path / CHECKPOINTS).rmdir()
    assert await log.seal() is not None
    assert log.problem is None


def test_concurrent_sealers_sign_one_checkpoint(tmp_path: Path) -> None:
    write_log(tmp_path, 50)
    threads = [threading.Thread(target=lambda: Sealer(tmp_path).seal("")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes(tmp_path) == [50]


def test_a_start_does_not_import_cryptography(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path; from mcp_server.audit import AuditLog\n"
        "async def main():\n"
        "    log = AuditLog(Path(sys.argv[1]))\n"
        "    await log.start(); await log.append('decision')\n"
        "    return sorted(name for name in sys.modules if name.split('.')[0] == 'cryptography')\n"
        "print(asyncio.run(main()))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Shipping


@contextmanager
def system_log(path: Path, kind: socket.SocketKind = socket.SOCK_DGRAM) -> Iterator[socket.socket]:
    """Yield a socket that takes the role of /dev/log."""
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(str(path))
        listener.settimeout(10)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        yield listener


def test_checkpoints_are_appended_to_a_file_elsewhere(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "state", tmp_path / "kept"
    folder.mkdir()
    for count in (1, 2, 3):
        write_log(folder, 1)
        Sealer(folder).seal(str(elsewhere))
        assert [note.size for note in notes_of(elsewhere)] == list(range(1, count + 1))
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o600
    assert verify(folder, notes_of(elsewhere), public_key(folder)).checked == 3


def test_checkpoints_go_to_the_system_log_as_one_line(tmp_path: Path) -> None:
    write_log(tmp_path, 3)
    with system_log(tmp_path / "log") as listener:
        note = Sealer(tmp_path, tmp_path / "log").seal("syslog")
        message = listener.recv(65536).decode()
    assert message.startswith(f"<85>mcp-network-tools[{os.getpid()}]: audit-checkpoint: ")
    assert message.isprintable()
    assert [found.whole for found in find_notes(message)] == [note]


def test_checkpoints_are_sent_to_a_system_log_that_uses_a_stream(tmp_path: Path) -> None:
    write_log(tmp_path, 3)
    with system_log(tmp_path / "log", socket.SOCK_STREAM) as listener:
        Sealer(tmp_path, tmp_path / "log").seal("syslog")
        connection, _ = listener.accept()
        with connection:
            message = connection.makefile("rb").read()
    assert message.endswith(b"\0")
    assert len(find_notes(message.decode())) == 1


def test_unsent_checkpoints_are_sent_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sealer = Sealer(tmp_path, tmp_path / "log")
    caplog.set_level(logging.INFO)
    for _ in range(2):
        write_log(tmp_path, 1)
        assert sealer.seal("syslog") is not None, "the checkpoint must be signed although it cannot be sent"
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO], (
        "one warning is expected for one outage"
    )
    assert "audit.not_shipped" in caplog.text
    assert Sealer(tmp_path).pending("syslog"), "unsent checkpoints are pending without a new record"
    assert not Sealer(tmp_path).pending("")
    with system_log(tmp_path / "log") as listener:
        # A new sealer, as after a restart.
        assert Sealer(tmp_path, tmp_path / "log").seal("syslog") is None
        received = [find_notes(listener.recv(65536).decode())[0].size for _ in range(2)]
    assert received == [1, 2]
    assert not sealer.pending("syslog")


@pytest.mark.parametrize("what", ["folder", "pipe", "link", "nowhere"])
def test_an_unusable_file_for_checkpoints_is_logged_as_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    folder, path = tmp_path / "state", tmp_path / "kept"
    folder.mkdir()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to(tmp_path / "other")
    write_log(folder, 1)
    target = path / "there" if what == "nowhere" else path
    assert Sealer(folder).seal(str(target)) is not None
    assert "audit.not_shipped" in caplog.text
    assert not (tmp_path / "other").exists()
