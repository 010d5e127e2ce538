"""The grammar of targets: accepted and refused texts. No other parser reads an accepted target differently."""

from __future__ import annotations

import ipaddress
import socket
from collections import Counter
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server.errors import RefusedError
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.reading import MAPPED, read_target
from tests.bad_targets import BAD_TARGETS

POLICY = ScopePolicy.from_entries(["RFC1918", ".lab.internal", "loopback"])


def judge(text: str) -> None:
    """Read a text and check it against the policy, as pinning does before the first look-up."""
    target = read_target(text)
    if target.network is not None:
        POLICY.check_network(target.network).require()
    else:
        assert target.name is not None
        POLICY.check_name(target.name).require()


@pytest.mark.parametrize(("text", "code"), [pytest.param(text, code, id=name) for name, text, code in BAD_TARGETS])
def test_a_bad_target_gets_its_code_and_a_short_clean_message(text: str, code: str) -> None:
    with pytest.raises(RefusedError) as caught:
        judge(text)
    error = caught.value
    assert error.code == code
    assert error.hint
    assert len(error.message) < 250
    assert error.message.isprintable()
    assert error.details["parameter"] == "target"


def test_the_table_names_each_case_once() -> None:
    assert max(Counter(name for name, _, _ in BAD_TARGETS).values()) == 1
    assert max(Counter(text for _, text, _ in BAD_TARGETS).values()) == 1


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.1/32", "10.0.0.1"),
        ("10.0.0.0/24", "10.0.0.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("fd00::1", "fd00::1"),
        ("FD00:0:0:0::0001", "fd00::1"),
        ("FD77::/64", "fd77::/64"),
        ("::1", "::1"),
        ("host.lab.internal", "host.lab.internal"),
        ("HOST.Lab.Internal.", "host.lab.internal"),
        ("1.2.3.4.lab.internal", "1.2.3.4.lab.internal"),
        ("0x7f.lab.internal", "0x7f.lab.internal"),
        ("xn--bcher-kva.lab.internal", "xn--bcher-kva.lab.internal"),
        ("XN--BCHER-KVA.lab.internal", "xn--bcher-kva.lab.internal"),
        ("a" * 63 + ".lab.internal", "a" * 63 + ".lab.internal"),
        (".".join(["a" * 60] * 3 + ["b" * 57, "lab.internal"]), ".".join(["a" * 60] * 3 + ["b" * 57, "lab.internal"])),
    ],
)
def test_a_good_target_has_its_canonical_spelling(text: str, canonical: str) -> None:
    target = read_target(text)
    assert target.canonical == canonical
    assert target.given == text
    assert (target.network is None) != (target.name is None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10.0.0.1; rm -rf /", ["forbidden metacharacters", "';' (U+003B)", "'10.0.0.1; rm -rf /'"]),
        ("10.0.0.1\n8.8.8.8", ["forbidden metacharacters", "'\\x0a' (U+000A)", "10.0.0.1\\x0a8.8.8.8"]),
        ("-iL", ["forbidden metacharacters", "'-' (U+002D) at the start"]),
        ("\uff110.0.0.1", ["U+FF11", "not ASCII"]),
        ("a" * 300, ["300 characters", "limit is 255", "…[+240]"]),
        ("10.0.0.0/33", ["10.0.0.0/33", "not a canonical IPv4 address"]),
        ("http://10.0.0.1/", ["is a URL"]),
        ("fd00::1%eth0", ["zone id"]),
        ("::ffff:8.8.8.8", ["inside IPv6"]),
    ],
)
def test_the_message_names_the_wrong_character(text: str, words: list[str]) -> None:
    with pytest.raises(RefusedError) as caught:
        read_target(text)
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize("code", [*range(0x20), 0x7F])
def test_control_characters_are_forbidden_at_every_position(code: int) -> None:
    for text in (f"{chr(code)}10.0.0.1", f"10.0{chr(code)}.0.1", f"10.0.0.1{chr(code)}"):
        with pytest.raises(RefusedError) as caught:
            read_target(text)
        assert caught.value.code == "forbidden_characters"
        assert f"(U+{code:04X})" in caught.value.message


def test_the_hint_for_host_bits_is_the_network() -> None:
    with pytest.raises(RefusedError) as caught:
        read_target("10.1.2.3/16")
    assert "10.1.0.0/16" in caught.value.hint


