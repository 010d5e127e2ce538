"""Text from the hostile host of the lab is in every channel escaped, only in its fields, and never has an effect."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mcp_server.model.untrusted import CALL_TEXT_LIMIT, hidden
from tests.lab.network.handle import Lab
from tests.lab.network.peers.fakes import HOSTILE_BULK, HOSTILE_TEXTS

Channels = dict[str, dict[str, Any]]

MARK = "mark-"
RICH = re.compile(rb"\x1b\[[0-9;]*m|\x1b\[\?25[hl]|\x1b\[[0-9]*[AGK]|\r")
"""The escape sequences that the tables and the progress bar of the command line send to a terminal."""
RAW = [text for text in HOSTILE_TEXTS if re.search(rb"[\x00-\x1f\x7f-\xff]", text)]
PLAIN_FIELDS = {"stdout", "stderr"}
"""The fields of a ToolOutput whose names are fixed."""


@pytest.fixture(scope="module")
def channels(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Channels:
    folder = tmp_path_factory.mktemp("hostile")
    out = folder / "channels.json"
    work = folder / "work"
    work.mkdir()
    host = lab.truth["evil1"].ipv4
    lab.run("scan", [sys.executable, "-m", "tests.lab.hostile_channels", str(host), str(work), str(out)], timeout=115)
    found: Channels = json.loads(out.read_text())
    return found


def texts(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every text and every key of a JSON value, with the path of keys above it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, "a key"), key
            yield from texts(item, (*path, key))
    elif isinstance(value, list):
        for item in value:
            yield from texts(item, path)
    elif isinstance(value, str):
        yield path, value


def of_form(channels: Channels, *forms: str) -> dict[str, Any]:
    chosen = {name: channel["body"] for name, channel in channels.items() if channel["form"] in forms}
    assert chosen, f"no channel of the form {forms} was read"
    return chosen


def test_every_channel_was_read_and_has_text_from_the_host(channels: Channels) -> None:
    seen = {name: json.dumps(channel["body"]) for name, channel in channels.items()}
    for interface in ("stdio", "http"):
        for call in ("scripts", "services", "cut", "plain", "failed"):
            for part in ("structure", "text", "resource", "resource/raw"):
                assert f"{interface} {call} {part}" in seen
        assert len(channels[f"{interface} progress"]["body"]) > 5
    # The text of the host is there, in its escaped form, on every channel that shows it.
    for name in (
        *(
            f"{interface} services {part}"
            for interface in ("stdio", "http")
            for part in ("structure", "text", "resource")
        ),
        *("rest services", "rest services run", "cli scripts json", "terminal call", "terminal scripts show json"),
    ):
        assert "mark-version" in seen[name], name
    for name in ("stdio scripts resource", "http scripts resource", "rest scripts", "cli scripts json"):
        assert {"mark-osc", "mark-bidi", "mark-xml", "mark-json", "mark-order", "mark-md"} <= set(
            re.findall(r"mark-\w+", seen[name])
        ), name
    for name in (
        *(f"{interface} plain {part}" for interface in ("stdio", "http") for part in ("structure", "resource/raw")),
        *(
            f"{interface} failed {part}"
            for interface in ("stdio", "http")
            for part in ("structure", "text", "resource")
        ),
        *("rest plain", "rest failed", "cli plain json", "cli failed json", "terminal plain", "terminal plain raw"),
        *("terminal failed", "terminal failed raw", "terminal failed show"),
    ):
        shown = seen[name].replace("\\\\\\\\", "\\").replace("\\\\", "\\")
        for sign in (
            r"\x1b[31mmark-csi",
            r"\x1b]0;mark-osc\x07",
            r"\u202emark-bidi",
            r"\U000e0041",
            r"mark-\u200bzero",
        ):
            assert sign in shown, f"{name}: {sign}"
    assert len([name for name in seen if name.startswith("file ")]) >= 3, "logs of the servers, and the audit log"


def test_no_text_has_hidden_or_active_characters(channels: Channels) -> None:
    for name, body in of_form(channels, "json", "text", "output", "ours").items():
        for path, text in texts(body):
            found = {char for char in text if hidden(char) and char != "\n"}
            assert not found, f"{name} {path}: {found!r}"


def test_no_text_from_the_host_reaches_a_terminal_unescaped(channels: Channels) -> None:
    for name, body in of_form(channels, "terminal").items():
        sent = body.encode("latin-1")
        for raw in RAW:
            active = raw.split(b"mark-")[0] + b"mark-" if not raw.startswith(b"mark-") else raw
            assert active not in sent, f"{name}: {active!r}"
        rest = RICH.sub(b"", sent).decode()
        found = {char for char in rest if hidden(char) and char != "\n"}
        assert not found, f"{name}: {found!r}"
        assert b"[red]mark-markup" in sent or b"mark-markup" not in sent, f"{name}: read as markup"


def test_text_from_the_host_is_only_in_fields_for_it(channels: Channels) -> None:
    for name, body in of_form(channels, "json").items():
        for path, text in texts(body):
            if MARK in text:
                expected = "from_target" in path and path[-1] != "a key"
                if not name.startswith(("stdio", "http")):
                    expected |= path[-1] in PLAIN_FIELDS
                assert expected, f"{name} {'.'.join(path)}: {text[:200]}"


def test_every_line_from_the_host_in_the_text_of_a_result_is_marked(channels: Channels) -> None:
    for name, text in of_form(channels, "text").items():
        for line in text.splitlines():
            assert MARK not in line or line.startswith(("| ", "#")), f"{name}: {line[:200]}"


def test_text_of_the_server_has_nothing_from_the_host(channels: Channels) -> None:
    """Checks errors, progress, logs, the audit log, lists, metrics, and the pages of the server."""
    for name, body in of_form(channels, "ours").items():
        for path, text in texts(body):
            assert MARK not in text, f"{name} {path}: {text[max(0, text.index(MARK) - 100) :][:300]}"
    for name, body in of_form(channels, "json").items():
        for path, text in texts(body):
            if "error" in path or path[-1:] in {("message",), ("hint",), ("error_message",), ("detail",)}:
                assert MARK not in text, f"{name} {path}"


def test_a_line_from_the_host_never_looks_like_a_log_line(channels: Channels) -> None:
    lines = 0
    for name, body in of_form(channels, "ours").items():
        if name.startswith("file ") and ".log" in name:
            lines += len(body.splitlines())
            assert not any(line.startswith("2026-01-01") for line in body.splitlines()), name
    assert lines > 10, "the servers wrote too few log lines"


def test_a_banner_of_a_megabyte_gives_a_small_result(channels: Channels) -> None:
    assert HOSTILE_BULK >= 1_000_000
    for name, body in of_form(channels, "json", "text").items():
        raw = sum(len(text) for _, text in texts(body))
        # A REST or command-line result contains the XML of nmap, with the part of the banner that nmap keeps.
        limit = 15_000 if name.endswith((" structure", " text")) else 400_000
        assert raw <= limit, f"{name}: {raw}"
    assert CALL_TEXT_LIMIT <= 16 * 1024 * 1024


def test_an_address_or_run_id_from_the_host_has_no_effect(channels: Channels) -> None:
    for name, body in of_form(channels, "json").items():
        for path, text in texts(body):
            if path[-1:] in {("address",), ("addresses",), ("run_id",), ("next",), ("argv",)}:
                assert "0.0.0.0" not in text, f"{name} {path}"
                assert "r_mark" not in text, f"{name} {path}"
