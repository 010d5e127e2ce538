"""A short part of the compatibility matrix, and that the matrix cannot call a cell passed that was not run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import cells, interpreters, matrix
from scripts.cells import Cell, Verdict
from tests.support.packages import offline_pip, packages

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
STEPS = ("installed", "doctor", "stdio", "handshake", "http", "guard", "nothing_left")


def test_this_interpreter_with_and_without_root_and_nmap(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in offline_pip(packages()).items():
        monkeypatch.setenv(name, value)
    assert matrix.main(["--python", HERE, "--lacks", "nothing", "nmap"]) == 0
    said = capsys.readouterr().out
    assert "4 cells" in said
    assert re.search(rf"^\| {HERE} \| root \| passed \| passed \| \d+\.\d\d s \|$", said, re.MULTILINE), said
    assert re.search(rf"^\| {HERE} \| unprivileged \| passed \| passed \| \d+\.\d\d s \|$", said, re.MULTILINE), said


def test_an_interpreter_that_is_not_to_be_had_is_not_run_and_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interpreters, "SUITES", ())
    assert matrix.main(["--python", "3.99", "--lacks", "nothing"]) == 2
    said = capsys.readouterr().out
    assert "| 3.99 | root | not run | none |" in said
    assert "no interpreter: no python3.99 on PATH or among pyenv's" in said


def done(*states: str, code: int = 0, steps: tuple[str, ...] = STEPS) -> subprocess.CompletedProcess[str]:
    lines = [
        json.dumps({"step": step, "state": state, "detail": "0.50 s to tools/list" if step == "stdio" else "why"})
        for step, state in zip(steps, states, strict=False)
    ]
    return subprocess.CompletedProcess([], code, "\n".join(lines), "what it said")


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        (done(*["passed"] * 7), "passed"),
        (done(*["passed"] * 5, "not run", "passed"), "in part"),
        (done(*["passed"] * 6, "failed", code=1), "failed"),
        (done(*["passed"] * 6), "failed"),  # it ended before the last step
        (done(*["passed"] * 7, code=-9), "failed"),
        (done(), "failed"),
        (done(code=32), "failed"),
    ],
    ids=["whole", "a step left out", "a step failed", "cut short", "killed", "silent", "no cell could be made"],
)
def test_a_cell_is_passed_only_with_every_step_passed(steps: subprocess.CompletedProcess[str], state: str) -> None:
    verdict = cells.read(steps)
    assert verdict.state == state
    assert bool(verdict.notes) == (state != "passed")


def test_without_root_only_what_a_user_can_run_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(cells, "files_of", lambda name: [f"/usr/bin/{name}"])
    reasons = {cell: cells.cannot(cell) for cell in cells.cells(["3.11"])}
    assert [cell for cell, why in reasons.items() if not why] == [Cell("3.11", "unprivileged")]
    assert reasons[Cell("3.11", "root")] == "this was not started by root"


def test_a_machine_that_lacks_a_program_has_no_cell_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "files_of", lambda name: [] if name == "pasta" else [f"/usr/bin/{name}"])
    assert cells.cannot(Cell("3.11", "root")) == "this machine has no pasta"
    assert cells.cannot(Cell("3.11", "root", ("nmap",))) == "this machine has no pasta"
    assert not cells.cannot(Cell("3.11", "root", ("pasta",)))


def test_the_results_are_put_into_a_page_and_nothing_else_of_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{matrix.BEGIN}old\n{matrix.END}after\n")
    told = {Cell("3.11", "root"): Verdict("passed", cold_start=0.5)}
    monkeypatch.setattr(matrix, "carry_out", lambda *_: (told, {"3.11": "3.11.7 (PATH)"}))
    assert matrix.main(["--python", "3.11", "--lacks", "nothing", "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{matrix.BEGIN}Linux ")
    assert text.endswith(f"{matrix.END}after\n")
    assert "| 3.11 | root | passed | 0.50 s |" in text


def test_the_page_has_the_results_of_a_whole_run() -> None:
    text = (matrix.ROOT / "docs/compatibility.md").read_text().partition(matrix.BEGIN)[2].partition(matrix.END)[0]
    rows = re.findall(r"^\| (3\.\d+) \| (root|unprivileged) \|", text, re.MULTILINE)
    assert rows == [(python, user) for python in matrix.PYTHONS for user in cells.USERS]
    classifiers = re.findall(r"Python :: (3\.\d+)", (matrix.ROOT / "pyproject.toml").read_text())
    assert tuple(classifiers) == matrix.PYTHONS


def test_the_steps_fail_where_what_they_expect_is_not_so(tmp_path: Path) -> None:
    """Told of another version, and that there is no nmap, where it is that version and there is one."""
    program = Path(sys.executable).with_name("mcp-network-tools")
    words = ["--program", str(program), "--state", str(tmp_path), "--version", "9.9.9", "--absent", "nmap"]
    asked = [sys.executable, "-I", str(cells.SMOKE), *words, "--steps", "installed", "doctor", "stdio", "handshake"]
    ended = subprocess.run(asked, capture_output=True, text=True, check=False)
    states = {step["step"]: step["state"] for step in map(json.loads, ended.stdout.splitlines())}
    assert states == {"installed": "failed", "doctor": "failed", "stdio": "failed", "handshake": "passed"}
    assert ended.returncode == 1
