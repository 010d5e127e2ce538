"""The files that a program executes: reviewed ones by checksum, and the program's own code as first seen."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_server.errors import ConfigError, PlatformError
from mcp_server.sandbox import file_hash
from mcp_server.sandbox.allowed_checksums import check_files, forget_first_seen, read_allowed_checksums
from mcp_server.tools.nmap.scripts import INTRUSIVE_NAMES, OWN_CODE, SAFE_NAMES, files_of

NMAP = Path("/usr/share/nmap")
ANY: frozenset[str] = frozenset()
OWN = tuple((path, ANY) for path in OWN_CODE)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    forget_first_seen()
    yield
    forget_first_seen()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("nse_main.lua", "scripts/script.db", "scripts/a.nse", "scripts/b.nse", "nselib/http.lua"):
        path = tmp_path / "nmap" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "nmap" / "nselib" / "data").mkdir()
    return tmp_path / "nmap"


def test_the_installed_nmap_passes_and_a_second_check_is_fast() -> None:
    files = files_of(tuple(sorted(SAFE_NAMES | INTRUSIVE_NAMES)), services=True)
    check_files(NMAP, files)
    started = time.perf_counter()
    check_files(NMAP, files)
    assert time.perf_counter() - started < 0.05


def test_a_scan_without_scripts_and_version_detection_executes_no_files() -> None:
    assert files_of((), services=False) == ()
    assert files_of((), services=True) == OWN
    assert files_of(("ssl-cert",), services=False)[0][0] == "scripts/ssl-cert.nse"


def test_a_script_that_was_not_reviewed_is_refused_with_its_name(folder: Path) -> None:
    good = (("scripts/a.nse", frozenset({sha256("scripts/a.nse")})),)
    check_files(folder, good)
    (folder / "scripts/a.nse").write_text("os.execute('x')")
    with pytest.raises(PlatformError, match=r"scripts/a\.nse is not a reviewed version") as caught:
        check_files(folder, good)
    assert caught.value.code == "binary_changed"
    assert caught.value.details == {"file": "scripts/a.nse", "sha256": sha256("os.execute('x')")}
    assert "security.allowed_checksums" in caught.value.hint
    check_files(folder, good, {"scripts/a.nse": frozenset({sha256("os.execute('x')")})})
    with pytest.raises(PlatformError):
        check_files(folder, good, {"scripts/b.nse": frozenset({sha256("os.execute('x')")})})
    (folder / "scripts/a.nse").unlink()
    with pytest.raises(PlatformError, match="is missing") as caught:
        check_files(folder, good)
    assert caught.value.code == "binary_not_found"


def test_a_change_that_keeps_size_and_mtime_is_detected(folder: Path) -> None:
    path = folder / "scripts/a.nse"
    good = (("scripts/a.nse", frozenset({sha256("scripts/a.nse")})),)
    before = path.stat()
    check_files(folder, good)
    path.write_text("scripts/A.nse")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    with pytest.raises(PlatformError):
        check_files(folder, good)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "nse_main.lua").write_text("x"),
        lambda folder: (folder / "scripts/script.db").write_text("x"),
        lambda folder: (folder / "scripts/b.nse").write_text("x"),
        lambda folder: (folder / "scripts/new.nse").write_text("x"),
        lambda folder: (folder / "nselib/http.lua").unlink(),
        lambda folder: (folder / "nselib/data/new.lua").write_text("x"),
    ],
)
def test_the_programs_own_code_must_not_change(folder: Path, change: object) -> None:
    check_files(folder, OWN)
    check_files(folder, OWN)
    change(folder)  # type: ignore[operator]  # a function of the folder
    for _ in range(2):
        with pytest.raises(PlatformError, match="has changed since") as caught:
            check_files(folder, OWN)
        assert caught.value.code == "binary_changed"
        assert "reload or restart" in caught.value.hint
    forget_first_seen()
    check_files(folder, OWN)


def test_a_file_replaced_by_one_with_the_same_content_is_unchanged(folder: Path) -> None:
    check_files(folder, OWN)
    (folder / "new").write_text("nse_main.lua")
    (folder / "new").rename(folder / "nse_main.lua")
    check_files(folder, OWN)


def test_the_operators_checksums_have_the_format_of_sha256sum(tmp_path: Path, folder: Path) -> None:
    one, two = sha256("a"), sha256("b")
    path = tmp_path / "checksums"
    path.write_text(f"# reviewed\n{one}  scripts/a.nse\n{two} *./scripts/a.nse\n\n{two}  scripts/http-robots.txt.nse\n")
    assert read_allowed_checksums(path) == {
        "scripts/a.nse": frozenset({one, two}),
        "scripts/http-robots.txt.nse": frozenset({two}),
    }
    for bad in ("x", f"{one} scripts/a.nse", f"{one[1:]}  a", f"{one}  /etc/passwd", f"{one}  a/../b", f"{one}  a b"):
        path.write_text(f"{two}  ok\n{bad}\n")
        with pytest.raises(ConfigError, match="line 2"):
            read_allowed_checksums(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_allowed_checksums(tmp_path / "none")


def test_a_folder_with_the_name_of_a_file_counts_as_missing(folder: Path) -> None:
    (folder / "scripts/c.nse").mkdir()
    check_files(folder, OWN)
    with pytest.raises(PlatformError, match="is missing"):
        check_files(folder, (("scripts/c.nse", frozenset({sha256("x")})),))
    assert str(folder / "scripts/c.nse") not in file_hash._known
