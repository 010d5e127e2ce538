"""The sections of the configuration. ``Field(description=…)`` is the only documentation of a key.

`docs/configuration.md` is written from these models. Keys marked `RESTART` are read when the server starts, every other
one by whoever uses it, each time. Keys marked `LATER` are accepted, checked and shown, and loading warns that nothing
reads them yet.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mcp_server.config import checks
from mcp_server.config.base import LATER, RESTART, OptionalPath, Section, Words, each

MIB = 1024 * 1024
GIB = 1024 * MIB


def _any_case(*words: str) -> BeforeValidator:
    by_folded = {word.lower(): word for word in words}
    return BeforeValidator(lambda value: by_folded.get(value.lower(), value) if isinstance(value, str) else value)


class ServerConfig(Section):
    """Where the server listens and who may knock."""

    section: ClassVar[str] = "server"

    host: Annotated[str, AfterValidator(checks.check_bind_host)] = Field(
        "127.0.0.1",
        description="Address or name the HTTP interfaces listen on. Any address but loopback needs auth=token.",
        json_schema_extra=RESTART,
    )
    port: int = Field(
        8080, ge=1, le=65535, description="TCP port the HTTP interfaces listen on.", json_schema_extra=RESTART
    )
    transport: Literal["stdio", "http"] = Field(
        "stdio",
        description="Interface to open: stdio for a client that starts the server itself, or http.",
        json_schema_extra=RESTART,
    )
    workers: int = Field(1, ge=1, le=16, description="Server processes.", json_schema_extra=LATER)
    max_connections: int = Field(
        100,
        ge=1,
        le=10000,
        description="HTTP requests of known callers under way at once, and half as many streams; one over it gets 429.",
        json_schema_extra=RESTART,
    )
    shutdown_grace_period: int = Field(
        30, ge=0, le=300, description="Seconds that running calls get to end when the server stops."
    )
    auth: Literal["token", "none"] = Field(
        "token",
        description="token: every HTTP interface asks for a bearer credential (section auth). none: refused unless host is "
        "loopback; whoever asks is the owner.",
        json_schema_extra=RESTART,
    )
    tls_cert: OptionalPath = Field(
        None,
        description="PEM file of the server's certificate, and those between it and its root. Set: the HTTP interfaces "
        "speak TLS 1.2 or later only. Needs tls_key.",
        json_schema_extra=RESTART,
    )
    tls_key: OptionalPath = Field(
        None,
        description="PEM file of the certificate's private key, without a passphrase, closed to other users.",
        json_schema_extra=RESTART,
    )
    tls_client_ca: OptionalPath = Field(
        None,
        description="PEM file of certificates; a client needs one that these signed, besides its bearer credential. "
        "Needs tls_cert.",
        json_schema_extra=RESTART,
    )
    allowed_hosts: Annotated[Words, each(checks.check_authority)] = Field(
        (),
        description="Exact Host header values the HTTP interfaces accept. Empty: derived from host and port.",
        json_schema_extra=RESTART,
    )
    allowed_origins: Annotated[Words, each(checks.check_origin)] = Field(
        (),
        description="Exact Origin header values the HTTP interfaces accept. Empty: derived from host and port.",
        json_schema_extra=RESTART,
    )
    watch_config: bool = Field(
        default=True, description="Read the configuration and policy files again when they change."
    )
    answer_text: Literal["short", "full"] = Field(
        "short", description="How much text goes with the structured content of an MCP answer."
    )

    @model_validator(mode="after")
    def _unauthenticated_stays_local(self) -> Self:
        if self.auth == "none" and not checks.is_loopback(self.host):
            raise ValueError(
                f"server.auth 'none' is refused with server.host {self.host!r}, which is not a loopback address"
            )
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("server.tls_cert and server.tls_key go together: one of them is not set")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("server.tls_client_ca needs server.tls_cert: clients show certificates in TLS only")
        return self

    @property
    def scheme(self) -> Literal["http", "https"]:
        """What the HTTP interfaces speak."""
        return "http" if self.tls_cert is None else "https"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The exact Host values to accept: ``allowed_hosts``, or else the names of the bound address.

        A wildcard address has no name of its own: there only loopback is derived, and the owner lists the rest.
        """
        if self.allowed_hosts:
            return self.allowed_hosts
        if checks.is_loopback(self.host) or self.host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
            names = dict.fromkeys(("127.0.0.1", "localhost", "[::1]"))
        else:
            names = {}
        if self.host not in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
            names[f"[{self.host}]" if ":" in self.host else self.host.lower()] = None
        # Clients leave the port out of Host where it is the scheme's own (RFC 9110, section 7.2).
        bare = tuple(names) if self.port == {"http": 80, "https": 443}[self.scheme] else ()
        return (*(f"{name}:{self.port}" for name in names), *bare)

    @property
    def origins(self) -> tuple[str, ...]:
        """The exact Origin values to accept: ``allowed_origins``, or else the scheme before each derived host."""
        return self.allowed_origins or tuple(f"{self.scheme}://{host}" for host in self.hosts)


