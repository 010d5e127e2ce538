"""Assignments, the effective limits, and the configuration of the process with its reload."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_server.config import (
    Config,
    EffectiveLimits,
    get_config,
    load_config,
    log_notices,
    reset_config,
    set_config,
)
from mcp_server.errors import ConfigError

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("MCP_STATE_DIR", str(tmp_path / "state"))
    reset_config()
    yield
    reset_config()


def limits(**env: str) -> EffectiveLimits:
    return load_config(env=env).effective


def test_an_assignment_is_kept_with_its_source() -> None:
    config = Config()
    config.security.timeout_seconds = 60
    assert config.security.timeout_seconds == 60
    assert config.security.source_of("timeout_seconds") == "code"
    assert config.effective.default_timeout == 60
    config.security.allowed_targets = ["loopback"]  # type: ignore[assignment]  # a list is taken, and kept as a tuple
    assert config.security.allowed_targets == ("loopback",)


def test_an_assignment_to_an_unknown_key_names_the_nearest() -> None:
    config = Config()
    with pytest.raises(ConfigError, match=r"'security\.timeout_second'.*'security\.timeout_seconds'"):
        config.security.timeout_second = 5  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"'servre'.*'server'"):
        config.servre = 5  # type: ignore[attr-defined]


def test_an_assignment_of_the_wrong_type_is_refused() -> None:
    config = Config()
    with pytest.raises(ConfigError, match=r"^server\.port: .*'9000'"):
        config.server.port = "9000"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"^server: "):
        config.server = 5  # type: ignore[assignment]
    assert config.server.port == 8080


def test_lists_are_tuples_so_that_no_change_bypasses_the_validation() -> None:
    assert isinstance(Config().security.allowed_targets, tuple)


def test_keys_for_the_same_limit_have_the_same_default() -> None:
    config = Config()
    assert config.security.max_args_length == config.limits.max_args_len
    assert config.security.max_output_size == config.limits.max_stdout_bytes
    assert config.security.timeout_seconds == config.limits.default_timeout_sec == config.tool.default_timeout
    assert config.security.concurrency_limit == config.limits.default_concurrency == config.tool.default_concurrency


def test_the_default_limits() -> None:
    assert limits() == EffectiveLimits(
        max_args_length=2048,
        stdout_bytes=MIB,
        stderr_bytes=256 * 1024,
        raw_bytes=1024 * MIB,
        default_timeout=300,
        timeout_ceiling=3600,
        default_concurrency=2,
        concurrency_ceiling=100,
        memory_bytes=512 * MIB,
        file_descriptors=256,
    )


@pytest.mark.parametrize(
    ("attribute", "variables"),
    [
        ("max_args_length", ["MCP_SECURITY_MAX_ARGS_LENGTH", "MCP_MAX_ARGS_LEN"]),
        ("stdout_bytes", ["MCP_SECURITY_MAX_OUTPUT_SIZE", "MCP_MAX_STDOUT_BYTES"]),
        (
            "default_timeout",
            ["MCP_SECURITY_TIMEOUT_SECONDS", "MCP_DEFAULT_TIMEOUT_SEC", "MCP_TOOL_DEFAULT_TIMEOUT"],
        ),
        (
            "default_concurrency",
            ["MCP_SECURITY_CONCURRENCY_LIMIT", "MCP_DEFAULT_CONCURRENCY", "MCP_TOOL_DEFAULT_CONCURRENCY"],
        ),
    ],
)
def test_security_takes_precedence_over_limits_and_limits_over_tool(attribute: str, variables: list[str]) -> None:
    base = 2000 if attribute == "stdout_bytes" else 40
    for first in range(len(variables)):
        env = {variable: str(base + executor) for executor, variable in enumerate(variables) if executor >= first}
        assert getattr(limits(**env), attribute) == base + first


def test_a_security_key_in_the_file_takes_precedence_over_a_limit_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("security: {timeout_seconds: 300}\n")
    config = load_config(file, env={"MCP_DEFAULT_TIMEOUT_SEC": "20"})
    assert config.effective.default_timeout == 300


@pytest.mark.parametrize(
    ("variable", "attribute", "text", "value"),
    [
        ("MCP_MAX_STDERR_BYTES", "stderr_bytes", "2048", 2048),
        ("MCP_MAX_RAW_BYTES", "raw_bytes", str(2 * MIB), 2 * MIB),
        ("MCP_MAX_MEMORY_MB", "memory_bytes", "64", 64 * MIB),
        ("MCP_MAX_FILE_DESCRIPTORS", "file_descriptors", "64", 64),
    ],
)
def test_a_limit_with_one_key_has_its_value(variable: str, attribute: str, text: str, value: int) -> None:
    assert getattr(limits(**{variable: text}), attribute) == value


def test_the_time_limit_is_that_of_the_caller_or_the_tool_or_the_default() -> None:
    found = limits()
    assert (found.timeout_for(), found.timeout_for(600), found.timeout_for(600, 900)) == (300, 600, 900)
    assert found.timeout_for(asked=9999) == 3600


def test_the_operators_time_limit_is_the_ceiling() -> None:
    found = limits(MCP_SECURITY_TIMEOUT_SECONDS="60")
    assert (found.timeout_for(), found.timeout_for(600), found.timeout_for(600, 900)) == (60, 60, 60)
    assert (found.timeout_for(30), found.timeout_for(600, 0.5)) == (30, 0.5)
    assert limits(MCP_DEFAULT_TIMEOUT_SEC="60").timeout_for(600) == 600


def test_concurrency_is_that_of_the_tool_or_the_default_up_to_the_operators_ceiling() -> None:
    assert (limits().concurrency_for(), limits().concurrency_for(5)) == (2, 5)
    found = limits(MCP_SECURITY_CONCURRENCY_LIMIT="3")
    assert (found.concurrency_for(), found.concurrency_for(5), found.concurrency_for(1)) == (3, 3, 1)


def test_a_process_has_one_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    first = get_config()
    monkeypatch.setenv("MCP_SERVER_PORT", "9000")
    assert get_config() is first
    assert get_config(force_new=True).server.port == 9000
    assert get_config().server.port == 9000
    monkeypatch.setenv("MCP_SERVER_PORT", "9001")
    reset_config()
    assert get_config().server.port == 9001


def test_a_reload_takes_the_new_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("security: {allow_intrusive: true}\n")
    monkeypatch.setenv("MCP_CONFIG_FILE", str(file))
    old = get_config()
    file.write_text("security: {allow_intrusive: false}\n")
    new = get_config(force_new=True)
    assert new is get_config()
    assert (old.security.allow_intrusive, new.security.allow_intrusive) == (True, False)


@pytest.mark.parametrize("bad", ["security: {allow_intrusive: 5}", "nothing: {}", "server: [", "server: {host: ''}"])
def test_a_bad_reload_keeps_the_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bad: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("server: {port: 9000}\n")
    monkeypatch.setenv("MCP_CONFIG_FILE", str(file))
    old = get_config()
    file.write_text(bad)
    with pytest.raises(ConfigError):
        get_config(force_new=True)
    assert get_config() is old
    assert old.server.port == 9000


def test_a_reload_reads_the_file_the_configuration_was_set_with(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("server: {port: 9000}\n")
    mine = load_config(file)
    set_config(mine, path=file)
    assert get_config() is mine
    file.write_text("server: {port: 9001}\n")
    assert get_config(force_new=True).server.port == 9001


def test_notices_can_be_logged_again_once_the_log_is_open(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(env={"MCP_HEALTH_TIMEOUT": "99"})
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="mcp_server.config"):
        log_notices(config)
    assert [record.getMessage() for record in caplog.records] == [
        "config.value_clamped section=health key=timeout original=99 adjusted=60 valid_range=[1, 60]",
    ]
