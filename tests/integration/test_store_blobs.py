"""Raw output on a real file system."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_server.errors import ArgumentError, PlatformError
from mcp_server.model.run import Raw
from mcp_server.store import blobs, open_store
from mcp_server.store.blobs import READ_LIMIT_MAX, RawSpool, adopt_spool, blob_path, iter_raw, read_raw

MANY = 1 << 40


def keep(state: Path, *chunks: bytes, run_id: str = "r1", cap: int = MANY) -> Raw:
    spool = RawSpool(state, run_id, cap)
    for chunk in chunks:
        spool.write(chunk)
    return spool.finish()


def files(state: Path) -> list[Path]:
    return sorted(path for path in state.rglob("*") if path.is_file())


def test_content_is_kept_by_its_hash_as_plain_gzip(tmp_path: Path) -> None:
    raw = keep(tmp_path, b"<nmaprun>", b"", b"</nmaprun>")
    content = b"<nmaprun></nmaprun>"
    path = blob_path(tmp_path, raw.sha256)
    assert raw == Raw(hashlib.sha256(content).hexdigest(), len(content), path.stat().st_size, truncated=False)
    assert path == tmp_path / "raw" / raw.sha256[:2] / f"{raw.sha256[2:]}.gz"
    assert gzip.decompress(path.read_bytes()) == content
    assert files(tmp_path) == [path]


def test_the_same_content_is_kept_once(tmp_path: Path) -> None:
    first = keep(tmp_path, b"a" * 1000)
    second = keep(tmp_path, b"a" * 400, b"a" * 600, run_id="r2")
    assert first.sha256 == second.sha256
    assert len(files(tmp_path)) == 1


def test_empty_output_is_kept(tmp_path: Path) -> None:
    raw = keep(tmp_path)
    assert raw.size == 0
    assert read_raw(tmp_path, raw, 0, 10) == b""


def test_output_over_the_limit_is_dropped_and_marked_truncated(tmp_path: Path) -> None:
    spool = RawSpool(tmp_path, "r1", 10)
    spool.write(b"0123456789")
    assert not spool.truncated
    spool.write(b"x")
    spool.write(b"y" * 100)
    raw = spool.finish()
    assert (raw.size, raw.truncated) == (10, True)
    assert read_raw(tmp_path, raw, 0, 100) == b"0123456789"


def test_only_the_owner_of_the_files_may_read_them(tmp_path: Path) -> None:
    state = tmp_path / "state"
    keep(state, b"secret")
    for path in (state, *state.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_the_spool_can_be_read_before_the_run_ends(tmp_path: Path) -> None:
    spool = RawSpool(tmp_path, "r1", MANY)
    written = b""
    for number in range(20):
        chunk = os.urandom(5) + b"<host/>" * number
        spool.write(chunk)
        written += chunk
        (copy := tmp_path / f"copy{number}" / "raw" / "spool").mkdir(parents=True)
        (copy / "r1.gz").write_bytes((tmp_path / "raw" / "spool" / "r1.gz").read_bytes())
        raw = adopt_spool(copy.parents[1], "r1")
        assert raw is not None
        assert (raw.size, raw.truncated) == (len(written), True)
        assert read_raw(copy.parents[1], raw, 0, 10_000) == written
        assert not (copy / "r1.gz").exists()
    spool.abort()


def test_a_spool_that_is_cut_anywhere_is_read_up_to_the_cut(tmp_path: Path) -> None:
    spool = RawSpool(tmp_path, "r1", MANY)
    content = b"".join(b"<host n='%d'/>" % n for n in range(300))
    for start in range(0, len(content), 100):
        spool.write(content[start : start + 100])
    whole = (tmp_path / "raw" / "spool" / "r1.gz").read_bytes()
    spool.abort()
    kept = []
    for cut in range(0, len(whole) + 1, 97):
        (tmp_path / "raw" / "spool" / "cut.gz").write_bytes(whole[:cut])
        raw = adopt_spool(tmp_path, "cut")
        assert raw is not None
        got = b"".join(iter_raw(tmp_path, raw))
        assert content.startswith(got)
        kept.append(len(got))
    assert kept == sorted(kept)
    assert len(set(kept)) == len(kept)  # a longer piece of the file gives more content


def test_without_a_spool_nothing_is_adopted(tmp_path: Path) -> None:
    assert adopt_spool(tmp_path, "r1") is None


def test_an_aborted_spool_leaves_no_file(tmp_path: Path) -> None:
    spool = RawSpool(tmp_path, "r1", MANY)
    spool.write(b"x")
    spool.abort()
    spool.abort()
    spool.write(b"ignored")
    assert files(tmp_path) == []
    with pytest.raises(PlatformError, match="closed"):
        spool.finish()


def test_aborting_after_the_end_deletes_nothing(tmp_path: Path) -> None:
    spool = RawSpool(tmp_path, "r1", MANY)
    spool.write(b"x")
    raw = spool.finish()
    spool.abort()
    assert read_raw(tmp_path, raw, 0, 1) == b"x"


@pytest.mark.parametrize("run_id", ["../../escape", "a/b", "", ".", "ü" * 300, "x\0y"])
def test_a_run_id_cannot_choose_the_folder_of_its_spool(tmp_path: Path, run_id: str) -> None:
    state = tmp_path / "state"
    spool = RawSpool(state, run_id, MANY)
    spool.write(b"x")
    (path,) = files(tmp_path)
    assert path.parent == state / "raw" / "spool"
    spool.finish()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, 700_000), limit=st.integers(1, 400_000))
def test_any_slice_is_read(tmp_path: Path, offset: int, limit: int) -> None:
    content = b"".join(b"%d " % n for n in range(100_000))
    raw = Raw(hashlib.sha256(content).hexdigest(), len(content), 0, truncated=False)
    if not blob_path(tmp_path, raw.sha256).exists():
        keep(tmp_path, content)
    assert read_raw(tmp_path, raw, offset, limit) == content[offset : offset + limit]


@pytest.mark.parametrize(("offset", "limit"), [(-1, 1), (0, 0), (0, -1), (0, READ_LIMIT_MAX + 1)])
def test_a_slice_out_of_range_is_refused(tmp_path: Path, offset: int, limit: int) -> None:
    raw = keep(tmp_path, b"x")
    with pytest.raises(ArgumentError, match=r"offset|limit"):
        read_raw(tmp_path, raw, offset, limit)


def test_damaged_content_is_never_returned(tmp_path: Path) -> None:
    raw = keep(tmp_path, b"a" * 100_000)
    path = blob_path(tmp_path, raw.sha256)
    kept = path.read_bytes()
    for damaged in (gzip.compress(b"b" * 100_000), kept[: len(kept) // 2], b"", b"not gzip"):
        path.write_bytes(damaged)
        with pytest.raises(PlatformError, match="damaged") as caught:
            read_raw(tmp_path, raw, 0, 10)
        assert caught.value.code == "store_unavailable"
    path.write_bytes(kept)
    assert read_raw(tmp_path, raw, 0, 10) == b"a" * 10
    assert keep(tmp_path, b"a" * 100_000, run_id="r2").sha256 == raw.sha256


def test_missing_content_is_an_error(tmp_path: Path) -> None:
    raw = Raw("0" * 64, 1, 1, truncated=False)
    with pytest.raises(PlatformError, match="No such file"):
        read_raw(tmp_path, raw, 0, 1)
    with pytest.raises(PlatformError, match="No such file"):
        list(iter_raw(tmp_path, raw))


def test_memory_does_not_grow_with_the_content(tmp_path: Path) -> None:
    spool = RawSpool(tmp_path, "r1", MANY)
    chunk = b"\0" * 65536
    tracemalloc.start()
    for _ in range(1024):
        spool.write(chunk)
    raw = spool.finish()
    assert read_raw(tmp_path, raw, raw.size - 3, 10) == b"\0\0\0"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert raw.size == 64 << 20
    assert raw.stored < 1 << 20
    assert peak < 4 << 20


async def test_the_store_reads_raw_output(tmp_path: Path) -> None:
    store = open_store(None, tmp_path)
    raw = keep(tmp_path, b"0123456789")
    assert await store.read_raw(raw, 3, 4) == b"3456"
    assert await store.read_raw(raw, 10, 4) == b""


async def test_the_whole_content_is_read_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"".join(b"%d " % n for n in range(1_000_000))
    raw = keep(tmp_path, content)
    store = open_store(None, tmp_path)
    decompressed = blobs._decompressed
    taken = 0

    def counted(path: Path) -> Iterator[bytes]:
        nonlocal taken
        for chunk in decompressed(path):
            taken += len(chunk)
            yield chunk

    monkeypatch.setattr(blobs, "_decompressed", counted)
    pieces = [piece async for piece in store.iter_raw(raw)]
    assert b"".join(pieces) == content
    assert len(pieces) > 20
    assert max(map(len, pieces)) <= 256 * 1024
    assert taken == 2 * len(content)  # once to check the hash, once to return it


async def test_damaged_content_is_an_error_before_the_first_piece(tmp_path: Path) -> None:
    raw = keep(tmp_path, os.urandom(1 << 20))
    path = blob_path(tmp_path, raw.sha256)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PlatformError, match="damaged"):
        await anext(open_store(None, tmp_path).iter_raw(raw))
