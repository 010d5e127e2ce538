"""The compatibility matrix: a short run of it, and that a cell that was not run is never reported as passed."""

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


def test_this_interpreter_passes_with_and_without_root_and_nmap(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in offline_pip(packages()).items():
        monkeypatch.setenv(name, value)
    assert matrix.main(["--python", HERE, "--lacks", "nothing", "nmap"]) == 0
    output = capsys.readouterr().out
    assert "4 cells" in output
    assert re.search(rf"^\| {HERE} \| root \| passed \| passed \| \d+\.\d\d s \|$", output, re.MULTILINE), output
    assert re.search(rf"^\| {HERE} \| unprivileged \| passed \| passed \| \d+\.\d\d s \|$", output, re.MULTILINE), (
        output
    )


def test_a_missing_interpreter_is_reported_as_not_run_and_not_as_a_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interpreters, "SUITES", ())
    assert matrix.main(["--python", "3.99", "--lacks", "nothing"]) == 2
    output = capsys.readouterr().out
    assert "| 3.99 | root | not run | none |" in output
    assert "no interpreter: no python3.99 on PATH or in pyenv" in output


def done(*states: str, code: int = 0, steps: tuple[str, ...] = STEPS) -> subprocess.CompletedProcess[str]:
    lines = [
        json.dumps({"step": step, "state": state, "detail": "0.50 s to tools/list" if step == "stdio" else "why"})
        for step, state in zip(steps, states, strict=False)
    ]
    return subprocess.CompletedProcess([], code, "\n".join(lines), "the output")


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        (done(*["passed"] * 7), "passed"),
        (done(*["passed"] * 5, "not run", "passed"), "in part"),
        (done(*["passed"] * 6, "failed", code=1), "failed"),
        (done(*["passed"] * 6), "failed"),  # the output ends before the last step
        (done(*["passed"] * 7, code=-9), "failed"),
        (done(), "failed"),
        (done(code=32), "failed"),
    ],
    ids=["complete", "a step not run", "a step failed", "cut short", "killed", "no output", "no cell created"],
)
def test_a_cell_has_passed_only_if_every_step_passed(steps: subprocess.CompletedProcess[str], state: str) -> None:
    verdict = cells.read(steps)
    assert verdict.state == state
    assert bool(verdict.notes) == (state != "passed")


def test_without_root_only_the_cell_of_an_ordinary_user_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(cells, "files_of", lambda name: [f"/usr/bin/{name}"])
    reasons = {cell: cells.obstacle(cell) for cell in cells.cells(["3.11"])}
    assert [cell for cell, reason in reasons.items() if not reason] == [Cell("3.11", "unprivileged")]
    assert reasons[Cell("3.11", "root")] == "the matrix was not started by root"


def test_a_machine_without_a_program_cannot_run_cells_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "files_of", lambda name: [] if name == "pasta" else [f"/usr/bin/{name}"])
    assert cells.obstacle(Cell("3.11", "root")) == "this machine has no pasta"
    assert cells.obstacle(Cell("3.11", "root", ("nmap",))) == "this machine has no pasta"
    assert not cells.obstacle(Cell("3.11", "root", ("pasta",)))


def test_only_the_results_of_the_page_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{matrix.BEGIN}old\n{matrix.END}after\n")
    verdicts = {Cell("3.11", "root"): Verdict("passed", cold_start=0.5)}
    monkeypatch.setattr(matrix, "run_cells", lambda *_: (verdicts, {"3.11": "3.11.7 (PATH)"}))
    assert matrix.main(["--python", "3.11", "--lacks", "nothing", "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{matrix.BEGIN}Linux ")
    assert text.endswith(f"{matrix.END}after\n")
    assert "| 3.11 | root | passed | 0.50 s |" in text


def test_the_page_has_the_results_of_a_complete_run() -> None:
    text = (matrix.ROOT / "docs/compatibility.md").read_text().partition(matrix.BEGIN)[2].partition(matrix.END)[0]
    rows = re.findall(r"^\| (3\.\d+) \| (root|unprivileged) \|", text, re.MULTILINE)
    assert rows == [(python, user) for python in matrix.PYTHONS for user in cells.USERS]
    classifiers = re.findall(r"Python :: (3\.\d+)", (matrix.ROOT / "pyproject.toml").read_text())
    assert tuple(classifiers) == matrix.PYTHONS


def test_steps_fail_if_the_version_or_nmap_is_not_as_expected(tmp_path: Path) -> None:
    """Expect another version and a missing nmap, although the version differs and nmap is installed."""
    program = Path(sys.executable).with_name("mcp-network-tools")
    words = ["--program", str(program), "--state", str(tmp_path), "--version", "9.9.9", "--absent", "nmap"]
    command = [sys.executable, "-I", str(cells.SMOKE), *words, "--steps", "installed", "doctor", "stdio", "handshake"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    states = {step["step"]: step["state"] for step in map(json.loads, ended.stdout.splitlines())}
    assert states == {"installed": "failed", "doctor": "failed", "stdio": "failed", "handshake": "passed"}
    assert ended.returncode == 1