class SecurityConfig(Section):
    """The line the owner draws. A key set here wins over its namesake in ``limits`` and ``tool``, whoever set that."""

    section: ClassVar[str] = "security"

    allowed_targets: Annotated[Words, each(checks.check_scope_entry)] = Field(
        ("RFC1918", ".lab.internal"),
        description="The scope: RFC1918, loopback, CIDRs (no host bits), name suffixes with a leading dot. "
        "Empty: nothing may be touched.",
    )
    policy_file: OptionalPath = Field(
        None,
        description="Policy file (YAML) that draws the scope in place of allowed_targets: networks, names, exclusions, "
        "risk tiers, budgets, time windows, resolvers. Both set is an error.",
    )
    allowed_checksums: OptionalPath = Field(
        None,
        description="File of further SHA-256 sums ('SHA256  PATH' a line, PATH in the program's data folder) of "
        "scripts that may run besides the reviewed ones.",
    )
    guard: Literal["auto", "kernel", "rootless", "argument"] = Field(
        "auto",
        description="How the scope is enforced. kernel: every frame, set up by root at the start. rootless: every "
        "frame, in a user namespace. argument: addresses are checked before a spawn, and raw sockets are off. auto: "
        "the best that works here (kernel only where there is a user to become).",
        json_schema_extra=RESTART,
    )
    require_enforcement: Literal["argument", "rootless", "kernel"] = Field(
        "argument", description="The weakest enforcement under which anything may run."
    )
    max_args_length: int = Field(
        2048,
        ge=1,
        le=10240,
        description="Longest extra_args in characters. Set here, it wins over limits.max_args_len.",
    )
    max_output_size: int = Field(
        MIB,
        ge=1024,
        le=10 * MIB,
        description="Bytes of standard output shown with a result. Set here, it wins over limits.max_stdout_bytes.",
    )
    timeout_seconds: int = Field(
        300,
        ge=1,
        le=3600,
        description="Seconds a run may take. Set here, it is the default and the ceiling of every run, and wins over "
        "limits.default_timeout_sec and tool.default_timeout.",
    )
    concurrency_limit: int = Field(
        2,
        ge=1,
        le=100,
        description="Runs of one tool at the same time. Set here, it is the default and the ceiling of every tool, and "
        "wins over limits.default_concurrency and tool.default_concurrency.",
    )
    allow_intrusive: bool = Field(
        default=False, description="Allow flags, scripts and tools that may disturb their target."
    )


class GuardConfig(Section):
    """The network namespace that holds tools inside the scope."""

    section: ClassVar[str] = "guard"

    user: Annotated[str, AfterValidator(checks.check_user)] = Field(
        "",
        description="Unprivileged user the server becomes in the kernel tier; it must own the state folder. Empty: "
        "with --guard kernel the user mcp-network-tools.",
        json_schema_extra=RESTART,
    )
    loopback_user: Annotated[str, AfterValidator(checks.check_user)] = Field(
        "",
        description="User under which loopback targets are looked at, on the host's own loopback, held there by a "
        "firewall rule for this user; not the same as user. Empty: a user id that nobody has.",
    )
    mode: Literal["auto", "macvlan", "nat"] = Field(
        "auto",
        description="macvlan: an address of its own on the uplink's segment; ARP discovery works. nat: behind this "
        "host's address. auto: macvlan where addresses are given, else nat.",
        json_schema_extra=RESTART,
    )
    uplink: Annotated[str, AfterValidator(checks.check_device)] = Field(
        "",
        description="Network device packets leave by. Empty: the one of the default route.",
        json_schema_extra=RESTART,
    )
    addresses: Annotated[Words, each(checks.check_interface)] = Field(
        (),
        description="Addresses with prefix length of the macvlan device, as 10.0.0.250/24; IPv4, IPv6 or both.",
        json_schema_extra=RESTART,
    )
    gateways: Annotated[Words, each(checks.check_address)] = Field(
        (),
        description="Default gateways of the macvlan device, one for each IP version at most.",
        json_schema_extra=RESTART,
    )
    link_network: Annotated[str, AfterValidator(checks.check_link_network)] = Field(
        "198.18.77.0/30",
        description="IPv4 network of four addresses between host and namespace in nat mode.",
        json_schema_extra=RESTART,
    )


