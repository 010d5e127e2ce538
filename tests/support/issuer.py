"""A real OAuth server on loopback (oidc-provider on Node); tests create its keys, to rotate and forge them."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.support.interfaces import free_port
from tests.support.mcp_node import NODE, ROOT

RESOURCE = "http://127.0.0.1/mcp"
CLIENTS = {"watcher": ["viewer"], "scanner": ["operator"], "boss": ["operator", "admin"], "nobody": []}
ALL_SCOPES = "tools:read tools:probe tools:scan tools:intrusive runs:read admin"

_SCRIPT = Path(__file__).with_suffix(".mjs")
_MODULES = ROOT / ".cache" / "node-tools" / "node_modules"
_PATIENCE = 30.0


@dataclass(frozen=True)
class Key:
    """A signing key of an issuer, with its id."""

    id: str
    private: Any
    algorithm: str = "ES256"

    @classmethod
    def make(cls, identity: str, algorithm: str = "ES256") -> Key:
        made: Any
        if algorithm == "EdDSA":
            made = ed25519.Ed25519PrivateKey.generate()
        elif algorithm.startswith("ES"):
            made = ec.generate_private_key(ec.SECP256R1())
        else:
            made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        return cls(identity, made, algorithm)

    def jwk(self, *, private: bool = False) -> dict[str, Any]:
        kind: Any = {"RS": RSAAlgorithm, "PS": RSAAlgorithm, "ES": ECAlgorithm, "Ed": OKPAlgorithm}[self.algorithm[:2]]
        key = self.private if private else self.private.public_key()
        made = {**json.loads(kind.to_jwk(key)), "kid": self.id, "use": "sig", "alg": self.algorithm}
        # PyJWT sets "sign" for a private key. The issuer process would publish that together with the public key.
        made.pop("key_ops", None)
        return made

    def sign(self, claims: Mapping[str, Any], **headers: Any) -> str:
        """Return a token with these claims; ``headers`` replace the usual ones, and None removes one.

        The token is built by hand, because a library would refuse half of what the tests need.
        """
        head = {"typ": "at+jwt", "alg": self.algorithm, "kid": self.id} | headers
        signing = assembled({name: value for name, value in head.items() if value is not None}, claims)[:-1]
        signature = jwt.get_algorithm_by_name(self.algorithm).sign(signing.encode(), self.private)
        return f"{signing}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def jwks(*keys: Key, private: bool = False) -> dict[str, Any]:
    """Return the set of the keys."""
    return {"keys": [key.jwk(private=private) for key in keys]}


def claims(issuer: str, **changed: Any) -> dict[str, Any]:
    """Return the usual claims; None removes one."""
    now = int(time.time())
    honest = {
        "iss": issuer,
        "aud": RESOURCE,
        "sub": "scanner",
        "client_id": "scanner",
        "iat": now,
        "exp": now + 300,
        "jti": "1",
        "scope": ALL_SCOPES,
        "roles": ["operator"],
    }
    return {name: value for name, value in (honest | changed).items() if value is not None}


def assembled(header: Mapping[str, Any], body: Mapping[str, Any], signature: bytes = b"") -> str:
    """Return an unsigned token of these parts."""
    parts = [json.dumps(part).encode() for part in (header, body)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts, signature))


@dataclass
class Issuer:
    """The server; `use` gives it other keys."""

    url: str
    process: subprocess.Popen[str]

    def use(self, *keys: Key, ttl: int = 300, resource: str = RESOURCE) -> None:
        """Sign with the first of ``keys`` and publish all of them."""
        setting = {"clients": CLIENTS, "resource": resource, "ttl": ttl, "alg": keys[0].algorithm}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(setting | {"jwks": jwks(*keys, private=True)}) + "\n")
        self.process.stdin.flush()
        # Its warnings that it is only for tests come first.
        assert "ready\n" in iter(self.process.stdout.readline, ""), "the issuer ended"

    @property
    def jwks_url(self) -> str:
        return f"{self.url}/jwks"

    def token(self, client: str = "scanner", scope: str = ALL_SCOPES, resource: str | None = None) -> str:
        """Return an access token by client_credentials."""
        form = {"grant_type": "client_credentials", "scope": scope} | ({"resource": resource} if resource else {})
        answer = httpx2.post(f"{self.url}/token", data=form, auth=(client, f"secret-of-{client}"), timeout=_PATIENCE)
        assert answer.status_code == 200, answer.text
        token: str = answer.json()["access_token"]
        return token


@contextmanager
def running_issuer(*keys: Key) -> Iterator[Issuer]:
    """Start the server with these keys."""
    assert (_MODULES / "oidc-provider").is_dir(), "oidc-provider is missing: run scripts/node-tools.sh"
    port = free_port()
    process = subprocess.Popen(
        [str(NODE), str(_SCRIPT), str(_MODULES), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        issuer = Issuer(f"http://127.0.0.1:{port}", process)
        issuer.use(*keys)
        yield issuer
    finally:
        process.kill()
        process.communicate()
