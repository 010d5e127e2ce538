"""Which keys a reload applies, and which keep their values."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.config import Config, load_config
from mcp_server.config.base import Section
from mcp_server.config.keys import Key, keys
from mcp_server.config.pending import Pending, apply_live_keys, changed_keys
from tests.unit.test_config_keys import ROWS, Row, other_value

VALUES = {f"{row.section}.{row.key}": other_value(row) for row in ROWS} | {"state_dir": ("/srv/x", Path("/srv/x"))}
KEYS = list(keys().values())
NEEDS = {
    "server.tls_cert": {"server.tls_key"},
    "server.tls_key": {"server.tls_cert"},
    "server.tls_client_ca": {"server.tls_cert", "server.tls_key"},
    "auth.issuer": {"auth.audience", "auth.jwks_url"},
}
"""Keys that need other keys. The keys of an issuer are at a URL or in a file, and not both."""


def whole(*chosen: Key) -> set[str]:
    names = {key.dotted for key in chosen}
    names |= {needed for name in names for needed in NEEDS.get(name, ())}
    return names - {"auth.jwks_file"} if "auth.issuer" in names else names


def with_keys(*chosen: Key) -> Config:
    names = whole(*chosen)
    env = {key.env[0]: VALUES[key.dotted][0] for key in KEYS if key.dotted in names}
    return load_config(env=env, notify=False)


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.dotted)
def test_a_reload_applies_live_keys_and_lists_the_others_as_pending(key: Key) -> None:
    running, read = with_keys(), with_keys(key)
    config, pending = apply_live_keys(running, read)
    if key.status == "live":
        assert key.of(config) == key.of(read) != key.of(running)
        assert key.holder(config).source_of(key.name) == "env"
        assert pending == ()
        assert set(changed_keys(running, config)) == whole(key)
    else:
        assert key.of(config) == key.of(running) != key.of(read)
        assert key.holder(config).source_of(key.name) == "default"
        assert not key.holder(config).is_set(key.name)
        assert {item.key for item in pending} == whole(key)
        assert changed_keys(running, config) == ()


@given(st.sets(st.sampled_from(KEYS)), st.sets(st.sampled_from(KEYS)))
def test_each_key_has_its_old_or_its_new_value(before: set[Key], after: set[Key]) -> None:
    running, read = with_keys(*before), with_keys(*after)
    first, second = running.model_dump(), read.model_dump()
    config, pending = apply_live_keys(running, read)
    for key in KEYS:
        wanted = read if key.status == "live" else running
        assert key.of(config) == key.of(wanted)
        assert key.holder(config).is_set(key.name) == key.holder(wanted).is_set(key.name)
    assert {item.key for item in pending} == {
        key.dotted for key in KEYS if key.status != "live" and key.of(running) != key.of(read)
    }
    assert (running.model_dump(), read.model_dump()) == (first, second), "the inputs must not change"
    again, still = apply_live_keys(config, read)
    assert (again, still) == (config, pending), "a second reload must give the same result"


def test_an_option_of_the_command_line_takes_precedence_over_the_file() -> None:
    running = with_keys()
    running.server.port = 9000
    running.security.timeout_seconds = 77
    read = load_config(env={"MCP_SERVER_PORT": "9001", "MCP_SECURITY_TIMEOUT_SECONDS": "5"})
    config, pending = apply_live_keys(running, read)
    assert (config.server.port, config.security.timeout_seconds) == (9000, 77)
    assert (config.server.source_of("port"), pending) == ("code", ())
    assert config.effective.timeout_ceiling == 77
    config.security.timeout_seconds = 78
    assert running.security.timeout_seconds == 77, "the running configuration must not share its sections"


def test_pending_values_contain_no_secret() -> None:
    read = load_config(env={"MCP_DATABASE_URL": "postgresql://u:hunter2@h/d", "MCP_STATE_DIR": "/srv/x"})
    _, pending = apply_live_keys(with_keys(), read)
    shown = {item.key: item for item in pending}
    assert shown["database.url"] == Pending("database.url", None, "postgresql://u:***@h/d")
    assert shown["state_dir"].configured == "/srv/x"


def test_every_status_is_live_or_restart() -> None:
    assert {key.status for key in KEYS} == {"live", "restart"}
    assert all(isinstance(key.holder(Config()), Section) for key in KEYS)


def test_the_table_of_keys_is_complete() -> None:
    assert {row_name(row) for row in ROWS} == {key.dotted for key in KEYS if key.section}


def row_name(row: Row) -> str:
    return f"{row.section}.{row.key}"
