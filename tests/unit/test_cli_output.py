"""The output of a command cannot control a terminal, for any value."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer

from mcp_server.cli.call import host_rows, read_parameters
from mcp_server.cli.output import print_json, print_table, reporting, say
from mcp_server.errors import ToolError
from mcp_server.model.encoding import encode
from mcp_server.model.host import Host, Port
from mcp_server.model.untrusted import hidden
from mcp_server.tools.nmap_tool import NmapInput
from tests.support.services import make_service

ACTIVE = "a\x1b]0;x\x07\u202eb\U000e0041\u200b\x7f\x85\udc80\r\nc"


def shown(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    out, err = capsys.readouterr()
    for text in (out, err):
        assert not [char for char in text if hidden(char) and char != "\n"], repr(text)
    return out, err


def test_json_keeps_its_value_and_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    value = {ACTIVE: [ACTIVE, "é中🙂", 1, None]}
    print_json(value)
    out, _ = shown(capsys)
    assert json.loads(out) == value
    assert "é中🙂" in out


@pytest.mark.no_cover
def test_every_code_point_is_safe_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    everything = "".join(map(chr, range(0x10FFFF + 1)))
    print_json(everything)
    out, _ = shown(capsys)
    # JSON cannot distinguish two lone surrogates from the pair of one character, so UTF-16 is compared.
    assert json.loads(out).encode("utf-16", "surrogatepass") == everything.encode("utf-16", "surrogatepass")


def test_a_cell_is_always_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", "B"), [(ACTIVE, "x"), ("y\nz", "[red]w[/red]")])
    out, _ = shown(capsys)
    assert len(out.splitlines()) == 3
    assert "[red]w[/red]" in out
    assert r"\x1b]0;x\x07\u202eb\U000e0041\u200b\x7f" in out


def test_text_and_errors_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    say(ACTIVE)
    out, _ = shown(capsys)
    assert out == "a\\x1b]0;x\\x07\\u202eb\\U000e0041\\u200b\\x7f\\u0085\\x80\\x0d\nc\n"
    for as_json in (False, True):
        with pytest.raises(typer.Exit), reporting(as_json=as_json):
            raise ToolError(f"it said {ACTIVE}")
        out, err = shown(capsys)
        assert "it said a" in (out if as_json else err)


def test_a_host_is_shown_with_its_services() -> None:
    service = make_service("http", "nginx", "1.22.1", extra_info="x", tunnel="ssl", method="probed")
    odd = make_service(product="p", method="probed", odd_name="not a name")
    host = Host(
        "10.0.0.1", "up", ports=(Port("tcp", 443, "open", service=service), Port("tcp", 81, "open", service=odd))
    )
    assert host_rows(encode(host)) == [
        ("10.0.0.1", "443/tcp", "open", "ssl/http", "nginx 1.22.1 x"),
        ("10.0.0.1", "81/tcp", "open", "", "not a name p"),
    ]


def test_an_object_is_printed_as_json() -> None:
    schema = NmapInput.model_json_schema()
    wanted: dict[str, Any] = {"http-title.url": "/x", "banner.timeout": 3}
    assert read_parameters([f"script_args={json.dumps(wanted)}"], schema) == {"script_args": wanted}
    assert read_parameters(["script_args={x"], schema) == {"script_args": "{x"}
    assert read_parameters(["script_args=x"], schema) == {"script_args": "x"}
