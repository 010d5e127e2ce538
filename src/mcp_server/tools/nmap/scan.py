"""One nmap scan as a typed value, resolved from the parameters, flags and template of a call, and the defaults.

Values that the caller wrote override the template, and the template overrides the defaults. If two values of the caller
contradict each other, the call is refused and the message names both. A template value that does not apply is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from mcp_server.errors import AccessError, ArgumentError
from mcp_server.tools.flags import Setting
from mcp_server.tools.nmap.flags import FAST_PORTS, FLAGS, PAIRS
from mcp_server.tools.nmap.ports import ALL_PORTS, PortSet
from mcp_server.tools.nmap.script_args import ScriptArgs, unread
from mcp_server.tools.nmap.scripts import CATEGORIES, INTRUSIVE_NAMES

DEFAULT_MODE: Final = "services"
DEFAULT_TIMING: Final = 3
DEFAULT_PORTS: Final = PortSet(top=1000)
DEFAULT_UDP_PORTS: Final = FAST_PORTS
"""Closed UDP ports answer about once a second (ICMP rate limits), so 1000 of them take a quarter of an hour."""
INTRUSIVE_TIMING: Final = 5

TEMPLATES: Final[dict[str, dict[str, Any]]] = {
    "quick": {"mode": "ports", "ports": FAST_PORTS, "timing": 4},
    "standard": {"mode": "services", "ports": DEFAULT_PORTS, "timing": 3},
    "thorough": {"mode": "services", "ports": ALL_PORTS, "timing": 4, "version_intensity": 9},
    "discovery": {"mode": "discover", "timing": 4},
    "version": {"mode": "services", "ports": FAST_PORTS, "timing": 4, "version_intensity": 9},
    "script": {"mode": "scripts", "ports": DEFAULT_PORTS, "timing": 4},
}
"""The fields that each template sets."""

_PORT_SCAN_FIELDS: Final = (
    "ports",
    "transport",
    "tcp",
    "udp",
    "services",
    "os",
    "scripts",
    "script_args",
    "aggressive",
    "in_order",
    "version_intensity",
    "osscan_limit",
    "osscan_guess",
)
_TUNING: Final = {
    "in_order",
    "max_retries",
    "min_rate",
    "max_rate",
    "scan_delay",
    "max_scan_delay",
    "initial_rtt",
    "max_rtt",
    "osscan_limit",
    "osscan_guess",
    "reason",
}
"""Fields that are passed to nmap unchanged. Each has exactly one flag."""


@dataclass(frozen=True, slots=True)
class ScanParameter:
    """A value for one field of a scan, and how the caller wrote it."""

    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Scan:
    """One nmap scan. Times are in milliseconds. ``ports`` is None if the scan only searches hosts.

    ``tcp`` is ``syn``, ``connect``, ``default`` (syn if raw sockets are available, else connect), or None for UDP only.
    ``raw_source`` is the caller's text that needs raw sockets, or empty. ``host_timeout`` and ``max_hostgroup`` are
    None if the tool chooses them. ``max_rate`` (packets a second) and ``max_parallelism`` are limits of the operator.
    """

    mode: str
    tcp: str | None
    udp: bool
    ports: PortSet | None
    services: bool
    os: bool
    scripts: tuple[str, ...]
    ping: bool
    timing: int
    ipv6: bool
    intrusive: bool
    version_intensity: int | None
    host_timeout: int | None
    max_hostgroup: int | None
    tuning: tuple[Setting, ...]
    script_args: ScriptArgs = ()
    raw_source: str = ""
    max_rate: float | None = None
    max_parallelism: int | None = None

    @property
    def transports(self) -> tuple[tuple[str, str], ...]:
        """The transports tested, each with nmap's word for the method: ``(("tcp", "syn"), ("udp", "udp"))``."""
        if self.ports is None:
            return ()
        return (*((("tcp", self.tcp),) if self.tcp else ()), *((("udp", "udp"),) if self.udp else ()))

    @property
    def needs_raw_sockets(self) -> bool:
        """Whether nmap can run this scan only with raw sockets."""
        return self.tcp == "syn" or self.udp or self.os

    @property
    def has_detail(self) -> bool:
        """Whether services, operating systems or scripts are examined after the port scan."""
        return self.services or self.os or bool(self.scripts)


