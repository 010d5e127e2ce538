"""Every key against a table that is written by hand: default, range, variables, and values outside the range."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mcp_server.config import ClampedValue, Config, load_config
from mcp_server.config.keys import keys
from mcp_server.config.show import describe
from mcp_server.errors import ConfigError

MIB = 1024 * 1024
GIB = 1024 * MIB
RESTART = "restart"


class Row(NamedTuple):
    section: str
    key: str
    default: Any
    low: float | None = None
    high: float | None = None
    short: str = ""
    status: str = "live"

    @property
    def env(self) -> str:
        return f"MCP_{self.section}_{self.key}".upper()


ROWS = [
    Row("server", "host", "127.0.0.1", status=RESTART),
    Row("server", "port", 8080, 1, 65535, status=RESTART),
    Row("server", "transport", "stdio", status=RESTART),
    Row("server", "max_connections", 100, 1, 10000, status=RESTART),
    Row("server", "shutdown_grace_period", 30, 0, 300),
    Row("server", "auth", "token", status=RESTART),
    Row("server", "tls_cert", None, status=RESTART),
    Row("server", "tls_key", None, status=RESTART),
    Row("server", "tls_client_ca", None, status=RESTART),
    Row("server", "allowed_hosts", (), status=RESTART),
    Row("server", "allowed_origins", (), status=RESTART),
    Row("server", "watch_config", True),
    Row("server", "answer_text", "short"),
    Row("auth", "local_token", True),
    Row("auth", "issuer", ""),
    Row("auth", "audience", ""),
    Row("auth", "jwks_url", ""),
    Row("auth", "jwks_file", None),
    Row("auth", "algorithms", ("RS256", "PS256", "ES256", "EdDSA")),
    Row("auth", "clock_skew_sec", 30, 0, 300),
    Row("auth", "role_claim", ""),
    Row("auth", "default_role", "viewer"),
    Row("auth", "actors_file", None),
    Row("auth", "lockout_failures", 10, 0, 10000),
    Row("auth", "lockout_sec", 60, 1, 3600),
    Row("security", "allowed_targets", ("RFC1918", ".lab.internal")),
    Row("security", "policy_file", None),
    Row("security", "allowed_checksums", None),
    Row("security", "guard", "auto", status=RESTART),
    Row("security", "require_enforcement", "argument"),
    Row("security", "max_args_length", 2048, 1, 10240),
    Row("security", "max_output_size", 1048576, 1024, 10485760),
    Row("security", "timeout_seconds", 300, 1, 3600),
    Row("security", "concurrency_limit", 2, 1, 100),
    Row("security", "allow_intrusive", False),
    Row("guard", "user", "", status=RESTART),
    Row("guard", "loopback_user", ""),
    Row("guard", "mode", "auto", status=RESTART),
    Row("guard", "uplink", "", status=RESTART),
    Row("guard", "addresses", (), status=RESTART),
    Row("guard", "gateways", (), status=RESTART),
    Row("guard", "link_network", "198.18.77.0/30", status=RESTART),
    Row("audit", "checkpoint_interval", 300, 1, 86400),
    Row("audit", "ship_to", ""),
    Row("audit", "max_file_size", 100 * MIB, 64 * 1024, GIB),
    Row("admission", "max_running", 16, 1, 1000),
    Row("admission", "per_actor", 8, 1, 1000),
    Row("admission", "per_host", 1, 1, 100),
    Row("admission", "max_waiting", 64, 0, 10000),
    Row("rate_limit", "calls_per_minute", 10, 0, 100000),
    Row("rate_limit", "total_calls_per_minute", 600, 0, 1000000),
    Row("rate_limit", "storage_url", ""),
    Row("circuit_breaker", "failure_threshold", 5, 1, 100),
    Row("circuit_breaker", "recovery_timeout", 60, 1, 600),
    Row("circuit_breaker", "half_open_success_threshold", 1, 1, 10),
    Row("health", "check_interval", 30, 5, 300),
    Row("health", "cpu_threshold", 80.0, 0, 100),
    Row("health", "memory_threshold", 80.0, 0, 100),
    Row("health", "disk_threshold", 80.0, 0, 100),
    Row("health", "timeout", 10, 1, 60),
    Row("health", "dependencies", ()),
    Row("metrics", "enabled", True),
    Row("metrics", "prometheus_enabled", True),
    Row("metrics", "prometheus_port", 9090, 1, 65535),
    Row("metrics", "collection_interval", 15, 5, 300),
    Row("tracing", "endpoint", "", short="OTEL_EXPORTER_OTLP_ENDPOINT"),
    Row("tracing", "sample_ratio", 1.0, 0, 1),
    Row("logging", "level", "INFO", short="LOG_LEVEL"),
    Row("logging", "format", "json", short="LOG_FORMAT"),
    Row("logging", "file_path", None),
    Row("logging", "max_file_size", 10 * MIB, 1024, 100 * MIB),
    Row("logging", "backup_count", 5, 0, 100),
    Row("tool", "include_patterns", ("*",), short="TOOL_INCLUDE"),
    Row("tool", "exclude_patterns", (), short="TOOL_EXCLUDE"),
    Row("tool", "packages", (), short="TOOLS_PACKAGE"),
    Row("tool", "default_timeout", 300, 1, 3600),
    Row("tool", "default_concurrency", 2, 1, 100),
    Row("database", "url", None, status=RESTART),
    Row("database", "pool_size", 10, 1, 100, status=RESTART),
    Row("database", "max_overflow", 20, 0, 100, status=RESTART),
    Row("database", "pool_timeout", 30, 1, 300, status=RESTART),
    Row("database", "pool_recycle", 3600, 60, 7200, status=RESTART),
    Row("limits", "max_args_len", 2048, 1, 10240, "MCP_MAX_ARGS_LEN"),
    Row("limits", "max_stdout_bytes", MIB, 1024, 10485760, "MCP_MAX_STDOUT_BYTES"),
    Row("limits", "max_stderr_bytes", 256 * 1024, 1024, 10485760, "MCP_MAX_STDERR_BYTES"),
    Row("limits", "default_timeout_sec", 300, 1, 3600, "MCP_DEFAULT_TIMEOUT_SEC"),
    Row("limits", "default_concurrency", 2, 1, 100, "MCP_DEFAULT_CONCURRENCY"),
    Row("limits", "max_memory_mb", 512, 32, 65536, "MCP_MAX_MEMORY_MB"),
    Row("limits", "max_file_descriptors", 256, 16, 65536, "MCP_MAX_FILE_DESCRIPTORS"),
    Row("limits", "max_raw_bytes", GIB, MIB, 16 * GIB, "MCP_MAX_RAW_BYTES"),
]
NUMBERS = [row for row in ROWS if row.low is not None]


def name(row: Row) -> str:
    return f"{row.section}.{row.key}"


def value_of(config: Config, row: Row) -> Any:
    return getattr(getattr(config, row.section), row.key)


def other_value(row: Row) -> tuple[str, Any]:
    """A valid text for the environment that is not the default, and its value."""
    special: dict[str, tuple[str, Any]] = {
        "server.host": ("::1", "::1"),
        "server.transport": ("http", "http"),
        "server.auth": ("none", "none"),
        "server.tls_cert": ("/etc/x.pem", Path("/etc/x.pem")),
        "server.tls_key": ("/etc/x.key", Path("/etc/x.key")),
        "server.tls_client_ca": ("/etc/ca.pem", Path("/etc/ca.pem")),
        "auth.issuer": ("https://issuer.example", "https://issuer.example"),
        "auth.audience": ("https://scan.example/mcp", "https://scan.example/mcp"),
        "auth.jwks_url": ("https://issuer.example/jwks", "https://issuer.example/jwks"),
        "auth.jwks_file": ("/etc/jwks.json", Path("/etc/jwks.json")),
        "auth.algorithms": ("ES256,PS256", ("ES256", "PS256")),
        "auth.role_claim": ("roles", "roles"),
        "auth.default_role": ("none", "none"),
        "server.allowed_hosts": ("a.lab:1, b.lab", ("a.lab:1", "b.lab")),
        "server.allowed_origins": ("https://a.lab", ("https://a.lab",)),
        "server.answer_text": ("full", "full"),
        "auth.actors_file": ("/etc/actors.yaml", Path("/etc/actors.yaml")),
        "security.allowed_targets": ("loopback,10.0.0.0/8", ("loopback", "10.0.0.0/8")),
        "security.policy_file": ("/etc/x.yaml", Path("/etc/x.yaml")),
        "security.allowed_checksums": ("/etc/x.sums", Path("/etc/x.sums")),
        "security.guard": ("argument", "argument"),
        "security.require_enforcement": ("kernel", "kernel"),
        "guard.user": ("scanner", "scanner"),
        "guard.loopback_user": ("daemon", "daemon"),
        "guard.mode": ("nat", "nat"),
        "guard.uplink": ("eth7", "eth7"),
        "guard.addresses": ("10.0.0.250/24,fd00::2/64", ("10.0.0.250/24", "fd00::2/64")),
        "guard.gateways": ("10.0.0.1,fd00::1", ("10.0.0.1", "fd00::1")),
        "guard.link_network": ("198.18.5.0/30", "198.18.5.0/30"),
        "audit.ship_to": ("syslog", "syslog"),
        "rate_limit.storage_url": ("redis://10.0.0.5:6379/0", "redis://10.0.0.5:6379/0"),
        "tracing.endpoint": ("http://127.0.0.1:4318", "http://127.0.0.1:4318"),
        "health.dependencies": ("json", ("json",)),
        "logging.level": ("debug", "DEBUG"),
        "logging.format": ("console", "console"),
        "logging.file_path": ("/var/log/x.log", Path("/var/log/x.log")),
        "database.url": ("postgresql://db/x", "postgresql://db/x"),
    }
    if row.low is not None:
        number = row.default + 1 if row.default < (row.high or 0) else row.default - 1
        return str(number), number
    if isinstance(row.default, bool):
        return ("false", False) if row.default else ("true", True)
    return special.get(name(row), ("a,b", ("a", "b")))


def required_keys(row: Row) -> dict[str, Any]:
    """Return the other keys of the section that must be set with this key."""
    pair = {"tls_cert": "/etc/x.pem", "tls_key": "/etc/x.key"}
    needed: dict[str, dict[str, Any]] = {
        "server.tls_cert": {"tls_key": pair["tls_key"]},
        "server.tls_key": {"tls_cert": pair["tls_cert"]},
        "server.tls_client_ca": pair,
        "auth.issuer": {"audience": "https://scan.example/mcp", "jwks_url": "https://issuer.example/jwks"},
    }
    return needed.get(name(row), {})


def required_variables(row: Row) -> dict[str, str]:
    return {f"MCP_{row.section}_{key}".upper(): value for key, value in required_keys(row).items()}


def test_the_table_has_every_key() -> None:
    assert [name(row) for row in ROWS] == [key.dotted for key in keys().values() if key.section]
    assert [key.dotted for key in keys().values() if not key.section] == ["state_dir"]


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_default_range_names_and_status(row: Row) -> None:
    info = next(i for i in describe(load_config(env={})) if (i.section, i.key) == (row.section, row.key))
    value = value_of(load_config(env={}), row)
    assert value == row.default
    assert type(value) is type(row.default)
    assert (info.env, info.env_aliases) == (row.env, (row.short,) if row.short else ())
    assert info.status == row.status
    if row.low is not None:
        assert info.range == f"{row.low} to {row.high}"
    assert info.description.endswith(".")


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_each_variable_sets_its_key(row: Row) -> None:
    text, value = other_value(row)
    assert value != row.default
    for variable in (row.env, row.short):
        if variable:
            config = load_config(env={variable: text} | required_variables(row))
            assert value_of(config, row) == value
            assert getattr(config, row.section).source_of(row.key) == "env"


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_a_file_sets_each_key(row: Row, tmp_path: Path) -> None:
    _, value = other_value(row)
    plain = str(value) if isinstance(value, Path) else value
    file = tmp_path / "c.json"
    file.write_text(json.dumps({row.section: {row.key: plain} | required_keys(row)}))
    config = load_config(file, env={})
    assert value_of(config, row) == value
    assert getattr(config, row.section).source_of(row.key) == "file"


@pytest.mark.parametrize("side", ["below", "above"])
@pytest.mark.parametrize("row", NUMBERS, ids=name)
def test_a_number_outside_its_range_is_clamped_and_logged(
    row: Row, side: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert row.low is not None
    assert row.high is not None
    original, bound = (row.low - 1, row.low) if side == "below" else (row.high + 1, row.high)
    file = tmp_path / "c.json"
    file.write_text(json.dumps({row.section: {row.key: original}}))
    for path, env in ((file, {}), (None, {row.env: str(original)})):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="mcp_server.config"):
            config = load_config(path, env=env)
        assert value_of(config, row) == bound
        assert config.clamped == (ClampedValue(row.section, row.key, original, bound, (row.low, row.high)),)
        (record,) = (r for r in caplog.records if "value_clamped" in r.getMessage())
        assert record.getMessage() == (
            f"config.value_clamped section={row.section} key={row.key} original={original} adjusted={bound} "
            f"valid_range=[{row.low}, {row.high}]"
        )
        assert (record.name, record.levelno) == ("mcp_server.config", logging.WARNING)


@pytest.mark.parametrize("row", NUMBERS, ids=name)
def test_a_number_outside_its_range_is_refused_on_assignment(row: Row) -> None:
    config = load_config(env={})
    for bad in (row.low - 1, row.high + 1):  # type: ignore[operator]  # NUMBERS holds only rows with a range
        with pytest.raises(ConfigError, match=name(row)) as caught:
            setattr(getattr(config, row.section), row.key, bad)
        assert caught.value.code == "config_invalid"
        assert value_of(config, row) == row.default
    assert config.clamped == ()


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_a_value_of_the_wrong_type_is_refused_with_the_key(row: Row, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps({row.section: {row.key: {"not": "this"}}}))
    with pytest.raises(ConfigError, match=rf"^{name(row)}: "):
        load_config(file, env={})


def test_the_state_folder_is_that_of_the_platform_or_of_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert load_config(env={}).state_dir == tmp_path / "mcp-network-tools"
    assert load_config(env={"MCP_STATE_DIR": ""}).state_dir == tmp_path / "mcp-network-tools"
    assert load_config(env={"MCP_STATE_DIR": "/srv/state"}).state_dir == Path("/srv/state")
    monkeypatch.chdir(tmp_path)
    assert load_config(env={"MCP_STATE_DIR": "here"}).state_dir == tmp_path / "here"
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load_config(env={"MCP_STATE_DIR": "~/state"}).state_dir == Path("/home/somebody/state")