class AuditConfig(Section):
    """The audit log: how often it is sealed, where the seals go, and when a file is full."""

    section: ClassVar[str] = "audit"

    checkpoint_interval: int = Field(
        300, ge=1, le=86400, description="Seconds after which new records are sealed by a signed checkpoint."
    )
    ship_to: Annotated[str, AfterValidator(checks.check_shipment)] = Field(
        "",
        description="Where checkpoints are sent besides the state folder: syslog, an absolute path, or empty for "
        "nowhere. Only a copy that this server cannot change shows a truncated or rewritten log.",
    )
    max_file_size: int = Field(
        100 * MIB, ge=64 * 1024, le=GIB, description="Bytes after which a new audit file is begun; the chain goes on."
    )


class CircuitBreakerConfig(Section):
    """When a failing tool is left alone for a while."""

    section: ClassVar[str] = "circuit_breaker"

    failure_threshold: int = Field(5, ge=1, le=100, description="Failures in a row that open the breaker.")
    recovery_timeout: int = Field(60, ge=1, le=600, description="Seconds until an open breaker lets one call through.")
    half_open_success_threshold: int = Field(1, ge=1, le=10, description="Successes that close a half-open breaker.")


class AdmissionConfig(Section):
    """How many runs go on at once, and how many calls wait; the cap of each tool is its own."""

    section: ClassVar[str] = "admission"

    max_running: int = Field(16, ge=1, le=1000, description="Runs at the same time, over all tools.")
    per_actor: int = Field(8, ge=1, le=1000, description="Runs of one caller at the same time.")
    per_host: int = Field(
        1, ge=1, le=100, description="Runs that look at the same address at the same time, whoever asked for them."
    )
    max_waiting: int = Field(64, ge=0, le=10000, description="Calls of one tool that wait; one over it is refused.")


class RateLimitConfig(Section):
    """How often tools may be called; packets have their rates in the policy file."""

    section: ClassVar[str] = "rate_limit"

    calls_per_minute: int = Field(
        10, ge=0, le=100000, description="Calls of one tool by one caller within a minute. 0: no limit."
    )
    total_calls_per_minute: int = Field(
        600, ge=0, le=1000000, description="Calls of all tools by all callers within a minute. 0: no limit."
    )
    storage_url: Annotated[str, AfterValidator(checks.check_rate_storage)] = Field(
        "",
        description="Where calls are counted: a redis:// or rediss:// URL that several servers share, or empty for "
        "this process's memory.",
    )


class TracingConfig(Section):
    """Where spans of calls are sent; nothing is recorded without an endpoint."""

    section: ClassVar[str] = "tracing"

    endpoint: Annotated[str, AfterValidator(checks.check_http_url)] = Field(
        "",
        description="Base URL of an OTLP/HTTP collector, as http://127.0.0.1:4318. Empty: no spans. Needs the extra "
        "'tracing'.",
        json_schema_extra={"env": ["OTEL_EXPORTER_OTLP_ENDPOINT"]},
    )
    sample_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of traces begun here that is recorded; a caller's own decision wins."
    )


class HealthConfig(Section):
    """What is looked at, and when it counts as too much."""

    section: ClassVar[str] = "health"

    check_interval: int = Field(30, ge=5, le=300, description="Seconds between health checks.")
    cpu_threshold: float = Field(80.0, ge=0, le=100, description="Per cent of CPU in use that degrades health.")
    memory_threshold: float = Field(80.0, ge=0, le=100, description="Per cent of memory in use that degrades health.")
    disk_threshold: float = Field(
        80.0,
        ge=0,
        le=100,
        description="Per cent of the state disk in use that degrades health.",
    )
    timeout: int = Field(10, ge=1, le=60, description="Seconds one check may take.")
    dependencies: Words = Field((), description="Python modules that must be importable.")


class MetricsConfig(Section):
    """What is counted and where it can be read."""

    section: ClassVar[str] = "metrics"

    enabled: bool = Field(default=True, description="Collect metrics.")
    prometheus_enabled: bool = Field(default=True, description="Offer the metrics in Prometheus' text format.")
    prometheus_port: int = Field(
        9090,
        ge=1,
        le=65535,
        description="TCP port of the metrics page over stdio.",
    )
    collection_interval: int = Field(15, ge=5, le=300, description="Seconds between readings of the process's own use.")


class LoggingConfig(Section):
    """What is logged and where; standard output never holds a log line."""

    section: ClassVar[str] = "logging"

    level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        _any_case("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    ] = Field(
        "INFO", description="Least severity that is logged; either case.", json_schema_extra={"env": ["LOG_LEVEL"]}
    )
    format: Annotated[Literal["json", "console"], _any_case("json", "console")] = Field(
        "json",
        description="json: one object a line. console: for people. Either case.",
        json_schema_extra={"env": ["LOG_FORMAT"]},
    )
    file_path: OptionalPath = Field(
        None, description="File that is written beside standard error. Empty: standard error only."
    )
    max_file_size: int = Field(
        10 * MIB, ge=1024, le=100 * MIB, description="Bytes after which the log file is rotated."
    )
    backup_count: int = Field(5, ge=0, le=100, description="Rotated log files that are kept.")


