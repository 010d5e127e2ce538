"""The configuration for people: secrets are hidden, every key is described, and the page is up to date."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.config import Config, load_config, redact, redact_tree
from mcp_server.config.show import EXAMPLE, configuration_table, describe
from mcp_server.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
URL = "postgresql+asyncpg://scan:hunter2@db.lab.internal:5432/scans"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == configuration_table(), (
        "docs/configuration.md is out of date; run: .venv/bin/python scripts/docs.py"
    )


def test_the_page_has_a_line_for_every_key() -> None:
    lines = configuration_table().splitlines()
    for info in describe(Config()):
        assert sum(f"`{info.key}`" in line and f"`{info.env}`" in line for line in lines) == 1
    row = next(line for line in lines if line.startswith("| `timeout`"))
    assert row == "| `timeout` | integer | `10` | 1 to 60 | `MCP_HEALTH_TIMEOUT` | Seconds that one check may take. |"


def test_the_example_on_the_page_loads(tmp_path: Path) -> None:
    file = tmp_path / "example.yaml"
    file.write_text(EXAMPLE)
    config = load_config(file, env={})
    assert EXAMPLE in configuration_table()
    assert config.clamped == ()
    assert config.security.allowed_targets == ("10.20.0.0/16", "fd00:20::/48", ".lab.internal")


def test_no_path_of_this_machine_is_on_the_page() -> None:
    assert str(Config().state_dir) not in configuration_table()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (URL, "postgresql+asyncpg://scan:***@db.lab.internal:5432/scans"),
        ("postgresql://:pw@db/x", "postgresql://:***@db/x"),
        ("postgresql://scan@db/x", "postgresql://scan@db/x"),
        ("postgresql://u:p@ss/w?rd@db/x", "postgresql://u:***@db/x"),
        (
            "postgresql://db/x?user=u&password=hunter2&sslmode=require",
            "postgresql://db/x?user=u&password=***&sslmode=require",
        ),
        ("postgresql://db/x?sslkey=/srv/k&SSLPassword=a", "postgresql://db/x?sslkey=***&SSLPassword=***"),
        ("postgresql://scan:hunter2", "postgresql://scan:***"),
        ("postgresql://db:5432/x", "postgresql://db:5432/x"),
        ("postgresql://[fd00::5]:5432/x", "postgresql://[fd00::5]:5432/x"),
        ("sqlite+aiosqlite:////srv/a@b:c.db", "sqlite+aiosqlite:////srv/a@b:c.db"),
    ],
)
def test_the_database_password_is_hidden(url: str, shown: str) -> None:
    config = load_config(env={"MCP_DATABASE_URL": url})
    assert config.database.url == url
    assert config.redacted()["database"]["url"] == shown
    assert next(info for info in describe(config) if info.key == "url").value == shown


def test_the_database_password_is_hidden_in_every_other_text() -> None:
    config = load_config(env={"MCP_DATABASE_URL": URL})
    texts = [repr(config), str(config), repr(config.database), json.dumps(config.redacted()), str(describe(config))]
    for bad in ("mysql://scan:hunter2@db/x", "postgres:scan:hunter2", "hunter2"):
        with pytest.raises(ConfigError) as caught:
            load_config(env={"MCP_DATABASE_URL": bad})
        texts += [str(caught.value), json.dumps(caught.value.as_dict())]
        with pytest.raises(ConfigError) as caught:
            config.database.url = bad
        texts += [str(caught.value), json.dumps(caught.value.as_dict())]
    assert [text for text in texts if "hunter2" in text] == []


@given(st.text(min_size=1).filter(lambda text: len(text) > 3))
def test_no_password_is_left_in_a_url(password: str) -> None:
    assert password not in redact("url", f"postgresql://u:{password}@h") or password in "postgresql://u:***@h"


def test_secrets_are_recognized_by_name_at_any_depth() -> None:
    data = {
        "api_key": "a",
        "token": ["b"],
        "client-secret": {"c": "d"},
        "passwd": 5,
        "password": "",
        "monkey": "kept",
        "keys": "kept",
        "deep": {"auth": "token", "bearer_token": "e", "urls": ["http://u:f@h", "plain"]},
    }
    assert redact_tree(data) == {
        "api_key": "***",
        "token": "***",
        "client-secret": "***",
        "passwd": "***",
        "password": "",
        "monkey": "kept",
        "keys": "kept",
        "deep": {"auth": "token", "bearer_token": "***", "urls": ["http://u:***@h", "plain"]},
    }
    assert data["api_key"] == "a"


def test_the_redacted_configuration_is_complete_and_ready_for_json() -> None:
    config = load_config(env={"MCP_STATE_DIR": "/s", "MCP_LOGGING_FILE_PATH": "/s/log"})
    shown = json.loads(json.dumps(config.redacted()))
    assert list(shown) == list(Config.model_fields)
    assert shown["state_dir"] == "/s"
    assert shown["logging"]["file_path"] == "/s/log"
    assert shown["security"]["allowed_targets"] == ["RFC1918", ".lab.internal"]


def test_every_key_is_described_with_its_value_and_source(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"server": {"port": 9000, "host": "::1"}}')
    config = load_config(file, env={"MCP_STATE_DIR": "/s", "LOG_LEVEL": "debug"})
    config.security.timeout_seconds = 60
    found = {(info.section, info.key): info for info in describe(config)}
    picked = {
        name: (found[name].value, found[name].default, found[name].source, found[name].status, found[name].differs)
        for name in (
            ("", "state_dir"),
            ("server", "port"),
            ("server", "transport"),
            ("logging", "level"),
            ("security", "timeout_seconds"),
            ("security", "allowed_targets"),
            ("metrics", "enabled"),
        )
    }
    assert picked == {
        ("", "state_dir"): ("/s", "the platform's state folder of this user", "env", "restart", True),
        ("server", "port"): (9000, 8080, "file", "restart", True),
        ("server", "transport"): ("stdio", "stdio", "default", "restart", False),
        ("logging", "level"): ("DEBUG", "INFO", "env", "live", True),
        ("security", "timeout_seconds"): (60, 300, "code", "live", True),
        ("security", "allowed_targets"): (["RFC1918", ".lab.internal"],) * 2 + ("default", "live", False),
        ("metrics", "enabled"): (True, True, "default", "live", False),
    }
    types = {info.type for info in found.values()}
    assert types == {"boolean", "choice", "integer", "list", "number", "path", "text"}
    assert found["server", "transport"].range == "stdio, http"
    assert found["limits", "max_args_len"].env_aliases == ("MCP_MAX_ARGS_LEN",)
