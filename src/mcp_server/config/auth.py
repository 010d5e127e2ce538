"""The section ``auth``: which credentials the HTTP interfaces take, and what they are held against."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from mcp_server.config import checks
from mcp_server.config.base import OptionalPath, Section, Words, each

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures an access token may have (RFC 7518, RFC 8037): none that a public key could forge, and never ``none``."""


def _check_algorithm(name: str) -> str:
    if name not in ALGORITHMS:
        raise ValueError(f"{name!r} is not one of {', '.join(ALGORITHMS)}")
    return name


class AuthConfig(Section):
    """Which credentials the HTTP interfaces take where server.auth is token."""

    section: ClassVar[str] = "auth"

    local_token: bool = Field(
        default=True, description="Take the token of the state folder; whoever can read its file is the owner."
    )
    issuer: Annotated[str, AfterValidator(checks.check_issuer)] = Field(
        "",
        description="Issuer of OAuth access tokens, exactly as their iss says it. Empty: none are taken. Needs "
        "audience, and jwks_url or jwks_file.",
    )
    audience: Annotated[str, AfterValidator(checks.check_http_url)] = Field(
        "",
        description="This server's own URL as clients know it, as https://scan.example.com/mcp; the aud of its tokens.",
    )
    jwks_url: Annotated[str, AfterValidator(checks.check_jwks_url)] = Field(
        "", description="URL of the issuer's keys (JWK Set): https, or http on loopback."
    )
    jwks_file: OptionalPath = Field(
        None,
        description="File of the issuer's keys (JWK Set), read again when it changes: for a server whose scope does "
        "not hold the issuer.",
    )
    algorithms: Annotated[Words, Field(min_length=1), each(_check_algorithm)] = Field(
        ("RS256", "PS256", "ES256", "EdDSA"),
        description=f"Signatures that are taken, of {', '.join(ALGORITHMS)}.",
    )
    clock_skew_sec: int = Field(
        30, ge=0, le=300, description="Seconds by which the issuer's clock may differ from this machine's."
    )
    role_claim: str = Field(
        "",
        description="Claim of an access token that names the actor's role (viewer, operator, admin), as a word or a "
        "list of which the highest counts; dots lead into objects. Empty: default_role for all.",
    )
    default_role: Literal["none", "viewer", "operator", "admin"] = Field(
        "viewer", description="Role of an access token that names none. none: such a token is refused."
    )
    actors_file: OptionalPath = Field(
        None,
        description="Actors file (YAML) that bounds single actors: role, networks, tools, calls, packets. Whoever is "
        "not in it may do nothing, unless it says so; the holder of the local token is the owner.",
    )
    lockout_failures: int = Field(
        10,
        ge=0,
        le=10000,
        description="Wrong credentials from one address (IPv6: one /64), or for one API key, within lockout_sec after "
        "which new ones get 429. 0: no lock-out.",
    )
    lockout_sec: int = Field(60, ge=1, le=3600, description="Seconds that a lock-out lasts, and that failures count.")

    @model_validator(mode="after")
    def _issuer_is_whole(self) -> Self:
        if not self.issuer:
            return self
        if not self.audience:
            raise ValueError("auth.issuer needs auth.audience: a token meant for another server must not do here")
        if bool(self.jwks_url) == (self.jwks_file is not None):
            raise ValueError("auth.issuer needs auth.jwks_url or auth.jwks_file, and not both")
        return self
