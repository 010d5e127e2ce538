"""Access tokens: the identity of a valid token, and the refusal of forged ones."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mcp_server.config.sections import AuthConfig
from mcp_server.errors import ConfigError, PlatformError
from mcp_server.identity.access_tokens import AccessTokens
from mcp_server.identity.base import Identity, Rejected, RoleDirectory, bounded, subject_name
from mcp_server.identity.issuer_keys import FileKeys, read_jwks_file
from mcp_server.identity.jwk_set import MAX_KEYS, JwkSet
from mcp_server.model.access import NOBODY, Access, Permission, Role
from tests.support.issuer import RESOURCE, Key, assembled, claims, jwks

ISSUER = "https://issuer.example"
EC, RSA, ED, OTHER = Key.make("ec"), Key.make("rsa", "RS256"), Key.make("ed", "EdDSA"), Key.make("other")
OPERATOR = Role.OPERATOR.permissions


@pytest.fixture
def settings(tmp_path: Path) -> AuthConfig:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(jwks(EC, RSA, ED)))
    path.chmod(0o644)
    return AuthConfig(issuer=ISSUER, audience=RESOURCE, jwks_file=path, role_claim="roles")


async def ask(settings: AuthConfig, token: str) -> Identity:
    tokens = AccessTokens(lambda: settings, RoleDirectory())
    if not tokens.claims(token):
        raise Rejected("token", "no form of a JWT")
    return await tokens.check(token)


async def refused(settings: AuthConfig, token: str) -> str:
    with pytest.raises(Rejected) as caught:
        await ask(settings, token)
    assert token not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("key", [EC, RSA, ED], ids=lambda key: key.algorithm)
async def test_a_valid_token_belongs_to_its_subject(settings: AuthConfig, key: Key) -> None:
    assert await ask(settings, key.sign(claims(ISSUER))) == Identity("sub:scanner", Access(OPERATOR))


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt", "JWT"])
async def test_both_types_of_token_are_accepted(settings: AuthConfig, typ: str) -> None:
    assert (await ask(settings, EC.sign(claims(ISSUER), typ=typ))).name == "sub:scanner"


async def test_the_audience_may_be_one_of_several(settings: AuthConfig) -> None:
    assert await ask(settings, EC.sign(claims(ISSUER, aud=["https://else.example", RESOURCE])))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"scope": "tools:read"}, {Permission.TOOLS_READ}),
        ({"scope": "openid admin tools:read unknown"}, {Permission.TOOLS_READ}),  # the role does not include admin
        ({"scope": None, "scp": ["runs:read", 7]}, {Permission.RUNS_READ}),
        ({"scope": None, "scp": "runs:read tools:scan"}, {Permission.RUNS_READ, Permission.TOOLS_SCAN}),
        ({"scope": "TOOLS:READ tools:readx"}, set()),
        ({"scope": None}, set()),
        ({"scope": {"tools:read": True}}, set()),
        ({"roles": ["viewer"]}, Role.VIEWER.permissions),
        ({"roles": ["viewer", "admin", "else"]}, frozenset(Permission)),
        ({"roles": "admin"}, frozenset(Permission)),
        ({"roles": ["Admin", "root"]}, Role.VIEWER.permissions),
        ({"roles": None}, Role.VIEWER.permissions),
        ({"roles": {"admin": True}}, Role.VIEWER.permissions),
    ],
)
async def test_permissions_are_the_scopes_of_the_token_within_the_role(
    settings: AuthConfig, changed: dict[str, Any], expected: set[Permission]
) -> None:
    assert (await ask(settings, EC.sign(claims(ISSUER, **changed)))).access.permissions == expected


@pytest.mark.parametrize(
    ("claim", "said"),
    [("realm.roles", {"realm": {"roles": ["admin"]}}), ("https://a.b/roles", {"https://a.b/roles": "admin"})],
)
async def test_a_role_may_be_nested_in_the_claims(settings: AuthConfig, claim: str, said: dict[str, Any]) -> None:
    settings.role_claim = claim
    assert (await ask(settings, EC.sign(claims(ISSUER, **said)))).access.permissions == frozenset(Permission)


async def test_a_token_without_a_role_is_refused_if_there_is_no_default_role(settings: AuthConfig) -> None:
    settings.default_role = "none"
    assert await refused(settings, EC.sign(claims(ISSUER, roles=[]))) == "no_role"
    settings.role_claim = ""
    assert await refused(settings, EC.sign(claims(ISSUER))) == "no_role"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"iss": "https://issuer.example/"}, "issuer"),
        ({"iss": "https://evil.example"}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"iss": [ISSUER]}, "issuer"),
        ({"aud": "https://else.example"}, "audience"),
        ({"aud": RESOURCE + "/"}, "audience"),
        ({"aud": RESOURCE.upper()}, "audience"),
        ({"aud": []}, "claims"),
        ({"aud": None}, "claims"),
        ({"exp": time.time() - 60}, "expired"),
        ({"exp": None}, "claims"),
        ({"exp": "soon"}, "claims"),
        ({"exp": 1e400}, "claims"),
        ({"nbf": time.time() + 600}, "not_yet_valid"),
        ({"iat": time.time() + 600}, "not_yet_valid"),
        ({"iat": None}, "claims"),
        ({"sub": None}, "claims"),
        ({"sub": ""}, "claims"),
        ({"sub": 7}, "claims"),
        ({"sub": ["scanner"]}, "claims"),
    ],
)
async def test_a_signed_token_with_wrong_claims_is_refused(
    settings: AuthConfig, changed: dict[str, Any], reason: str
) -> None:
    assert await refused(settings, EC.sign(claims(ISSUER, **changed))) == reason


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"typ": "id+jwt"}, "header"),
        ({"typ": "logout+jwt"}, "header"),
        ({"typ": None}, "header"),
        ({"kid": "unknown"}, "unknown_key"),
        ({"kid": "rsa"}, "unknown_key"),  # a key of another type
        ({"kid": "../../etc/passwd"}, "unknown_key"),
        ({"kid": "ec' OR '1'='1"}, "unknown_key"),
        ({"crit": ["exp"], "exp": 1}, "header"),
        ({"crit": []}, "header"),
    ],
)
async def test_a_token_with_a_wrong_header_is_refused(
    settings: AuthConfig, headers: dict[str, Any], reason: str
) -> None:
    assert await refused(settings, EC.sign(claims(ISSUER), **headers)) == reason


@pytest.mark.parametrize("header", ["jku", "x5u", "jwk", "x5c"])
async def test_a_key_inside_the_token_is_ignored(settings: AuthConfig, header: str) -> None:
    brought: Any = {"jwk": OTHER.jwk(), "x5c": ["MIIB"]}.get(header, "http://127.0.0.1:1/keys")
    assert await refused(settings, OTHER.sign(claims(ISSUER), kid="ec", **{header: brought})) == "signature"
    assert (await ask(settings, EC.sign(claims(ISSUER), **{header: brought}))).name == "sub:scanner"


async def test_the_signature_of_another_key_is_refused(settings: AuthConfig) -> None:
    assert await refused(settings, OTHER.sign(claims(ISSUER), kid="ec")) == "signature"
    head, body, signature = EC.sign(claims(ISSUER)).split(".")
    other_body = assembled({}, claims(ISSUER, sub="boss")).split(".")[1]
    assert await refused(settings, f"{head}.{other_body}.{signature}") == "signature"
    assert await refused(settings, f"{head}.{body}.") == "signature"
    assert await refused(settings, f"{head}.{body}.{'A' * 86}") == "signature"


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "HS256", "HS512", "", "ES256K", 7, None, ["ES256"]])
async def test_only_listed_algorithms_are_accepted(settings: AuthConfig, name: Any) -> None:
    assert (
        await refused(settings, assembled({"alg": name, "typ": "at+jwt", "kid": "ec"}, claims(ISSUER))) == "algorithm"
    )


@pytest.mark.parametrize("encoding", ["PEM", "DER"])
async def test_a_public_key_cannot_be_used_as_an_hmac_secret(settings: AuthConfig, encoding: str) -> None:
    """RS256 confused with HS256 (RFC 8725 section 2.1), signed by hand because the library refuses to sign it."""
    public = RSA.private.public_key().public_bytes(
        getattr(serialization.Encoding, encoding), serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signing = assembled({"alg": "HS256", "typ": "at+jwt", "kid": "rsa"}, claims(ISSUER)).rpartition(".")[0]
    mac = base64.urlsafe_b64encode(hmac.digest(public, signing.encode(), hashlib.sha256)).rstrip(b"=").decode()
    assert await refused(settings, f"{signing}.{mac}") == "algorithm"


async def test_an_algorithm_that_the_operator_removed_is_refused(settings: AuthConfig) -> None:
    settings.algorithms = ("PS256",)
    assert await refused(settings, RSA.sign(claims(ISSUER))) == "algorithm"


@pytest.mark.parametrize(
    "text",
    [
        "..",
        "a.b",
        "a.b.c.d",
        "a" * 9000 + ".b.c",
        EC.sign(claims(ISSUER, pad="x" * 9000)),
        "e30.e30.e30",
        "bm90IGpzb24.e30.e30",
        "W10.W10.e30",
        "é.é.é",
        "eyJhbGciOiJub25lIn0.e30.",
        base64.urlsafe_b64encode(b"[" * 3000).decode().rstrip("=") + ".e30.e30",
        "\x00.\x00.\x00",
    ],
    ids=[
        "empty-parts", "two-parts", "four-parts", "long-header", "long-claims", "no-algorithm", "not-json", "list",
        "not-ascii", "algorithm-none", "deep-nesting", "nul",
    ],
)  # fmt: skip
async def test_text_that_is_not_a_token_is_refused(settings: AuthConfig, text: str) -> None:
    await refused(settings, text)


async def test_clocks_may_differ_by_clock_skew_sec(settings: AuthConfig) -> None:
    late, early = time.time() - 20, time.time() + 20
    for token in (EC.sign(claims(ISSUER, exp=late)), EC.sign(claims(ISSUER, nbf=early, iat=early))):
        assert await ask(settings, token)
        settings.clock_skew_sec = 5
        assert await refused(settings, token) in {"expired", "not_yet_valid"}
        settings.clock_skew_sec = 30


async def test_a_token_without_a_key_id_is_accepted_if_one_key_fits(settings: AuthConfig, tmp_path: Path) -> None:
    assert await ask(settings, EC.sign(claims(ISSUER), kid=None))
    two = tmp_path / "two.json"
    two.write_text(json.dumps(jwks(EC, OTHER)))
    two.chmod(0o600)
    settings.jwks_file = two
    assert await refused(settings, EC.sign(claims(ISSUER), kid=None)) == "unknown_key"


async def test_no_token_is_accepted_without_an_issuer(settings: AuthConfig) -> None:
    assert await refused(AuthConfig(), EC.sign(claims(ISSUER))) == "not_taken"


async def test_the_file_of_keys_is_read_again_when_it_changes(settings: AuthConfig, tmp_path: Path) -> None:
    tokens = AccessTokens(lambda: settings, RoleDirectory())
    assert await tokens.check(EC.sign(claims(ISSUER)))
    fresh = tmp_path / "fresh"
    fresh.write_text(json.dumps(jwks(OTHER)))
    fresh.chmod(0o644)
    fresh.rename(tmp_path / "jwks.json")
    assert await tokens.check(OTHER.sign(claims(ISSUER)))
    with pytest.raises(Rejected, match="unknown_key"):
        await tokens.check(EC.sign(claims(ISSUER)))


async def test_the_known_keys_stay_if_the_file_becomes_unreadable(settings: AuthConfig, tmp_path: Path) -> None:
    tokens = AccessTokens(lambda: settings, RoleDirectory())
    assert await tokens.check(EC.sign(claims(ISSUER)))
    (tmp_path / "jwks.json").write_text("{")
    assert await tokens.check(EC.sign(claims(ISSUER)))
    assert tokens.keys is not None
    assert tokens.keys.problem is not None
    with pytest.raises(PlatformError) as caught:  # the key may be new, so a 401 would be wrong
        await tokens.check(OTHER.sign(claims(ISSUER)))
    assert (caught.value.code, caught.value.details["retry_after"]) == ("identity_unavailable", 10)


def small_rsa() -> dict[str, Any]:
    return Key("small", rsa.generate_private_key(public_exponent=65537, key_size=1024), "RS256").jwk()  # noqa: S505 - for that


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"keys": {}}',
        '{"keys": []}',
        '{"keys": [7]}',
        "[" * 100_000,
        json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "ec"}]}),
        json.dumps({"keys": [EC.jwk() | {"use": "enc"}]}),
        json.dumps({"keys": [EC.jwk() | {"key_ops": ["encrypt"]}]}),
        json.dumps({"keys": [EC.jwk() | {"crv": "P-999"}]}),
        json.dumps({"keys": [EC.jwk() | {"x": "AAAA"}]}),
        json.dumps({"keys": [small_rsa()]}),
        json.dumps({"keys": [EC.jwk()] * (MAX_KEYS + 1)}),
        "x" * 300_000,
    ],
    ids=[
        "empty", "list", "no-keys", "keys-is-an-object", "empty-keys", "number", "deep-nesting", "symmetric",
        "for-encryption", "encrypt-only", "unknown-curve", "wrong-point", "small-rsa", "too-many", "too-large",
    ],
)  # fmt: skip
def test_a_file_without_a_usable_key_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"keys\.json"):
        read_jwks_file(path)


def test_only_the_public_half_of_a_private_key_is_kept() -> None:
    private = jwks(RSA, private=True)
    assert "d" in private["keys"][0]
    loaded = JwkSet(json.dumps(private).encode()).find("rsa", "RS256")
    assert loaded == RSA.private.public_key()


def test_a_file_that_others_could_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(jwks(EC)))
    path.chmod(0o664)
    with pytest.raises(ConfigError, match="can be written by users other than its owner"):
        read_jwks_file(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_jwks_file(tmp_path / "none")


async def test_a_missing_file_is_a_problem_and_not_a_wrong_token(tmp_path: Path) -> None:
    keys = FileKeys(tmp_path / "none")
    with pytest.raises(PlatformError, match="not available"):
        await keys.find("ec", "ES256", time.time())
    assert keys.known == 0


def test_each_subject_has_its_own_name() -> None:
    subjects = [
        "a",
        "a ",
        "a\n",
        "A",
        "ä",
        "a_",
        "token",
        "key:a",
        "x" * 96,
        "x" * 97,
        "x" * 98,
        "\x1b[2J",
        "\ud800",
        "a#1",
    ]
    names = [subject_name(subject) for subject in subjects]
    assert len(set(names)) == len(subjects)
    assert all(name.isascii() and name.isprintable() and len(name) <= 100 for name in names)
    assert all(name.startswith("sub:") for name in names)
    assert subject_name("auth0|5f7c8ec7c33c6c004bbafe82") == "sub:auth0|5f7c8ec7c33c6c004bbafe82"


def test_an_actor_keeps_its_limits_and_loses_permissions_its_token_lacks() -> None:
    access = Access(OPERATOR, networks=("10.0.0.0/24",), tools=("nmap*",), calls_per_minute=2)
    kept = bounded(access, frozenset({Permission.TOOLS_READ, Permission.ADMIN}))
    assert kept == Access(frozenset({Permission.TOOLS_READ}), ("10.0.0.0/24",), ("nmap*",), 2)
    assert bounded(access, frozenset()) == NOBODY


async def test_tokens_wait_while_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(jwks(Key.make("one"))))
    path.chmod(0o600)
    keys = FileKeys(path)
    found = await asyncio.gather(*(keys.find("one", "ES256", 0.0) for _ in range(8)))
    assert len(found) == 8, "no token may be refused while the file is read"