class ToolConfig(Section):
    """Which tools are offered, and what those without numbers of their own get."""

    section: ClassVar[str] = "tool"

    include_patterns: Words = Field(
        ("*",),
        description="Shell patterns of tool names that are offered. Empty: none.",
        json_schema_extra={"env": ["TOOL_INCLUDE"]},
    )
    exclude_patterns: Words = Field(
        (),
        description="Shell patterns of tool names that are left out; wins over include_patterns.",
        json_schema_extra={"env": ["TOOL_EXCLUDE"]},
    )
    packages: Annotated[Words, each(checks.check_module)] = Field(
        (),
        description="Python packages searched for tools beside the built-in ones.",
        json_schema_extra={"env": ["TOOLS_PACKAGE"]},
    )
    default_timeout: int = Field(
        300,
        ge=1,
        le=3600,
        description="Seconds for tools that name none. limits.default_timeout_sec and security.timeout_seconds win.",
    )
    default_concurrency: int = Field(
        2,
        ge=1,
        le=100,
        description="Runs at the same time for tools that name no number. limits.default_concurrency and "
        "security.concurrency_limit win.",
    )


class DatabaseConfig(Section):
    """Where runs and observations are remembered."""

    section: ClassVar[str] = "database"

    url: Annotated[str | None, AfterValidator(checks.check_database_url)] = Field(
        None,
        description="SQLAlchemy URL of the store (sqlite or postgresql). Empty: SQLite in the state folder.",
        json_schema_extra=RESTART,
    )
    pool_size: int = Field(10, ge=1, le=100, description="Connections kept open (Postgres).", json_schema_extra=RESTART)
    max_overflow: int = Field(
        20, ge=0, le=100, description="Further connections under load (Postgres).", json_schema_extra=RESTART
    )
    pool_timeout: int = Field(
        30, ge=1, le=300, description="Seconds to wait for a connection (Postgres).", json_schema_extra=RESTART
    )
    pool_recycle: int = Field(
        3600,
        ge=60,
        le=7200,
        description="Seconds after which a connection is replaced (Postgres).",
        json_schema_extra=RESTART,
    )


class LimitsConfig(Section):
    """Bounds of one run. A namesake that is set in ``security`` wins over these."""

    section: ClassVar[str] = "limits"

    max_args_len: int = Field(
        2048,
        ge=1,
        le=10240,
        description="Longest extra_args in characters, unless security.max_args_length is set.",
        json_schema_extra={"env": ["MCP_MAX_ARGS_LEN"]},
    )
    max_stdout_bytes: int = Field(
        MIB,
        ge=1024,
        le=10 * MIB,
        description="Bytes of standard output shown with a result, unless security.max_output_size is set.",
        json_schema_extra={"env": ["MCP_MAX_STDOUT_BYTES"]},
    )
    max_stderr_bytes: int = Field(
        256 * 1024,
        ge=1024,
        le=10 * MIB,
        description="Bytes of standard error kept with a run.",
        json_schema_extra={"env": ["MCP_MAX_STDERR_BYTES"]},
    )
    default_timeout_sec: int = Field(
        300,
        ge=1,
        le=3600,
        description="Seconds for tools that name none, unless security.timeout_seconds is set; wins over "
        "tool.default_timeout.",
        json_schema_extra={"env": ["MCP_DEFAULT_TIMEOUT_SEC"]},
    )
    default_concurrency: int = Field(
        2,
        ge=1,
        le=100,
        description="Runs at the same time for tools that name no number, unless security.concurrency_limit is set; "
        "wins over tool.default_concurrency.",
        json_schema_extra={"env": ["MCP_DEFAULT_CONCURRENCY"]},
    )
    max_memory_mb: int = Field(
        512,
        ge=32,
        le=65536,
        description="MiB of address space one process of a tool may use.",
        json_schema_extra={"env": ["MCP_MAX_MEMORY_MB"]},
    )
    max_file_descriptors: int = Field(
        256,
        ge=16,
        le=65536,
        description="Files and sockets one process of a tool may hold open.",
        json_schema_extra={"env": ["MCP_MAX_FILE_DESCRIPTORS"]},
    )
    max_raw_bytes: int = Field(
        GIB,
        ge=MIB,
        le=16 * GIB,
        description="Bytes of raw output kept per run, before compression.",
        json_schema_extra={"env": ["MCP_MAX_RAW_BYTES"]},
    )
