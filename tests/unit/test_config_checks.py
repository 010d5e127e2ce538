"""The checks of single values: scope entries, hosts, origins, packages and database URLs, and server.auth none."""

import pytest

from mcp_server.config import Config, load_config
from mcp_server.errors import ConfigError


@pytest.mark.parametrize(
    "entry",
    [
        "RFC1918",
        "loopback",
        "10.0.0.0/24",
        "0.0.0.0/0",
        "fd00::/8",
        ".lab.internal",
        ".internal",
        ".xn--bcher-kva.example",
    ],
)
def test_canonical_scope_entries_are_kept_unchanged(entry: str) -> None:
    assert load_config(env={"MCP_SECURITY_ALLOWED_TARGETS": entry}).security.allowed_targets == (entry,)


@pytest.mark.parametrize(
    ("entry", "canonical"),
    [
        ("rfc1918", "RFC1918"),
        ("Loopback", "loopback"),
        ("10.0.0.1", "10.0.0.1"),
        ("192.168.1.7/32", "192.168.1.7"),
        ("2001:DB8::1/128", "2001:db8::1"),
        (".Lab.Internal.", ".lab.internal"),
    ],
)
def test_scope_entries_are_kept_in_canonical_spelling(entry: str, canonical: str) -> None:
    assert load_config(env={"MCP_SECURITY_ALLOWED_TARGETS": entry}).security.allowed_targets == (canonical,)


@pytest.mark.parametrize(
    "entry",
    [
        "private",
        "*",
        "all",
        "10.0.0.1/24",
        "fd00::1/64",
        "10.0.0.0/33",
        "10.0.0.0/",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/0.0.0.255",
        "10.0.0.0/+8",
        "010.0.0.0/8",
        "10.0.0/8",
        "1" + "\uff10.0.0.0/8",
        "10.0.0.0/\u0668",
        "fe80::%eth0/64",
        "lab.internal",
        ".",
        "..internal",
        ".lab..internal",
        ".-lab",
        ".lab-",
        ".b\u00fccher",
        ".lab_internal",
        ".lab internal",
        ".lab\n",
        "10.0.0.0/8\n",
        "." + "a" * 64,
    ],
)
def test_any_other_scope_entry_is_refused_by_name(entry: str) -> None:
    config = load_config(env={})
    with pytest.raises(ConfigError, match=r"^security\.allowed_targets: ") as caught:
        config.security.allowed_targets = ("RFC1918", entry)
    assert repr(entry)[:40] in caught.value.message
    assert config.security.allowed_targets == ("RFC1918", ".lab.internal")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1", "localhost", "scan.lab.internal", "10.1.2.3"])
def test_an_address_or_a_name_is_accepted_as_the_host(host: str) -> None:
    assert load_config(env={"MCP_SERVER_HOST": host}).server.host == host


@pytest.mark.parametrize(
    "host", ["", " ", "[::1]", "127.0.0.1:80", "127.0.0.256", "127.1", "a b", "http://x", "x_y", "a\n"]
)
def test_text_that_is_not_a_host_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"^server\.host: "):
        Config().server.host = host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"])
def test_no_authentication_is_allowed_on_loopback(host: str) -> None:
    assert load_config(env={"MCP_SERVER_HOST": host, "MCP_SERVER_AUTH": "none"}).server.auth == "none"


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.1", "::ffff:127.0.0.1", "scan.lab.internal", "localhost.evil.example"]
)
def test_no_authentication_is_refused_elsewhere(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(env={"MCP_SERVER_HOST": host, "MCP_SERVER_AUTH": "none"})
    assert caught.value.code == "config_invalid"
    assert "server.auth" in caught.value.message
    assert host in caught.value.message


def test_no_authentication_on_another_address_is_refused_for_assignments_in_either_order() -> None:
    config = Config()
    config.server.auth = "none"
    with pytest.raises(ConfigError, match="not a loopback address"):
        config.server.host = "0.0.0.0"
    assert config.server.host == "127.0.0.1"
    config = Config()
    config.server.host = "0.0.0.0"
    with pytest.raises(ConfigError, match="not a loopback address"):
        config.server.auth = "none"
    assert config.server.auth == "token"


def test_exact_hosts_and_origins_are_kept_in_lower_case() -> None:
    config = load_config(
        env={
            "MCP_SERVER_ALLOWED_HOSTS": "Scan.Lab.internal:8443,scan.lab.internal,[::1]:8080,10.0.0.1:1",
            "MCP_SERVER_ALLOWED_ORIGINS": "https://Console.lab.internal,http://[::1]:3000",
        }
    )
    assert config.server.hosts == ("scan.lab.internal:8443", "scan.lab.internal", "[::1]:8080", "10.0.0.1:1")
    assert config.server.origins == ("https://console.lab.internal", "http://[::1]:3000")


@pytest.mark.parametrize(
    "value",
    [
        "*",
        "*.lab",
        "a:0",
        "a:65536",
        "a:",
        ":80",
        "a b:1",
        "a/b",
        "::1:80",
        "[zz]:1",
        "[:::]:1",
        "[1.2.3.4]:1",
        "http://a",
    ],
)
def test_inexact_hosts_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^server\.allowed_hosts: "):
        Config().server.allowed_hosts = (value,)


@pytest.mark.parametrize(
    "value", ["*", "null", "a:80", "ftp://a", "http://", "http://*", "http://a/", "http://a:99999", "http://u@a"]
)
def test_inexact_origins_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^server\.allowed_origins: "):
        Config().server.allowed_origins = (value,)


@pytest.mark.parametrize(
    ("host", "port", "hosts"),
    [
        ("127.0.0.1", 8080, ("127.0.0.1:8080", "localhost:8080", "[::1]:8080")),
        ("::1", 1, ("127.0.0.1:1", "localhost:1", "[::1]:1")),
        ("127.0.0.9", 1, ("127.0.0.1:1", "localhost:1", "[::1]:1", "127.0.0.9:1")),
        ("0.0.0.0", 1, ("127.0.0.1:1", "localhost:1", "[::1]:1")),
        ("Scan.lab", 9000, ("scan.lab:9000",)),
        ("fd00::5", 9000, ("[fd00::5]:9000",)),
        ("10.0.0.1", 80, ("10.0.0.1:80", "10.0.0.1")),
    ],
)
def test_hosts_and_origins_are_derived_from_the_address(host: str, port: int, hosts: tuple[str, ...]) -> None:
    server = load_config(env={"MCP_SERVER_HOST": host, "MCP_SERVER_PORT": str(port)}).server
    assert server.hosts == hosts
    assert server.origins == tuple(f"http://{name}" for name in hosts)


@pytest.mark.parametrize(
    "url", ["sqlite:////srv/x.db", "sqlite+aiosqlite:///x.db", "postgresql://db/x", "postgresql+asyncpg://u:p@db/x"]
)
def test_urls_of_sqlite_and_postgresql_are_accepted(url: str) -> None:
    assert load_config(env={"MCP_DATABASE_URL": url}).database.url == url


@pytest.mark.parametrize(
    "url", ["mysql://u:hunter2@db/x", "postgres:u:hunter2", "/srv/hunter2.db", "postgresql+psycopg2://u:hunter2@db/x"]
)
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^database\.url: .*sqlite://, sqlite\+aiosqlite://, postgresql://"):
        load_config(env={"MCP_DATABASE_URL": url})
