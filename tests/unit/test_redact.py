"""Redaction of secrets by the name of a field and by the text before a value, also in tracebacks."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest

from mcp_server.config.redact import REDACTED, hide, is_secret_name, redact, without_secrets
from mcp_server.observability.logs import LineFormatter

SECRET = "hunter2hunter2"


def caught(failing: Callable[[], Any]) -> Any:
    """The ``exc_info`` of an exception that ``failing`` raises."""
    try:
        failing()
    except (RuntimeError, OSError):
        return sys.exc_info()
    raise AssertionError


def line(style: str, text: Any, /, *args: Any, exc_info: Any = None, **fields: Any) -> str:
    """Return one log line: of an event with ``fields`` as our loggers make it, or of ``text`` with ``args``."""
    record = logging.LogRecord("mcp_server.test", logging.INFO, __file__, 1, text, args, exc_info)
    if fields:
        record.__dict__ |= {"msg": {"event": text, **fields}, "_logger": None, "_name": "info"}
    return LineFormatter(style, colors=False).format(record)


@pytest.mark.parametrize(
    "name",
    [
        "password", "db_password", "Authorization", "proxy-authorization", "api_key", "apiKey", "API-KEY", "token",
        "accessToken", "access_token", "client_secret", "set-cookie", "bearer", "credentials", "passphrase", "pwd",
        "smbpass", "mysqlpass", "snmpcommunity", "psk", "jwt", "totp", "private_key", "privateKey", "priv_key",
    ],
)  # fmt: skip
def test_the_value_of_a_field_with_the_name_of_a_secret_is_hidden(name: str) -> None:
    assert is_secret_name(name)
    assert redact(name, SECRET) == REDACTED
    assert SECRET not in line("json", "a.b", **{name: SECRET})


@pytest.mark.parametrize(
    "name",
    [
        "compass",
        "bypass",
        "passive",
        "tokens",
        "monkey",
        "keyboard",
        "cotp",
        "port",
        "target",
        "tool",
        "run_id",
        "host",
    ],
)
def test_the_value_of_a_field_with_another_name_is_kept(name: str) -> None:
    assert not is_secret_name(name)
    assert SECRET in line("json", "a.b", **{name: SECRET})


TEXTS = [
    f"postgresql+asyncpg://user:{SECRET}@db/x",
    f"redis://:{SECRET}@cache:6379/0",
    f"password={SECRET}",
    f"smbpass={SECRET},smbuser=me",
    f'{{"api_key": "{SECRET}"}}',
    f"Authorization: Bearer {SECRET}",
    f"Cookie: session={SECRET}",
    f"sent bearer {SECRET} to it",
    f"--password {SECRET} --other x",
    f"{['nc', '--password', SECRET]}",
    f"/cb?code=1&key={SECRET}&x=2",
    f"ConnectionRefused('redis://default:{SECRET}@h')",
]


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_secret_inside_a_text_is_hidden_everywhere(text: str, style: str) -> None:
    assert SECRET not in without_secrets(text)

    def failing() -> None:
        raise RuntimeError(text)

    failure = caught(failing)
    shown = [
        line(style, text),
        line(style, "it said %s", text),
        line(style, "a.b", what=text, message=str({"a": [text]})),
        line(style, "a.b", what=text),
        line(style, "a.b", what=[{"deep": (text,)}]),
        line(style, "a.b", exc_info=failure),
        line(style, "%s", ValueError(text)),
    ]
    for each in shown:
        assert SECRET not in each
        assert REDACTED in each


@pytest.mark.parametrize("style", ["json", "console"])
def test_secrets_in_causes_and_notes_of_an_exception_are_hidden(style: str) -> None:
    def cause() -> None:
        raise KeyError(f"token={SECRET}")

    def failing() -> None:
        try:
            cause()
        except KeyError as error:
            later = OSError(f"https://u:{SECRET}@h/")
            later.add_note(f"secret: {SECRET}")
            raise later from error

    shown = line(style, "it failed", exc_info=caught(failing))
    assert SECRET not in shown
    assert "failing" in shown, "the function that failed must still be named"
    assert "KeyError" in shown
    assert "OSError" in shown


def test_the_value_of_a_secret_flag_is_hidden_in_a_list() -> None:
    for argv in (["nc", "--db-password", SECRET, "host"], ("-u", "me", "--token", SECRET)):
        for shown in (line("json", "a.b", argv=argv), line("json", "ran %s", argv)):
            assert SECRET not in shown
            assert argv[1] in shown


def test_secrets_in_nested_values_are_hidden() -> None:
    shown = line("json", "a.b", extra={"one": [{"apiKey": SECRET, "port": 80}], "two": {"password": {"x": SECRET}}})
    assert SECRET not in shown
    assert "80" in shown


def test_text_without_a_secret_is_unchanged() -> None:
    shown = json.loads(line("json", "config.value_clamped", section="server", key="port"))
    assert (shown["section"], shown["key"]) == ("server", "port")
    assert json.loads(line("json", "a.b", password=None))["password"] is None


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError(SECRET)

    __str__ = __repr__


def test_a_log_record_that_cannot_be_formatted_is_logged_without_its_arguments() -> None:
    for broken in (
        line("json", "count %d", SECRET),
        line("console", "%s %s", SECRET),
        line("json", "what %s", Hostile()),
        line("json", "a.b", what=Hostile()),
    ):
        shown = json.loads(broken)
        assert (shown["event"], shown["logger"]) == ("log.line_broken", "mcp_server.test")
        assert shown["line"].endswith("test_redact.py:1")
        assert SECRET not in broken


@pytest.mark.parametrize(
    "text", ["password=" * 20000, "--token " * 20000, "://a:" * 30000, "=" * 200_000, "cookie:" + " " * 200_000]
)
def test_redaction_is_fast_for_any_text(text: str) -> None:
    # The time limit of the suite is the bound: a pattern that backtracks would take hours for these texts.
    without_secrets(text)
    line("json", text)
    line("console", "%s", ValueError(text))


def test_a_known_secret_is_hidden_in_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["mcp_server.config.redact"], "_known", set())
    token = "aB3_" * 10
    assert without_secrets(f"agent {token} 1") == f"agent {token} 1"
    hide(token)
    hide("nmap")
    assert without_secrets(f"agent {token} 1") == f"agent {REDACTED} 1"
    assert without_secrets("nmap") == "nmap", "a short word must not be removed from other texts"
