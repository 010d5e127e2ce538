"""Read a target strictly, without I/O.

Scanners accept far more than a check expects: ``012.0115.1.012`` is 12.115.1.12 to nmap and 10.77.1.10 to ping, and
getaddrinfo accepts full-width digits. So only three forms are read, in ASCII, and the tool is given the canonical
string, never the caller's text:

- an address: ``10.0.0.1``, ``fd00::1`` (any RFC 4291 spelling of IPv6 in hexadecimal, passed on as RFC 5952 writes it);
- a network whose host bits are zero: ``10.0.0.0/24``;
- a name of LDH labels (RFC 1123 section 2.1, RFC 5891 section 4.2.3.1) that no parser can read as an address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Network, ip_network
from typing import Final

from mcp_server.errors import ArgumentError, RefusedError, TargetError
from mcp_server.model.target import Network
from mcp_server.model.untrusted import quoted, sanitize
from mcp_server.scope.address_ranges import network_text

MAX_CHARS: Final = 255
"""The longest target text that is read, in characters."""
SHOWN_CHARS: Final = 60
"""Characters of a target that an explanation repeats, after escaping."""
MAX_NAME_CHARS: Final = 253
"""The longest name without its trailing dot: 255 octets on the wire (RFC 1035 section 2.3.4)."""

MAPPED: Final = IPv6Network("::ffff:0:0/96")
"""IPv6 spellings of IPv4 addresses (RFC 4291 section 2.5.5.2)."""

_METACHARACTERS = frozenset(";&|`$><\x7f") | frozenset(map(chr, range(0x20)))
_OPTION_LEADERS = frozenset("-@+")
_PREFIX = re.compile(r"0|[1-9][0-9]{0,2}")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class ParsedTarget:
    """The meaning of a target text: either ``network`` (an address is a /32 or /128) or ``name`` is set.

    ``given`` is the caller's text, for messages only. It is ASCII without control characters.
    """

    given: str
    network: Network | None = None
    name: str | None = None

    @property
    def canonical(self) -> str:
        """The spelling that is passed on: an address, a CIDR, or a lower-case name without its trailing dot."""
        return self.name or "" if self.network is None else network_text(self.network)


def read_target(text: str) -> ParsedTarget:
    """Read one target strictly.

    Raises:
        ArgumentError: ``forbidden_characters`` for a shell metacharacter, a control character or a leading
            ``-``, ``@`` or ``+``; ``arguments_too_long`` for more than 255 characters.
        TargetError: ``invalid_target`` for everything else that is not one of the three forms.
    """
    _check_characters(text)
    if ":" in text:
        return ParsedTarget(text, network=_read_ipv6(text))
    # Some parsers read a last label that begins with a digit as a number (inet_aton, the WHATWG URL standard).
    last = text.removesuffix(".").rpartition(".")[2]
    if "/" in text or last[:1].isdigit():
        return ParsedTarget(text, network=_read_ipv4(text))
    return ParsedTarget(text, name=_read_name(text))


def _invalid(text: str, why: str, hint: str | None = None) -> TargetError:
    return TargetError(f"The target {quoted(text)} {why}.", hint=hint, parameter="target")


def _check_characters(text: str) -> None:
    """Refuse characters that are unsafe for any parser, before the text is parsed."""
    if not text:
        raise TargetError("The target is empty.", parameter="target")
    if len(text) > MAX_CHARS:
        raise ArgumentError(
            f"The target {quoted(text)} has {len(text)} characters; the limit is {MAX_CHARS}.",
            code="arguments_too_long",
            parameter="target",
            limit=MAX_CHARS,
        )
    for char in text:
        if char in _METACHARACTERS:
            raise _forbidden(text, char, "")
    if text[0] in _OPTION_LEADERS:
        raise _forbidden(text, text[0], "at the start ")
    for char in text:
        if not char.isascii():
            raise _invalid(text, f"contains {_named(char)}, which is not ASCII", "Write names as A-labels (xn--…).")
        if char == " ":
            raise _invalid(text, "contains a space", "Give each target as its own item.")


def _named(char: str) -> str:
    return f"'{sanitize(char)}' (U+{ord(char):04X})"


def _forbidden(text: str, char: str, where: str) -> RefusedError:
    return ArgumentError(
        f"The target contains forbidden metacharacters: {_named(char)} {where}in {quoted(text)}.",
        code="forbidden_characters",
        parameter="target",
    )


def _read_ipv4(text: str) -> Network:
    return _read_network(text, "IPv4 address: four decimal numbers without leading zeros, no ranges or wildcards")


def _read_ipv6(text: str) -> Network:
    if "://" in text:
        raise _invalid(text, "is a URL", "Give the host alone, without scheme, port or path.")
    if "%" in text:
        raise _invalid(text, "has a zone id", "Link-local addresses are always refused. Give a routable address.")
    if "[" in text or text.count(":") == 1:
        raise _invalid(text, "looks like host and port", "Give the host alone. Ports have their own parameter.")
    network = _read_network(text, "IPv6 address")
    if isinstance(network, IPv6Network) and network.subnet_of(MAPPED):
        raise _invalid(text, "is an IPv4 address inside IPv6", "Write the IPv4 address itself.")
    if "." in text:
        raise _invalid(text, "mixes IPv6 with dotted IPv4", "Write the whole address in hexadecimal.")
    return network


def _read_network(text: str, form: str) -> Network:
    _, slash, prefix = text.partition("/")
    if slash and not _PREFIX.fullmatch(prefix):  # ipaddress also accepts /024, netmasks and host masks
        raise _invalid(text, "has no plain prefix length after the '/'")
    try:
        loose = ip_network(text, strict=False)
    except ValueError:
        raise _invalid(text, f"is not a canonical {form}") from None
    try:
        return ip_network(text)
    except ValueError:
        raise _invalid(text, "has host bits set", f"Write {loose} for the network.") from None


def _read_name(text: str) -> str:
    name = text.lower().removesuffix(".")
    if len(name) > MAX_NAME_CHARS:
        raise _invalid(text, f"is a name of {len(name)} characters; the limit is {MAX_NAME_CHARS}")
    for label in name.split("."):
        if not _LABEL.fullmatch(label):
            raise _invalid(
                text, f"is not a name: the label {quoted(label)} is not 1-63 letters, digits and inner hyphens"
            )
        if label[2:4] == "--" and not _is_a_label(label):
            raise _invalid(text, f"is not a name: the label {quoted(label)} is not an IDNA A-label")
    return name


def _is_a_label(label: str) -> bool:
    """Return whether a label with hyphens in positions three and four is the one encoding of a Unicode label."""
    if not label.startswith("xn--"):
        return False
    try:
        decoded = label[4:].encode("ascii").decode("punycode")
        return decoded.encode("punycode").decode("ascii") == label[4:]
    except (UnicodeError, ValueError, OverflowError):
        return False
