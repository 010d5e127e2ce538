"""Verifying a log that was tampered with: each error has its kind, file, line and record."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mcp_server.audit.checkpoint import CHECKPOINTS, Sealer
from mcp_server.audit.keys import KEY, public_key
from mcp_server.audit.notes import Note, VerifierKey, find_notes, sign
from mcp_server.audit.verify import Break, Verification, verify
from tests.support.audit import change, files_of, rechain, records_of, write_log


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 100 records in three files, with a checkpoint after the last."""
    folder = tmp_path_factory.mktemp("log")
    write_log(folder, 100, pad=1450)
    Sealer(folder).seal("")
    assert [len(path.read_bytes().splitlines()) for path in files_of(folder)] == [40, 40, 20]
    return folder


@pytest.fixture
def log(written: Path, tmp_path: Path) -> Path:
    """Return a copy to tamper with."""
    return Path(shutil.copytree(written, tmp_path / "copy"))


def sealed(folder: Path) -> tuple[list[Note], VerifierKey]:
    """Return the checkpoints and the key, as an operator keeps them elsewhere."""
    return find_notes((folder / CHECKPOINTS).read_text()), public_key(folder)


def found(report: Verification) -> tuple[str, str, int, int]:
    assert isinstance(report.broken, Break), report
    return report.broken.kind.value, report.broken.file, report.broken.line, report.broken.seq


def test_an_untouched_log_verifies(log: Path, written: Path) -> None:
    report = verify(log, *sealed(written))
    assert report.broken is None
    assert (report.size, report.files, report.checked, report.sealed) == (100, 3, 1, 100)
    assert report.root == sealed(written)[0][0].root.hex()
    assert report.last_time == records_of(log)[-1]["time"]


def test_a_folder_without_a_log_has_no_records(tmp_path: Path) -> None:
    report = verify(tmp_path)
    assert (report.broken, report.size, report.last_time) == (None, 0, None)


@pytest.mark.parametrize(
    ("number", "line", "seq"), [(0, 0, 0), (0, 39, 39), (1, 0, 40), (2, 5, 85), (2, 18, 98)], ids=str
)
def test_an_edited_record_is_found(log: Path, number: int, line: int, seq: int) -> None:
    file = files_of(log)[number]
    change(file, line, decision="accept")
    assert found(verify(log)) == ("edited", file.name, line + 1, seq)


def test_an_edited_hash_is_found(log: Path) -> None:
    change(files_of(log)[1], 7, prev="0" * 64)
    assert found(verify(log)) == ("edited", "audit-000002.jsonl", 8, 47)


def test_a_record_in_another_spelling_is_found(log: Path) -> None:
    file = files_of(log)[1]
    lines = file.read_bytes().splitlines(keepends=True)
    lines[3] = json.dumps(json.loads(lines[3])).encode() + b"\n"
    file.write_bytes(b"".join(lines))
    assert found(verify(log)) == ("edited", file.name, 4, 43)


@pytest.mark.parametrize(
    "junk", [b"junk\n", b"\n", b"[]\n", b'{"seq":43}\n', b"[" * 100_000 + b"\n", b"\xff\n", b"9" * 5000 + b"\n"]
)
def test_a_line_that_is_not_a_record_is_found(log: Path, junk: bytes) -> None:
    file = files_of(log)[1]
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:3], junk, *lines[4:]]))
    assert found(verify(log)) == ("edited", file.name, 4, 43)


def test_an_edit_of_the_last_record_is_shown_by_a_checkpoint(log: Path, written: Path) -> None:
    change(log / "audit.jsonl", 19, decision="accept")
    assert verify(log).broken is None, "the chain alone cannot show this"
    assert found(verify(log, *sealed(written)))[0] == "rechained"


@pytest.mark.parametrize(("first", "last"), [(0, 1), (10, 11), (10, 15), (39, 40)])
def test_deleted_records_are_found(log: Path, first: int, last: int) -> None:
    file = files_of(log)[0]
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:first] + lines[last:]))
    where = (file.name, first + 1) if last < 40 else ("audit-000002.jsonl", 1)
    report = verify(log)
    assert found(report) == ("deleted", *where, first)
    assert report.broken is not None
    assert "missing" in report.broken.detail


def test_a_changed_order_is_found(log: Path) -> None:
    file = files_of(log)[0]
    lines = file.read_bytes().splitlines(keepends=True)
    lines[20], lines[21] = lines[21], lines[20]
    file.write_bytes(b"".join(lines))
    assert found(verify(log)) == ("reordered", file.name, 21, 20)


def test_a_duplicated_record_is_found(log: Path) -> None:
    file = files_of(log)[0]
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:21], lines[20], *lines[21:]]))
    assert found(verify(log)) == ("reordered", file.name, 22, 21)


@pytest.mark.parametrize(("number", "first"), [(0, 0), (1, 40)])
def test_a_missing_file_is_found(log: Path, number: int, first: int) -> None:
    gone = files_of(log)[number]
    gone.unlink()
    report = verify(log)
    kind, _, line, seq = found(report)
    assert (kind, line, seq) == ("deleted", 1, first)
    assert report.broken is not None
    assert gone.name in report.broken.detail


