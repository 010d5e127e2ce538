"""The rules for the files of a program: executed files, writable paths and limits."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from mcp_server.sandbox import confine, landlock
from mcp_server.sandbox.sandbox import Sandbox


def script(folder: Path, name: str, line: str) -> str:
    path = folder / name
    path.write_text(f"{line}\necho\n")
    path.chmod(0o755)
    return str(path)


def test_a_script_is_executed_with_its_interpreter(tmp_path: Path) -> None:
    assert confine.executed_files("/bin/true") == ["/bin/true"]
    plain = script(tmp_path, "plain", "#!/bin/sh -e")
    assert confine.executed_files(plain) == [plain, "/bin/sh"]
    nested = script(tmp_path, "nested", f"#! {plain} word")
    assert confine.executed_files(nested) == [nested, plain, "/bin/sh"]


@pytest.mark.parametrize("line", ["#!/usr/bin/env sh", "#!/usr/bin/env -S sh -e", "#!/usr/bin/env -i A=b sh"])
def test_the_interpreter_that_env_finds_in_the_path_is_included(tmp_path: Path, line: str) -> None:
    path = script(tmp_path, "script", line)
    found = confine.executed_files(path)
    assert found[:2] == [path, "/usr/bin/env"]
    assert len(found) == 3
    assert Path(found[2]).samefile("/bin/sh")


def test_interpreters_that_loop_or_are_missing_end_the_search(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    assert confine.executed_files(script(tmp_path, "loop", f"#!{loop}")) == [str(loop)] * 5
    lost = script(tmp_path, "lost", "#!/usr/bin/env no-such-program")
    assert confine.executed_files(lost) == [lost, "/usr/bin/env"]
    for line in ("#!", "#!   ", "", "#!/usr/bin/env"):
        assert confine.executed_files(script(tmp_path, "odd", line))[1:] in ([], ["/usr/bin/env"])
    assert confine.executed_files(str(tmp_path / "missing")) == [str(tmp_path / "missing")]


def test_only_the_scratch_folder_and_dev_null_are_writable_and_neither_is_executable() -> None:
    rules = list(confine.file_rules("/bin/true", "/tmp/scratch", ["/usr/share/nmap"]))
    writable = [path for path, rights in rules if rights & ~landlock.RUN]
    assert writable == ["/dev/null", "/tmp/scratch"]
    assert not dict(rules)["/tmp/scratch"] & landlock.EXECUTE
    assert dict(rules)["/usr/share/nmap"] == landlock.RUN
    for private in ("/", "/etc", "/proc", "/sys", "/dev", "/home", "/root", "/usr", "/usr/bin", "/usr/share", "/tmp"):
        assert private not in dict(rules)


def test_every_limit_of_a_run_is_known_to_the_kernel() -> None:
    assert set(confine.RLIMITS) == {"cpu", "as", "nofile", "core", "fsize"}
    assert confine.RLIMITS["fsize"] == resource.RLIMIT_FSIZE


@pytest.mark.parametrize("path", ["usr/share", "", "./x", "/a\0b"])
def test_a_readable_path_must_be_absolute(path: str) -> None:
    with pytest.raises(ValueError, match="absolute"):
        Sandbox(reads=("/usr/share", path))