def resolve(
    parameters: Mapping[str, Any], template: str | None, settings: tuple[Setting, ...], *, allow_intrusive: bool
) -> Scan:
    """Resolve a call into a `Scan`.

    ``parameters`` holds the typed parameters that the caller wrote, by field of a scan, in the types of a scan. Raises
    ArgumentError if two values clash, AccessError ``intrusive_not_allowed`` if the operator does not allow the scan.
    """
    given = _collect(parameters, settings)
    preset = TEMPLATES[template] if template else {}
    default_mode = preset.get("mode") or ("scripts" if "scripts" in given else DEFAULT_MODE)
    default_source = f"template='{template}'" if template else f"mode='{default_mode}'"
    mode = given.get("mode") or ScanParameter(default_mode, default_source)
    _check_mode(mode, given)
    aggressive = "aggressive" in given
    services = "services" in given or aggressive or mode.value in {"services", "scripts"}
    os = "os" in given or aggressive or mode.value == "os"
    _check_needs(given, services=services, os=os)
    tcp, udp = (None, False) if mode.value == "discover" else _methods(given)
    scripts: tuple[str, ...] = ()
    if "scripts" in given:
        scripts = given["scripts"].value
    elif aggressive or mode.value == "scripts":
        scripts = tuple(sorted(CATEGORIES["default"]))
    script_args: ScriptArgs = _value(given, "script_args", default=())
    if unread_arg := unread(script_args, scripts):
        raise ArgumentError(
            f"No script of this call reads the argument {unread_arg} in script_args.",
            hint="Add a script that reads the argument to scripts, or remove the argument.",
            parameter="script_args",
        )
    scan = Scan(
        mode=mode.value,
        tcp=tcp,
        udp=udp,
        ports=None if mode.value == "discover" else _ports(given, preset, udp=udp),
        services=services,
        os=os,
        scripts=scripts,
        ping=_value(given, "ping", default=True),
        timing=_value(given, "timing", default=preset.get("timing", DEFAULT_TIMING)),
        ipv6=_value(given, "ipv6", default=False),
        intrusive=aggressive,
        version_intensity=_value(
            given, "version_intensity", default=preset.get("version_intensity") if services else None
        ),
        host_timeout=_value(given, "host_timeout"),
        max_hostgroup=_value(given, "max_hostgroup"),
        tuning=tuple(
            Setting(flag, given[flag.field].value if flag.value else None)
            for flag in FLAGS
            if flag.field in given and flag.field in _TUNING
        ),
        script_args=script_args,
    )
    scan = _with_intrusiveness(scan, allow_intrusive=allow_intrusive)
    return replace(scan, raw_source=_raw_source(scan, given)) if scan.needs_raw_sockets else scan


def _value(given: Mapping[str, ScanParameter], field: str, default: Any = None) -> Any:
    return given[field].value if field in given else default


def _collect(parameters: Mapping[str, Any], settings: tuple[Setting, ...]) -> dict[str, ScanParameter]:
    given = {field: ScanParameter(value, _parameter_source(field, value)) for field, value in parameters.items()}
    for setting in settings:
        field = setting.flag.field
        if field is None:
            raise ArgumentError(f"{setting.flag.name} sets no field of a scan.", code="argument_not_allowed")
        new = ScanParameter(setting.given, " ".join(setting.words()))
        if field in given and given[field].value != new.value:
            _clash(given[field], new)
        given.setdefault(field, new)
    for low, high in PAIRS:
        if low in given and high in given and given[low].value > given[high].value:
            _clash(given[low], given[high], hint="The first value must not be more than the second.")
    return given