def test_swapped_files_are_found(log: Path) -> None:
    first, second, _ = files_of(log)
    first.rename(log / "between")
    second.rename(first)
    (log / "between").rename(second)
    assert found(verify(log)) == ("reordered", "audit-000001.jsonl", 1, 0)


@pytest.mark.parametrize("keep", [0, 1, 19])
def test_only_a_checkpoint_shows_that_the_end_was_cut_off(log: Path, written: Path, keep: int) -> None:
    file = log / "audit.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:keep]))
    assert verify(log).broken is None, "the chain alone cannot show this"
    report = verify(log, *sealed(written))
    assert found(report) == ("truncated", file.name, keep, 80 + keep)
    assert report.broken is not None
    assert report.broken.detail == f"a checkpoint covers 100 records, and the log has {80 + keep}"


def test_a_checkpoint_shows_that_the_whole_log_is_missing(written: Path, tmp_path: Path) -> None:
    assert found(verify(tmp_path, *sealed(written)))[0] == "truncated"


def test_only_a_checkpoint_shows_that_the_log_was_written_again(log: Path, written: Path) -> None:
    change(files_of(log)[1], 7, decision="deny")
    rechain(log)
    assert verify(log).broken is None, "the chain alone cannot show this, because every hash is right"
    assert found(verify(log, *sealed(written))) == ("rechained", "", 0, 0)


def test_records_that_an_earlier_checkpoint_covers_are_not_reported(tmp_path: Path) -> None:
    write_log(tmp_path, 10)
    Sealer(tmp_path).seal("")
    write_log(tmp_path, 10)
    Sealer(tmp_path).seal("")
    notes, key = sealed(tmp_path)
    assert [note.size for note in notes] == [10, 20]
    change(tmp_path / "audit.jsonl", 15, decision="deny")
    rechain(tmp_path)
    report = verify(tmp_path, notes, key)
    assert found(report)[3] == 10
    assert report.broken is not None
    assert report.broken.detail.startswith("records 10 to 19 ")


def test_a_checkpoint_of_another_key_is_forged(log: Path, written: Path) -> None:
    """A forger writes the log again and makes a new key and checkpoints for it."""
    change(files_of(log)[1], 7, decision="deny")
    rechain(log)
    for name in (KEY, CHECKPOINTS, "audit.tree"):
        (log / name).unlink()
    Sealer(log).seal("")
    assert verify(log, *sealed(log)).broken is None, "with the key of the forger the log verifies"
    notes, _ = sealed(log)
    assert found(verify(log, notes, public_key(written)))[0] == "forged"
    true_notes, key = sealed(written)
    assert found(verify(log, true_notes, key))[0] == "rechained"


def test_a_checkpoint_that_was_changed_is_forged(log: Path, written: Path) -> None:
    note = sign(Ed25519PrivateKey.generate(), 100, bytes(32)).split("\n", 1)[1]
    name = sealed(written)[0][0].origin
    forged = find_notes(f"{name}\n{note}")
    assert len(forged) == 1
    assert found(verify(log, forged, public_key(written)))[0] == "forged"
    assert found(verify(log, sealed(written)[0], None))[0] == "forged", "without a key no checkpoint can be trusted"


@pytest.mark.parametrize("cut", [1, 30, 1700])
def test_an_incomplete_last_line_is_found(log: Path, cut: int) -> None:
    file = log / "audit.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    report = verify(log)
    kind, name, _, _ = found(report)
    assert (kind, name) == ("torn", "audit.jsonl")
    assert report.size in {98, 99}


def test_files_with_similar_names_are_not_part_of_the_log(log: Path) -> None:
    for name in ("audit-0000001.jsonl", "audit-00001.jsonl", "audit-\u0660\u0660\u0660\u0660\u0660\u0661.jsonl"):
        (log / name).write_text("{}\n")
    report = verify(log)
    assert (report.broken, report.size, report.files) == (None, 100, 3)


def test_an_incomplete_line_in_a_full_file_is_an_edit(log: Path) -> None:
    file = files_of(log)[0]
    file.write_bytes(file.read_bytes()[:-1])
    assert found(verify(log)) == ("edited", file.name, 40, 39)


def test_a_line_longer_than_any_record_is_an_edit(log: Path) -> None:
    with (log / "audit.jsonl").open("ab") as file:
        file.write(b"x" * 3_000_000)
    assert found(verify(log))[0] == "edited"


def test_two_thousand_records_are_verified_within_a_second(tmp_path: Path) -> None:
    """bench/audit.py measures 20,000 records. Here a tenth of them has half of that bound."""
    write_log(tmp_path, 2000, pad=600)
    started = time.perf_counter()
    report = verify(tmp_path)
    assert time.perf_counter() - started < 1
    assert (report.broken, report.size) == (None, 2000)
