"""TLS on the HTTP interfaces, with and without client certificates."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from mcp_server.api.http.connections import HEAD_SEC
from mcp_server.api.http.tls import tls_context
from mcp_server.config import load_config
from mcp_server.config.sections import ServerConfig
from mcp_server.errors import ConfigError
from tests.support import cli
from tests.support.certificates import DAY, Authority, Files
from tests.support.interfaces import environment, free_port, http_server, mcp_client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def of_server(authority: Authority) -> Files:
    return authority.issue("server")


def variables(files: Files, ca: Path | None = None) -> dict[str, str]:
    named = {"MCP_SERVER_TLS_CERT": str(files.certificate), "MCP_SERVER_TLS_KEY": str(files.key)}
    return named | ({"MCP_SERVER_TLS_CLIENT_CA": str(ca)} if ca else {})


def context(authority: Authority, files: Files | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=authority.certificate)
    if files is not None:
        made.load_cert_chain(files.certificate, files.key)
    return made


@pytest.fixture(scope="module")
def mutual(folder: Path, authority: Authority, of_server: Files) -> Iterator[tuple[int, str]]:
    """Yield the port and the token of a server that requires client certificates."""
    env = environment(folder / "state", **variables(of_server, authority.certificate))
    with http_server(env) as (base, token, _):
        yield int(base.rpartition(":")[2]), token


def ask(port: int, token: str, trusted: ssl.SSLContext, **headers: str) -> httpx2.Response:
    with httpx2.Client(verify=trusted, headers={"Authorization": f"Bearer {token}"} | headers, timeout=30) as client:
        return client.get(f"https://127.0.0.1:{port}/tools")


def test_a_client_with_a_certificate_still_needs_its_token(mutual: tuple[int, str], authority: Authority) -> None:
    port, token = mutual
    trusted = context(authority, authority.issue("client"))
    assert ask(port, token, trusted).status_code == 200
    assert ask(port, "wrong", trusted).status_code == 401
    assert ask(port, token, trusted, Origin=f"https://127.0.0.1:{port}").status_code == 200
    assert ask(port, token, trusted, Origin=f"http://127.0.0.1:{port}").status_code == 403
    assert ask(port, token, trusted, Host="evil.example").status_code == 403


@pytest.mark.parametrize("which", ["none", "expired", "another authority's"])
def test_a_client_without_a_valid_certificate_is_refused(
    mutual: tuple[int, str], authority: Authority, folder: Path, which: str
) -> None:
    if which == "none":
        shown = None
    elif which == "expired":
        shown = authority.issue("expired-client", good_for=-DAY)
    else:
        shown = Authority(folder, "other").issue("other-client")
    with pytest.raises(httpx2.TransportError):  # in TLS 1.3 the client gets the error when it reads
        ask(*mutual, context(authority, shown))


def test_a_client_without_tls_gets_no_response(mutual: tuple[int, str]) -> None:
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"http://127.0.0.1:{mutual[0]}/livez")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # for the old version
def test_versions_before_tls_1_2_are_refused(mutual: tuple[int, str], authority: Authority) -> None:
    files = authority.issue("old-client")
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        old = context(authority, files)
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = old.maximum_version = version
        with pytest.raises(httpx2.TransportError):
            ask(*mutual, old)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        new = context(authority, files)
        new.minimum_version = new.maximum_version = version
        assert ask(*mutual, new).status_code == 200


def test_a_connection_without_a_handshake_is_closed(mutual: tuple[int, str]) -> None:
    with socket.create_connection(("127.0.0.1", mutual[0])) as silent:
        silent.settimeout(2 * HEAD_SEC)
        begun = time.monotonic()
        assert silent.recv(1) == b""
        assert HEAD_SEC - 1 < time.monotonic() - begun < 2 * HEAD_SEC


async def test_without_client_certificates_the_token_is_enough(
    tmp_path: Path, authority: Authority, of_server: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environment(tmp_path / "state", **variables(of_server))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    with http_server(env) as (base, token, _):
        secure = base.replace("http://", "https://")
        async with mcp_client(secure, token) as client:
            assert (await client.list_tools()).tools
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"{secure}/livez", verify=ssl.create_default_context(cadata=other_root(tmp_path)))


def other_root(folder: Path) -> str:
    return Authority(folder, "unknown").certificate.read_text()


def settings(files: Files, ca: Path | None = None) -> ServerConfig:
    return ServerConfig(tls_cert=files.certificate, tls_key=files.key, tls_client_ca=ca)


def test_addresses_follow(of_server: Files) -> None:
    plain, secure = ServerConfig(port=443), settings(of_server)
    secure.port = 443
    assert (plain.scheme, secure.scheme) == ("http", "https")
    assert "localhost" in secure.hosts
    assert "localhost" not in plain.hosts
    assert set(secure.origins) == {f"https://{host}" for host in secure.hosts}
    assert tls_context(plain) is None


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (lambda files: files.key.unlink(), "tls_key .* cannot be read"),
        (lambda files: files.certificate.unlink(), "tls_cert .* cannot be read"),
        (lambda files: files.key.chmod(0o640), r"tls_key .* is open to other users \(mode 0640\)"),
        (lambda files: files.key.write_text("no key"), "cannot be used together"),
        (lambda files: files.certificate.write_text("no certificate"), "cannot be used together"),
        (lambda files: files.certificate.write_text(""), "cannot be used together"),
        (lambda files: files.key.write_bytes(Authority(files.key.parent, "x").issue("x").key.read_bytes()), "together"),
    ],
)
def test_the_error_names_a_file_that_cannot_be_used(
    authority: Authority, tmp_path: Path, break_it: object, why: str
) -> None:
    files = Authority(tmp_path).issue("mine")
    break_it(files)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=why):
        tls_context(settings(files))


def test_the_error_names_a_key_with_a_passphrase_and_an_invalid_authority(of_server: Files, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used together"):
        tls_context(settings(Authority(tmp_path).issue("sealed", passphrase=b"secret")))
    empty = tmp_path / "empty"
    empty.write_text("")
    with pytest.raises(ConfigError, match=r"tls_client_ca .* cannot be used"):
        tls_context(settings(of_server, empty))
    with pytest.raises(ConfigError, match=r"tls_client_ca .* cannot be read"):
        tls_context(settings(of_server, tmp_path / "none"))


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"MCP_SERVER_TLS_CERT": "/x"}, "go together"),
        ({"MCP_SERVER_TLS_KEY": "/x"}, "go together"),
        ({"MCP_SERVER_TLS_CLIENT_CA": "/x"}, "needs server.tls_cert"),
    ],
)
def test_tls_settings_that_need_each_other_are_checked(env: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_config(env=env)


def test_the_server_does_not_start_with_an_invalid_file(tmp_path: Path, of_server: Files) -> None:
    files = Files(of_server.certificate, tmp_path / "none.key")
    env = environment(tmp_path / "state", **variables(files))
    done = cli.run("serve", "--transport", "http", "--port", str(free_port()), "--json", env=env)
    assert done.returncode == 8
    error = json.loads(done.stderr[done.stderr.index('{\n  "error"') :])["error"]
    assert error["code"] == "config_invalid"
    assert "none.key cannot be read" in error["message"]


def test_the_printed_url_begins_with_https(tmp_path: Path, of_server: Files) -> None:
    port = free_port()
    env = environment(tmp_path / "state", **variables(of_server))
    command = [*cli.COMMAND, "serve", "--transport", "http", "--port", str(port)]
    with subprocess.Popen(command, env=env, cwd=cli.ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(each for each in process.stderr if "Listening on" in each)
        process.terminate()
        process.communicate(timeout=30)
    assert line == f"Listening on https://127.0.0.1:{port}\n"