def _parameter_source(field: str, value: Any) -> str:
    """Return a typed parameter in the form that messages use."""
    if field == "host_timeout":
        return f"host_timeout_sec={value // 1000}"
    if isinstance(value, PortSet):
        return f"ports='{value.spec[:60]}'"
    if field == "script_args":
        return f"script_args={','.join(name for name, _ in value[:3])}"
    if field == "scripts":
        return f"scripts={','.join(value[:3])}{',…' if len(value) > 3 else ''}"
    return f"{field}={value!r}"


def _clash(first: ScanParameter, second: ScanParameter, hint: str = "Remove one of the two.") -> NoReturn:
    raise ArgumentError(
        f"{first.source} and {second.source} contradict each other.",
        hint=hint,
        parameters=[first.source, second.source],
    )


def _check_mode(mode: ScanParameter, given: Mapping[str, ScanParameter]) -> None:
    """Refuse parameters of a port scan in mode discover. In every other mode flags may be added."""
    if mode.value != "discover":
        return
    for field in _PORT_SCAN_FIELDS:
        if field in given:
            _clash(
                mode,
                given[field],
                hint=f"Mode discover tests no ports. Choose a different mode, or remove {given[field].source}.",
            )
    if not _value(given, "ping", default=True):
        _clash(
            mode,
            given["ping"],
            hint=f"Mode discover needs discovery probes. Choose a different mode, or remove {given['ping'].source}.",
        )


def _check_needs(given: Mapping[str, ScanParameter], *, services: bool, os: bool) -> None:
    """Refuse flags that would have no effect."""
    for field, present, need in (
        ("version_intensity", services, "mode services or -sV"),
        ("osscan_limit", os, "mode os or -O"),
        ("osscan_guess", os, "mode os or -O"),
    ):
        if field in given and not present:
            source = given[field].source
            raise ArgumentError(f"{source} has no effect in this call.", hint=f"Add {need}, or remove {source}.")


def _methods(given: Mapping[str, ScanParameter]) -> tuple[str | None, bool]:
    """Return the TCP method, or None without TCP, and whether UDP is tested."""
    transport = given.get("transport")
    if transport and transport.value == "tcp" and "udp" in given:
        _clash(transport, given["udp"])
    if transport and transport.value == "udp" and "tcp" in given:
        _clash(transport, given["tcp"])
    if transport:
        udp, tcp = transport.value in {"udp", "both"}, transport.value in {"tcp", "both"}
    else:
        udp = "udp" in given
        tcp = "tcp" in given or not udp
    method = _value(given, "tcp", default="default")
    return method if tcp else None, udp


def _ports(given: Mapping[str, ScanParameter], preset: Mapping[str, Any], *, udp: bool) -> PortSet:
    default = preset.get("ports") or (DEFAULT_UDP_PORTS if udp else DEFAULT_PORTS)
    ports: PortSet = _value(given, "ports", default=default)
    return ports


def _with_intrusiveness(scan: Scan, *, allow_intrusive: bool) -> Scan:
    """Mark a scan that is intrusive, or raise AccessError if the operator does not allow such scans."""
    named = sorted(INTRUSIVE_NAMES.intersection(scan.scripts))
    reasons = [
        *(["-A"] if scan.intrusive else []),
        *([f"timing {scan.timing}"] if scan.timing >= INTRUSIVE_TIMING else []),
        *([f"scripts {', '.join(named[:5])}"] if named else []),
    ]
    if reasons and not allow_intrusive:
        raise AccessError(
            f"This call is intrusive ({' and '.join(reasons)}), and the operator does not allow intrusive calls.",
            code="intrusive_not_allowed",
        )
    return replace(scan, intrusive=True) if reasons else scan


def _raw_source(scan: Scan, given: Mapping[str, ScanParameter]) -> str:
    """Return the text of the caller that needs raw sockets, or "". No default needs them."""
    fields = ("tcp",) if scan.tcp == "syn" else ("udp", "transport") if scan.udp else ("os", "aggressive", "mode")
    return next(given[field].source for field in fields if field in given)
