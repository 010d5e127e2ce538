"""Finding binaries by name, and detecting that one has changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_server.errors import PlatformError
from mcp_server.sandbox import binaries
from mcp_server.sandbox.binaries import find_binary, install_hint, invalidate_command_cache, resolve_binary


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    invalidate_command_cache()
    yield
    invalidate_command_cache()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin")
    return tmp_path


def program(folder: Path, name: str, text: str = "#!/bin/sh\n", mode: int = 0o755) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return path


def test_nmap_is_found_with_its_real_path() -> None:
    nmap = resolve_binary("nmap")
    assert (nmap.name, nmap.path) == ("nmap", "/usr/bin/nmap")
    assert nmap.realpath == os.path.realpath("/usr/bin/nmap")
    assert nmap.sha256() == hashlib.sha256(Path(nmap.realpath).read_bytes()).hexdigest()


def test_the_sbin_folders_are_searched_even_if_path_lacks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert resolve_binary("ldconfig").path in {"/usr/sbin/ldconfig", "/sbin/ldconfig"}


def test_the_first_executable_file_of_the_path_is_used(folder: Path) -> None:
    (folder / "nmap").mkdir()
    assert resolve_binary("nmap").path == "/usr/bin/nmap"
    (folder / "nmap").rmdir()
    invalidate_command_cache()
    program(folder, "nmap", mode=0o644)
    assert resolve_binary("nmap").path == "/usr/bin/nmap"
    invalidate_command_cache()
    (folder / "nmap").chmod(0o755)
    assert resolve_binary("nmap").path == str(folder / "nmap")


def test_relative_entries_of_path_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "odd-tool")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join(("", ".", "../" + tmp_path.name)))
    with pytest.raises(PlatformError):
        resolve_binary("odd-tool")


def test_the_result_is_cached_until_the_cache_is_invalidated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = program(folder, "some-tool")
    assert resolve_binary("some-tool") is resolve_binary("some-tool")
    other = folder / "other"
    other.mkdir()
    second = program(other, "some-tool")
    monkeypatch.setenv("PATH", str(other))
    assert resolve_binary("some-tool").path == str(first)
    invalidate_command_cache()
    assert resolve_binary("some-tool").path == str(second)


def test_a_cached_program_that_was_removed_is_not_found(folder: Path) -> None:
    path = program(folder, "some-tool")
    resolve_binary("some-tool")
    path.unlink()
    with pytest.raises(PlatformError) as caught:
        resolve_binary("some-tool")
    assert caught.value.code == "binary_not_found"


def test_a_replaced_program_has_another_checksum(folder: Path) -> None:
    path = program(folder, "some-tool", "#!/bin/sh\necho 1\n")
    before = resolve_binary("some-tool").sha256()
    path.write_text("#!/bin/sh\necho 22\n")
    assert resolve_binary("some-tool").sha256() == hashlib.sha256(path.read_bytes()).hexdigest() != before


def test_the_checksum_of_a_removed_program_is_an_error(folder: Path) -> None:
    path = program(folder, "some-tool")
    command = resolve_binary("some-tool")
    path.unlink()
    with pytest.raises(PlatformError, match="some-tool cannot be read"):
        command.sha256()


def test_a_recorded_program_may_be_touched_but_not_changed(folder: Path) -> None:
    path = program(folder, "some-tool", "#!/bin/sh\necho 1\n")
    recorded = find_binary("some-tool")
    assert [each.path for each in recorded.files] == [str(path), "/bin/sh"]
    assert recorded.files[0].sha256 == recorded.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    recorded.check_unchanged()
    path.touch()
    copy = folder / "copy"
    copy.write_bytes(path.read_bytes())
    copy.chmod(0o755)
    copy.rename(path)
    recorded.check_unchanged()
    seen = path.stat()
    path.write_text("#!/bin/sh\necho 2\n")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))  # same size and mtime, as an attacker would do it
    with pytest.raises(PlatformError) as caught:
        recorded.check_unchanged()
    now = hashlib.sha256(path.read_bytes()).hexdigest()
    assert caught.value.code == "binary_changed"
    assert caught.value.details == {"path": str(path), "recorded": recorded.files[0].sha256, "found": now}
    assert recorded.files[0].sha256 in caught.value.message
    assert now in caught.value.message
    assert find_binary("some-tool") is recorded
    invalidate_command_cache()
    find_binary("some-tool").check_unchanged()
    assert find_binary("some-tool").files[0].sha256 == now


def test_a_script_is_recorded_with_its_interpreter(folder: Path) -> None:
    shell = folder / "shell"
    shell.write_bytes(Path("/bin/sh").read_bytes())
    shell.chmod(0o755)
    program(folder, "some-tool", f"#!{shell} -e\n")
    recorded = find_binary("some-tool")
    shell.write_bytes(Path("/bin/true").read_bytes())
    with pytest.raises(PlatformError, match="shell has changed"):
        recorded.check_unchanged()


def test_a_link_to_another_file_counts_as_a_change(folder: Path) -> None:
    one, two = program(folder, "one", "#!/bin/sh\necho 1\n"), program(folder, "two", "#!/bin/sh\necho 2\n")
    link = folder / "some-tool"
    link.symlink_to(one)
    recorded = find_binary("some-tool")
    link.unlink()
    link.symlink_to(two)
    with pytest.raises(PlatformError) as caught:
        recorded.check_unchanged()
    assert caught.value.code == "binary_changed"


def test_a_recorded_program_is_not_replaced_by_another_in_the_path(folder: Path) -> None:
    path = program(folder, "true")
    recorded = find_binary("true")
    path.unlink()
    assert resolve_binary("true").path != str(path)
    assert find_binary("true") is recorded
    with pytest.raises(PlatformError) as caught:
        recorded.check_unchanged()
    assert caught.value.code == "binary_not_found"
    assert "reload" in caught.value.hint


def test_a_binary_without_recorded_files_cannot_be_checked() -> None:
    with pytest.raises(ValueError, match="not recorded"):
        resolve_binary("true").check_unchanged()


def test_a_link_is_resolved(folder: Path) -> None:
    target = program(folder, "real-tool")
    (folder / "some-tool").symlink_to(target)
    found = resolve_binary("some-tool")
    assert (found.path, found.realpath) == (str(folder / "some-tool"), os.path.realpath(target))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/usr/bin/nmap", "../nmap", "a/b", "-n", "a b", "a;b", "a\0b", "a\n", "nmáp", "x" * 65]
)
def test_an_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(PlatformError) as caught:
        resolve_binary(name)
    assert caught.value.code == "binary_not_found"
    assert repr(name) in caught.value.message


def test_the_hint_for_a_missing_program_names_its_package() -> None:
    with pytest.raises(PlatformError) as caught:
        resolve_binary("no-such-tool")
    assert caught.value.code == "binary_not_found"
    assert "no-such-tool" in caught.value.hint
    assert install_hint("dig").endswith("apt-get install bind9-dnsutils'.")
    assert all(binaries._NAME.fullmatch(name) for name in binaries._DEBIAN_PACKAGES)


def test_a_file_without_execute_permission_is_a_different_error(folder: Path) -> None:
    path = program(folder, "some-tool", mode=0o644)
    with pytest.raises(PlatformError) as caught:
        resolve_binary("some-tool")
    assert caught.value.code == "permission_denied"
    assert caught.value.hint == f"Allow it with 'chmod a+x {path}'."
