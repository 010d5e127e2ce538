"""Keys and certificates in the kernel tier, where files, process and listening socket belong to different users."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.support.certificates import Authority
from tests.support.guarded import MACVLAN, SERVER_UID, guarded, wait_for, world
from tests.support.issuer import Key, claims, jwks
from tests.support.processes import binary

PORT = 8131
BASE = f"https://127.0.0.1:{PORT}"
ISSUER = "https://issuer.example"
ASK = (
    "import ssl, sys, urllib.request\n"
    "r = urllib.request.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.argv[2]})\n"
    "c = ssl.create_default_context(cafile=sys.argv[3])\n"
    "c.load_cert_chain(sys.argv[4], sys.argv[5]) if sys.argv[4] else None\n"
    "https = urllib.request.HTTPSHandler(context=c)\n"
    "try: print(urllib.request.build_opener(urllib.request.ProxyHandler({}), https).open(r, timeout=30).status)\n"
    "except urllib.error.HTTPError as e: print(e.code)\n"
    "except OSError as e: print(type(e).__name__)"
)


def test_keys_tokens_and_certificates_work_in_the_kernel_tier(tmp_path: Path) -> None:
    authority, signer = Authority(tmp_path), Key.make("one")
    server, client = authority.issue("server"), authority.issue("client")
    with world() as made:
        for name, content in {
            "ca.pem": authority.certificate.read_bytes(),
            "server.pem": server.certificate.read_bytes(),
            "server.key": server.key.read_bytes(),
            "jwks.json": json.dumps(jwks(signer)).encode(),
        }.items():
            (made.folder / name).write_bytes(content)
            (made.folder / name).chmod(0o600 if name == "server.key" else 0o644)
        os.chown(made.folder / "server.key", SERVER_UID, SERVER_UID)
        settings = MACVLAN | {
            "MCP_SERVER_TLS_CERT": "/run/world/server.pem",
            "MCP_SERVER_TLS_KEY": "/run/world/server.key",
            "MCP_SERVER_TLS_CLIENT_CA": "/run/world/ca.pem",
            "MCP_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{PORT}",
            "MCP_AUTH_ISSUER": ISSUER,
            "MCP_AUTH_AUDIENCE": "http://127.0.0.1/mcp",
            "MCP_AUTH_JWKS_FILE": "/run/world/jwks.json",
        }
        words = ("serve", "--guard", "kernel", "--transport", "http", "--host", "127.0.0.1", "--port", str(PORT))
        with guarded(made, *words, settings=settings):
            wait_for(lambda: f"Listening on {BASE}" in made.log, lambda: made.log, 30)

            def ask(credential: str, *, certificate: bool = True) -> str:
                shown = (str(client.certificate), str(client.key)) if certificate else ("", "")
                argv = (sys.executable, "-c", ASK, f"{BASE}/tools", credential, str(authority.certificate), *shown)
                return made.run(*argv).stdout.strip()

            assert ask((made.folder / "state/token").read_text().strip()) == "200"
            by_root = made.cli("keys", "create", "ci", "--role", "viewer", check=False)
            assert by_root.returncode == 9, "the folder belongs to the user of the server"
            assert "sudo -u" in by_root.stderr
            as_server = (binary("setpriv"), f"--reuid={SERVER_UID}", f"--regid={SERVER_UID}", "--clear-groups")
            command = (*as_server, sys.executable, "-m", "mcp_server")
            key = json.loads(made.run(*command, "keys", "create", "ci", "--role", "viewer", "--json").stdout)
            assert ask(key["key"]) == "200"
            assert not ask(key["key"], certificate=False).isdigit(), (
                "there must be no HTTP status without a certificate"
            )
            made.run(*command, "keys", "revoke", key["id"])
            assert ask(key["key"]) == "401"
            assert ask(signer.sign(claims(ISSUER))) == "200"
            assert ask(Key.make("one").sign(claims(ISSUER))) == "401"
            assert json.loads(made.run(*command, "audit", "verify", "--json").stdout)["ok"]
