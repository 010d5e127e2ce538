"""The sections ``security``, ``guard`` and ``audit``."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from mcp_server.config import checks
from mcp_server.config.base import RESTART, OptionalPath, Section, Strings, each
from mcp_server.config.sections.limits import GIB, MIB


class SecurityConfig(Section):
    """The scope and its enforcement. A key of this section takes precedence over keys for the same limit elsewhere."""

    section: ClassVar[str] = "security"

    allowed_targets: Annotated[Strings, each(checks.check_scope_entry)] = Field(
        ("RFC1918", ".lab.internal"),
        description="The scope: RFC1918, loopback, CIDRs (no host bits), name suffixes with a leading dot. "
        "Empty: no target is allowed.",
    )
    policy_file: OptionalPath = Field(
        None,
        description="Policy file (YAML) that defines the scope instead of allowed_targets: networks, names, "
        "exclusions, risk tiers, budgets, time windows, resolvers. It is an error to set both.",
    )
    allowed_checksums: OptionalPath = Field(
        None,
        description="File with SHA-256 sums of more scripts that may run, besides the reviewed ones (one "
        "'SHA256  PATH' per line, PATH in the program's data folder).",
    )
    guard: Literal["auto", "kernel", "rootless", "argument"] = Field(
        "auto",
        description="How the scope is enforced. kernel: every packet is filtered; root sets it up at the start. "
        "rootless: every packet is filtered, in a user namespace. argument: addresses are checked before a program is "
        "started, and raw sockets are not allowed. auto: the best of them that works here (kernel only if there is an "
        "unprivileged user to change to).",
        json_schema_extra=RESTART,
    )
    require_enforcement: Literal["argument", "rootless", "kernel"] = Field(
        "argument", description="The weakest enforcement under which a tool may run."
    )
    max_args_length: int = Field(
        2048,
        ge=1,
        le=10240,
        description="Longest extra_args in characters. If set, it takes precedence over limits.max_args_len.",
    )
    max_output_size: int = Field(
        MIB,
        ge=1024,
        le=10 * MIB,
        description="Bytes of standard output in a result. If set, it takes precedence over limits.max_stdout_bytes.",
    )
    timeout_seconds: int = Field(
        300,
        ge=1,
        le=3600,
        description="Seconds that a run may take. If set, it is the default and the ceiling of every run, and takes "
        "precedence over limits.default_timeout_sec and tool.default_timeout.",
    )
    concurrency_limit: int = Field(
        2,
        ge=1,
        le=100,
        description="Runs of one tool at the same time. If set, it is the default and the ceiling of every tool, and "
        "takes precedence over limits.default_concurrency and tool.default_concurrency.",
    )
    allow_intrusive: bool = Field(
        default=False, description="Allow flags, scripts and tools that may disturb their target."
    )


class GuardConfig(Section):
    """The packet guard: the network namespace that keeps tools inside the scope."""

    section: ClassVar[str] = "guard"

    user: Annotated[str, AfterValidator(checks.check_user)] = Field(
        "",
        description="Unprivileged user that the server changes to in the kernel tier. It must own the state folder. "
        "Empty: with --guard kernel the user mcp-network-tools.",
        json_schema_extra=RESTART,
    )
    loopback_user: Annotated[str, AfterValidator(checks.check_user)] = Field(
        "",
        description="User for scans of loopback targets. They run on the host's own loopback, and a firewall rule for "
        "this user keeps them there. It must not be the same as user. Empty: a user id that nobody has.",
    )
    mode: Literal["auto", "macvlan", "nat"] = Field(
        "auto",
        description="macvlan: tools have their own address on the uplink's segment, and ARP discovery works. nat: "
        "tools use the address of this host. auto: macvlan if addresses is set, or else nat.",
        json_schema_extra=RESTART,
    )
    uplink: Annotated[str, AfterValidator(checks.check_device)] = Field(
        "",
        description="Network device for outgoing packets. Empty: the device of the default route.",
        json_schema_extra=RESTART,
    )
    addresses: Annotated[Strings, each(checks.check_interface)] = Field(
        (),
        description="Addresses of the macvlan device with prefix length, such as 10.0.0.250/24; IPv4, IPv6 or both.",
        json_schema_extra=RESTART,
    )
    gateways: Annotated[Strings, each(checks.check_address)] = Field(
        (),
        description="Default gateways of the macvlan device, at most one for each IP version.",
        json_schema_extra=RESTART,
    )
    link_network: Annotated[str, AfterValidator(checks.check_link_network)] = Field(
        "198.18.77.0/30",
        description="IPv4 network of four addresses between the host and the namespace in nat mode.",
        json_schema_extra=RESTART,
    )


class AuditConfig(Section):
    """The audit log: how often a checkpoint is signed, where checkpoints are sent, and the size of a file."""

    section: ClassVar[str] = "audit"

    checkpoint_interval: int = Field(
        300, ge=1, le=86400, description="Seconds after which a signed checkpoint covers new records."
    )
    ship_to: Annotated[str, AfterValidator(checks.check_shipment)] = Field(
        "",
        description="Where checkpoints are sent besides the state folder: syslog, an absolute path, or empty for "
        "nowhere. Only a copy that this server cannot change reveals a truncated or rewritten log.",
    )
    max_file_size: int = Field(
        100 * MIB,
        ge=64 * 1024,
        le=GIB,
        description="Bytes after which a new audit file begins; the hash chain continues.",
    )
