"""The sections ``server`` and ``auth``: the HTTP interfaces and their callers."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from mcp_server.config import checks
from mcp_server.config.base import RESTART, OptionalPath, Section, Strings, each

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signature algorithms (RFC 7518, RFC 8037): only those with a private key, and never ``none``."""
_ANY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound


def _check_algorithm(name: str) -> str:
    if name not in ALGORITHMS:
        raise ValueError(f"{name!r} is not one of {', '.join(ALGORITHMS)}")
    return name


class ServerConfig(Section):
    """The address of the server, and the clients that may connect."""

    section: ClassVar[str] = "server"

    host: Annotated[str, AfterValidator(checks.check_bind_host)] = Field(
        "127.0.0.1",
        description="Address or name that the HTTP interfaces listen on. An address other than loopback needs "
        "auth=token.",
        json_schema_extra=RESTART,
    )
    port: int = Field(
        8080, ge=1, le=65535, description="TCP port that the HTTP interfaces listen on.", json_schema_extra=RESTART
    )
    transport: Literal["stdio", "http"] = Field(
        "stdio",
        description="Interface to open: stdio for a client that starts the server itself, or http.",
        json_schema_extra=RESTART,
    )
    max_connections: int = Field(
        100,
        ge=1,
        le=10000,
        description="HTTP requests of known callers at the same time, and half as many streams. A request over the "
        "limit gets 429.",
        json_schema_extra=RESTART,
    )
    shutdown_grace_period: int = Field(
        30, ge=0, le=300, description="Seconds that active calls have to finish when the server stops."
    )
    auth: Literal["token", "none"] = Field(
        "token",
        description="token: every HTTP interface needs a bearer credential (section auth). none: every caller has full "
        "access; allowed only if host is loopback.",
        json_schema_extra=RESTART,
    )
    tls_cert: OptionalPath = Field(
        None,
        description="PEM file of the server's certificate and the intermediate certificates. If set, the HTTP "
        "interfaces speak TLS 1.2 or later only. Needs tls_key.",
        json_schema_extra=RESTART,
    )
    tls_key: OptionalPath = Field(
        None,
        description="PEM file of the certificate's private key, without a passphrase, not readable for other users.",
        json_schema_extra=RESTART,
    )
    tls_client_ca: OptionalPath = Field(
        None,
        description="PEM file of certificate authorities. If set, a client needs a certificate signed by one of them, "
        "and a bearer credential. Needs tls_cert.",
        json_schema_extra=RESTART,
    )
    allowed_hosts: Annotated[Strings, each(checks.check_authority)] = Field(
        (),
        description="Exact Host header values that the HTTP interfaces accept. Empty: derived from host and port.",
        json_schema_extra=RESTART,
    )
    allowed_origins: Annotated[Strings, each(checks.check_origin)] = Field(
        (),
        description="Exact Origin header values that the HTTP interfaces accept. Empty: derived from host and port.",
        json_schema_extra=RESTART,
    )
    watch_config: bool = Field(
        default=True, description="Read the configuration and policy files again when they change."
    )
    answer_text: Literal["short", "full"] = Field(
        "short", description="How much text an MCP result has besides its structured content."
    )

    @model_validator(mode="after")
    def _no_authentication_on_loopback_only(self) -> Self:
        if self.auth == "none" and not checks.is_loopback(self.host):
            raise ValueError(
                f"server.auth 'none' is not allowed with server.host {self.host!r}, which is not a loopback address"
            )
        return self

    @model_validator(mode="after")
    def _tls_is_complete(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("server.tls_cert and server.tls_key go together, and one of them is not set")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("server.tls_client_ca needs server.tls_cert, because client certificates are part of TLS")
        return self

    @property
    def scheme(self) -> Literal["http", "https"]:
        """The URL scheme of the HTTP interfaces."""
        return "http" if self.tls_cert is None else "https"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The exact Host values to accept: ``allowed_hosts``, or the names of the bound address if that is empty.

        For a wildcard address only the loopback names are derived, and the operator lists the others.
        """
        if self.allowed_hosts:
            return self.allowed_hosts
        any_address = self.host in _ANY_ADDRESS
        loopback = any_address or checks.is_loopback(self.host)
        names = dict.fromkeys(("127.0.0.1", "localhost", "[::1]")) if loopback else {}
        if not any_address:
            names[f"[{self.host}]" if ":" in self.host else self.host.lower()] = None
        # Clients omit the port in Host if it is the default of the scheme (RFC 9110, section 7.2).
        bare = tuple(names) if self.port == {"http": 80, "https": 443}[self.scheme] else ()
        return (*(f"{name}:{self.port}" for name in names), *bare)

    @property
    def origins(self) -> tuple[str, ...]:
        """The exact Origin values to accept: ``allowed_origins``, or the scheme with each of ``hosts``."""
        return self.allowed_origins or tuple(f"{self.scheme}://{host}" for host in self.hosts)


class AuthConfig(Section):
    """Credentials that the HTTP interfaces accept if server.auth is token."""

    section: ClassVar[str] = "auth"

    local_token: bool = Field(
        default=True,
        description="Accept the token in the state folder. A user who can read its file has full access.",
    )
    issuer: Annotated[str, AfterValidator(checks.check_issuer)] = Field(
        "",
        description="Issuer of OAuth access tokens, exactly as in their claim iss. Empty: no tokens are accepted. "
        "Needs audience, and jwks_url or jwks_file.",
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
        description="Claim of an access token with the actor's role (viewer, operator, admin), as a text or a list; "
        "the highest role counts. Dots select members of nested objects. Empty: default_role for all.",
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
