"""Identity with an incomplete configuration, very many failed authentications, or a damaged file."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mcp_server.api.http.failed_authentications import MOST_KINDS, FailedAuthentications
from mcp_server.audit import AuditLog
from mcp_server.audit.log_rate_limiter import WINDOW_SEC
from mcp_server.config import Config, load_config
from mcp_server.errors import ERRORS, ConfigError
from mcp_server.health import HealthStatus
from mcp_server.identity.authenticator import Authenticator
from mcp_server.identity.base import Rejected
from mcp_server.identity.key_file import KEY_FILE
from mcp_server.identity.private_file import storage_error
from mcp_server.server.checks.callers import check_identity
from tests.support.audit import records_of

ISSUER, AUDIENCE = {"MCP_AUTH_ISSUER": "https://i.example"}, {"MCP_AUTH_AUDIENCE": "https://scan.example/mcp"}
URL, FILE = {"MCP_AUTH_JWKS_URL": "https://i.example/jwks"}, {"MCP_AUTH_JWKS_FILE": "/etc/jwks.json"}


@pytest.mark.parametrize(
    ("env", "why"),
    [
        (ISSUER | URL, "needs auth.audience"),
        (ISSUER | AUDIENCE, "and not both"),
        (ISSUER | AUDIENCE | URL | FILE, "and not both"),
        ({"MCP_AUTH_ALGORITHMS": "none"}, "'none' is not one of"),
        ({"MCP_AUTH_ALGORITHMS": "ES256,HS256"}, "'HS256' is not one of"),
        ({"MCP_AUTH_ALGORITHMS": ""}, "at least 1 item"),
        ({"MCP_AUTH_ISSUER": "i.example"}, "must start with http"),
        ({"MCP_AUTH_ISSUER": "https://i.example?x=1"}, "neither query nor fragment"),
        ({"MCP_AUTH_JWKS_URL": "http://i.example/jwks"}, "loopback address only"),
        ({"MCP_AUTH_JWKS_URL": "https://user@i.example/jwks"}, "neither user nor fragment"),
        ({"MCP_AUTH_JWKS_URL": "https://[::1/jwks"}, "must start with http"),
        ({"MCP_AUTH_AUDIENCE": "https://scan.example:99999/mcp"}, "must start with http"),
    ],
)
def test_an_incomplete_auth_section_is_refused(env: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_config(env=env)


def test_http_is_allowed_for_keys_on_loopback_only() -> None:
    for host in ("127.0.0.1:8080", "[::1]:8080", "localhost"):
        url = f"http://{host}/jwks"
        assert load_config(env={"MCP_AUTH_JWKS_URL": url}).auth.jwks_url == url


async def test_failures_from_many_addresses_make_a_bounded_number_of_records(tmp_path: Path) -> None:
    now = 1000.0
    failed_authentications = FailedAuthentications(AuditLog(tmp_path), dict, clock=lambda: now)
    for number in range(1000):
        for _ in range(3):
            await failed_authentications.log(f"192.0.{number // 256}.{number % 256}", Rejected("token", "wrong"))
    assert len(records_of(tmp_path)) == MOST_KINDS + 1
    now += WINDOW_SEC + 1
    await failed_authentications.close()
    await failed_authentications.close()
    records = records_of(tmp_path)
    assert len(records) == 2 * (MOST_KINDS + 1)
    assert sum(record.get("repeats", 1) for record in records) == 3000, "a record was lost"
    assert {record["repeats"] for record in records if record["client"] == "others" and "repeats" in record} == {
        3 * (1000 - MOST_KINDS) - 1
    }


async def test_a_log_that_cannot_be_written_does_not_change_the_refusal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failed_authentications = FailedAuthentications(AuditLog(tmp_path / "none"), dict)
    await failed_authentications.log("192.0.2.1", Rejected("token", "wrong"))
    await failed_authentications.close()
    assert "audit.authentication_not_logged" in caplog.text


async def test_health_names_a_damaged_key_file_and_a_server_without_credentials(tmp_path: Path) -> None:
    config = Config(state_dir=tmp_path)
    authenticator = Authenticator(lambda: config)
    found = await check_identity(config, authenticator)
    assert (found.status, found.detail) == (HealthStatus.HEALTHY, "accepted: the local token")
    config.auth.local_token = False
    found = await check_identity(config, authenticator)
    assert (found.status, found.detail) == (HealthStatus.DEGRADED, "accepted: no credentials")
    assert "keys create" in found.remedy
    (tmp_path / KEY_FILE).write_text("{")
    (tmp_path / KEY_FILE).chmod(0o600)
    found = await check_identity(config, authenticator)
    assert found.status is HealthStatus.DEGRADED
    assert KEY_FILE in found.detail
    assert KEY_FILE in found.remedy


def test_the_hint_depends_on_why_a_file_cannot_be_written() -> None:
    full = storage_error(Path("/state/keys.json"), OSError(errno.ENOSPC, "No space left on device"), "file of keys")
    assert (full.code, full.hint) == ("disk_full", ERRORS["disk_full"].hint)
    barred = storage_error(Path("/state/token"), OSError(errno.EACCES, "Permission denied"), "token file")
    assert barred.code == "permission_denied"
    assert "MCP_STATE_DIR" in barred.hint