# Generators. inet_aton(3) allows each number of an address in several bases.


FULL_WIDTH = 0xFEE0  # from an ASCII character to its full-width form


def _spellings(number: int) -> list[str]:
    return [str(number), f"0{number:o}", f"00{number:o}", hex(number), f"0X{number:X}", f"0{number}"]


@st.composite
def obfuscated(draw: st.DrawFn) -> str:
    """An IPv4 address in a spelling that is not canonical."""
    address = draw(st.ip_addresses(v=4))
    packed = address.packed
    size = draw(st.integers(1, 4))
    parts = [*packed[: size - 1], int.from_bytes(packed[size - 1 :])]
    text = ".".join(draw(st.sampled_from(_spellings(part))) for part in parts)
    if draw(st.booleans()):
        at = draw(st.integers(0, len(text) - 1))
        text = text[:at] + chr(ord(text[at]) + FULL_WIDTH) + text[at + 1 :]
    if draw(st.booleans()):
        text = draw(
            st.sampled_from(["{}.", " {}", "{} ", "{}\n", "{}/032", "{}-254", "{},1", "{}:80", "::ffff:{}"])
        ).format(text)
    return text if text != str(address) else f"{text}."


@given(obfuscated())
@settings(max_examples=400, deadline=None)
def test_no_obfuscated_address_is_read_as_an_address_or_a_name(text: str) -> None:
    with pytest.raises(RefusedError):
        read_target(text)


_labels = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,8}[a-zA-Z0-9])?", fullmatch=True)
_names = st.lists(_labels, min_size=1, max_size=5).map(".".join)
_networks = st.ip_addresses().flatmap(
    lambda a: st.integers(0, a.max_prefixlen).map(lambda p: str(ipaddress.ip_network((a, p), strict=False)))
)
_near_addresses = st.text(alphabet="0123456789abcdefx.:/-%", min_size=1, max_size=20)
_texts = st.one_of(st.ip_addresses().map(str), _networks, _names, _near_addresses, st.text(max_size=20), obfuscated())


def _read(text: str) -> object:
    try:
        return read_target(text)
    except RefusedError:
        return None


@pytest.mark.no_cover
@given(_texts)
@settings(max_examples=1000, deadline=None)
def test_every_parser_reads_an_accepted_target_as_the_same_addresses(text: str) -> None:
    try:
        target = read_target(text)
    except RefusedError:
        return
    assert text.isascii()
    try:
        c_library = socket.inet_aton(text)
    except OSError:
        c_library = None
    if target.name is not None:
        assert c_library is None
        with pytest.raises(ValueError, match="does not appear"):
            ipaddress.ip_network(target.name)
        return
    assert target.network is not None
    assert ipaddress.ip_network(target.canonical) == target.network == ipaddress.ip_network(text)
    assert read_target(target.canonical).canonical == target.canonical
    if c_library is not None:
        assert c_library == target.network.network_address.packed
    if target.network.num_addresses == 1:
        family = socket.AF_INET if target.network.version == 4 else socket.AF_INET6
        assert socket.inet_pton(family, target.canonical) == target.network.network_address.packed


def test_the_generators_make_accepted_and_refused_texts() -> None:
    """The properties would prove nothing if all generated texts were refused."""
    accepted: Counter[str] = Counter()
    drawn: Counter[str] = Counter()

    @given(st.sampled_from(["address", "network", "name"]), st.data())
    @settings(max_examples=300, deadline=None, database=None)
    def draw(kind: str, data: st.DataObject) -> None:
        source: dict[str, st.SearchStrategy[str]] = {
            "address": st.ip_addresses().map(str),
            "network": _networks,
            "name": _names,
        }
        drawn[kind] += 1
        accepted[kind] += _read(data.draw(source[kind])) is not None

    draw()
    for kind, least in {"address": 0.8, "network": 0.8, "name": 0.25}.items():
        assert accepted[kind] >= least * drawn[kind] > 10, (kind, accepted, drawn)


@given(st.ip_addresses())
@settings(max_examples=300, deadline=None)
def test_every_canonical_address_is_read_unless_it_embeds_ipv4(address: IPv4Address | IPv6Address) -> None:
    target = _read(str(address))
    assert (target is None) == (address in MAPPED)
