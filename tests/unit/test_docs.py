"""The documentation matches the code: generated pages are current, every tool has a page, every link has a target."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_server.base_tool import ToolPolicy
from mcp_server.tools.registry import discover
from scripts import connect

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def test_generated_pages_are_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/docs.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("tool", discover(ToolPolicy()).tools)
def test_every_tool_has_a_page_that_names_its_parameters(tool: str) -> None:
    page = (ROOT / "docs/tools" / f"{tool}.md").read_text()
    for parameter in discover(ToolPolicy()).get(tool).parameters.model_fields:
        assert f"`{parameter}`" in page, f"docs/tools/{tool}.md does not name {parameter}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for named in re.findall(r"\b(docs/[\w/.-]+\.md)\b", text):
        assert (ROOT / named).exists(), f"{page.name} names {named}"


def test_every_documented_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)", page.read_text())}
    assert named <= targets, f"unknown make targets: {sorted(named - targets)}"


def test_the_readme_shows_the_output_of_make_run() -> None:
    """The transcript has every line that a successful demonstration prints."""
    transcript = re.findall(
        r"^```\n(Two services listen.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(transcript) == 1
    begins = []
    for call in ast.walk(ast.parse((ROOT / "scripts/demo.py").read_text())):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "console.print" and call.args:
            (first, *_) = call.args[0].values if isinstance(call.args[0], ast.JoinedStr) else [call.args[0]]
            if isinstance(first, ast.Constant) and len(text := str(first.value).strip()) > 5:
                begins.append(text)
    begins.remove("The scan did not find:")
    assert len(begins) == 9
    for text in begins:
        assert text in transcript[0], text


def test_the_client_page_and_the_readme_have_the_tested_snippets() -> None:
    assert connect.differences((ROOT / "docs/clients.md").read_text()) == []
    readme = (ROOT / "README.md").read_text()
    for name, line in connect.lines("…/.venv/bin/mcp-network-tools"):
        assert f"  {name:27} {line}\n" in readme, name


def test_no_file_names_a_package_index_or_a_path_of_this_machine() -> None:
    tracked = subprocess.run(
        [shutil.which("git") or "git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    # The words are split, so that this file does not match.
    words = ["pypi" + ".org", "npmjs" + ".org", "files.python" + "hosted", "/ro" + "ot/", "deb.deb" + "ian.org"]
    for name in tracked:
        path = ROOT / name
        if path.is_file() and path.suffix not in {".gz", ".png"}:
            text = path.read_text(errors="replace")
            assert not [word for word in words if word in text], name
