"""The section ``auth``."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from mcp_server.config import checks
from mcp_server.config.base import OptionalPath, Section, Strings, each

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signature algorithms (RFC 7518, RFC 8037): only those with a private key, and never ``none``."""


def _check_algorithm(name: str) -> str:
    if name not in ALGORITHMS:
        raise ValueError(f"{name!r} is not one of {', '.join(ALGORITHMS)}")
    return name


class AuthConfig(Section):
    """Credentials that the HTTP interfaces accept if server.auth is token."""

    section: ClassVar[str] = "auth"

    local_token: bool = Field(
        default=True,
        description="Accept the token in the state folder. A user who can read its file has full access.",
    )
    issuer: Annotated[str, AfterValidator(checks.check_issuer)] = Field(
        "",
        description="Issuer of OAuth access tokens, exactly as in their claim iss. Empty: no tokens are accepted. Needs "
        "audience, and jwks_url or jwks_file.",
    )
    audience: Annotated[str, AfterValidator(checks.check_http_url)] = Field(
        "",
        description="URL of this server as clients know it, such as https://scan.example.com/mcp; the claim aud of "
        "its tokens.",
    )
    jwks_url: Annotated[str, AfterValidator(checks.check_jwks_url)] = Field(
        "", description="URL of the issuer's keys (JWK Set): https, or http on loopback."
    )
    jwks_file: OptionalPath = Field(
        None,
        description="File of the issuer's keys (JWK Set), read again when it changes. For a server that cannot reach "
        "the issuer.",
    )
    algorithms: Annotated[Strings, Field(min_length=1), each(_check_algorithm)] = Field(
        ("RS256", "PS256", "ES256", "EdDSA"),
        description=f"Signature algorithms that are accepted, out of {', '.join(ALGORITHMS)}.",
    )
    clock_skew_sec: int = Field(
        30, ge=0, le=300, description="Seconds that the clocks of the issuer and of this machine may differ."
    )
    role_claim: str = Field(
        "",
        description="Claim of an access token with the actor's role (viewer, operator, admin), as a text or a list; the "
        "highest role counts. Dots select members of nested objects. Empty: default_role for all.",
    )
    default_role: Literal["none", "viewer", "operator", "admin"] = Field(
        "viewer", description="Role of an access token without a role. none: the token is refused."
    )
    actors_file: OptionalPath = Field(
        None,
        description="Actors file (YAML) with limits for single actors: role, networks, tools, calls, packets. An actor "
        "that is not in the file may do nothing, unless the file has 'others'. The local token has no limits.",
    )
    lockout_failures: int = Field(
        10,
        ge=0,
        le=10000,
        description="Wrong credentials from one address (IPv6: one /64), or for one API key, within lockout_sec. After "
        "them, new credentials get 429. 0: no lock-out.",
    )
    lockout_sec: int = Field(
        60, ge=1, le=3600, description="Seconds that a lock-out lasts, and for which failures count."
    )

    @model_validator(mode="after")
    def _issuer_is_complete(self) -> Self:
        if not self.issuer:
            return self
        if not self.audience:
            raise ValueError("auth.issuer needs auth.audience, so that tokens for other servers are refused")
        if bool(self.jwks_url) == (self.jwks_file is not None):
            raise ValueError("auth.issuer needs either auth.jwks_url or auth.jwks_file, and not both")
        return self
