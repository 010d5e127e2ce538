"""The log with several writers, after SIGKILL, and on failing disks: no acknowledged record is lost or incomplete."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_server.audit.files import locked, rotated_numbers
from mcp_server.audit.verify import verify
from tests.support.audit import ROOT, files_of, records_of
from tests.support.namespaces import mount_namespace

WRITER = (sys.executable, "-m", "tests.support.audit")


def test_two_processes_append_five_hundred_records_each(tmp_path: Path) -> None:
    children = [subprocess.Popen([*WRITER, "append", str(tmp_path), who, "500", "700"], cwd=ROOT) for who in "ab"]
    assert [child.wait() for child in children] == [0, 0]
    records = records_of(tmp_path)
    assert [record["seq"] for record in records] == list(range(1000))
    for who in "ab":
        mine = [record["number"] for record in records if record["who"] == who]
        assert mine == list(range(500)), "the records of one writer are out of order"
    turns = sum(one["who"] != other["who"] for one, other in itertools.pairwise(records))
    assert turns > 10, "they did not write at the same time"
    report = verify(tmp_path)
    assert (report.broken, report.size, report.repairs, report.backwards) == (None, 1000, 0, 0)
    assert report.files > 5
    with locked(tmp_path) as folder:
        assert rotated_numbers(folder) == list(range(1, report.files))


def test_fifty_writers_are_killed_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    done = subprocess.run(
        [*WRITER, "kill", str(tmp_path), "50"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=100
    )
    acknowledged = dict(line.split() for line in done.stdout.splitlines())
    assert len(acknowledged) >= 50
    # The next record repairs the incomplete line that the last writer may have left.
    subprocess.run([*WRITER, "append", str(tmp_path), "last", "1", "0"], cwd=ROOT, check=True)
    report = verify(tmp_path)
    assert report.broken is None
    lines = [line for path in files_of(tmp_path) for line in path.read_bytes().splitlines()]
    assert report.size == len(lines)
    for seq, digest in acknowledged.items():
        assert hashlib.sha256(lines[int(seq)]).hexdigest() == digest, (
            f"record {seq} was acknowledged and is not in the log"
        )


def refused_in(prefix: tuple[str, ...], folder: Path) -> dict[str, str | int]:
    # nsenter(1) changes to the root folder of the namespace.
    done = subprocess.run(
        [*prefix, *WRITER, "until-refused", str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    reply: dict[str, str | int] = json.loads(done.stdout)
    return reply


@pytest.mark.parametrize("size", ["64k", "148k"])
def test_a_full_disk_raises_a_typed_error_and_leaves_no_incomplete_record(tmp_path: Path, size: str) -> None:
    script = f'mount -t tmpfs -o size={size},mode=700 tmpfs "$1"'
    with mount_namespace(script, str(tmp_path)) as inside:
        seen = inside.see(tmp_path)
        reply = refused_in(inside.prefix, tmp_path)
        assert reply["code"] == "disk_full"
        assert "audit log" in str(reply["message"])
        assert reply["written"] == len(records_of(seen)) > 5
        assert verify(seen).broken is None
        again = refused_in(inside.prefix, tmp_path)
        assert (again["written"], again["code"]) == (0, "disk_full")
        report = verify(seen)
        assert (report.broken, report.size, report.repairs) == (None, reply["written"], 0)


def test_a_read_only_disk_raises_a_typed_error(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=1m,mode=700 tmpfs "$1"; touch "$1/audit.jsonl"; mount -o remount,ro "$1"'
    with mount_namespace(script, str(tmp_path)) as inside:
        reply = refused_in(inside.prefix, tmp_path)
    assert (reply["written"], reply["code"]) == (0, "audit_unavailable")
    assert "Read-only file system" in str(reply["message"])
