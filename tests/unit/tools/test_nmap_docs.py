"""docs/tools/nmap.md has a row for every parameter, mode, template, flag and script, and no other rows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mcp_server.tools.nmap.flags import FLAGS
from mcp_server.tools.nmap.ports import SERVICE_PORTS
from mcp_server.tools.nmap.scan import TEMPLATES
from mcp_server.tools.nmap.script_args import ARGS
from mcp_server.tools.nmap.scripts import CATEGORIES, INTRUSIVE, SAFE
from mcp_server.tools.nmap_tool import NmapInput

PAGE = Path(__file__).resolve().parents[3] / "docs" / "tools" / "nmap.md"


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    """Return the sections of the page by heading."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def first_cells(section: str) -> list[str]:
    """Return the code in the first cell of every table row."""
    return re.findall(r"^\| `([^`]+)`", section, flags=re.MULTILINE)


def test_every_parameter_has_its_row(sections: dict[str, str]) -> None:
    assert sorted(first_cells(sections["Parameters"])) == sorted(NmapInput.model_fields)


def test_every_mode_and_template_has_its_row(sections: dict[str, str]) -> None:
    modes = NmapInput.model_json_schema()["properties"]["mode"]["enum"]
    assert first_cells(sections["Modes"]) == modes
    assert first_cells(sections["Templates"]) == list(TEMPLATES)


def test_every_flag_has_its_row_with_its_value_and_meaning(sections: dict[str, str]) -> None:
    assert first_cells(sections["Flags of extra_args"]) == [flag.usage for flag in FLAGS]
    for flag in FLAGS:
        assert f"| `{flag.usage}` | {flag.help} |" in sections["Flags of extra_args"]


def test_every_script_has_its_row(sections: dict[str, str]) -> None:
    assert first_cells(sections["Scripts"]) == [script.name for script in SAFE]
    assert first_cells(sections["Intrusive scripts"]) == [script.name for script in INTRUSIVE]
    for word in CATEGORIES:
        assert f"`{word}`" in sections["Scripts"]


def test_every_script_argument_has_its_row_with_its_value_and_meaning(sections: dict[str, str]) -> None:
    assert first_cells(sections["Script arguments"]) == [argument.name for argument in ARGS]
    for argument in ARGS:
        assert f"| {argument.help} |" in sections["Script arguments"]
        for word in argument.value.label.split("|"):
            assert word in sections["Script arguments"]


def test_every_service_name_is_listed(sections: dict[str, str]) -> None:
    listed = dict(re.findall(r"`([a-z0-9-]+)`\s([0-9]+)", sections["Ports"]))
    assert {name: int(port) for name, port in listed.items()} == SERVICE_PORTS
