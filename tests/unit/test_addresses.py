"""Sets of addresses and their short notation."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from mcp_server.model.addresses import Address, AddressSet, addresses_text, ranges, spans
from tests.unit.notation import read_addresses, read_numbers

# Each octet has few values, so that ranges, shared octets and shared prefixes occur.
V4 = st.builds(
    lambda a, b, c, d: a << 24 | b << 16 | c << 8 | d,
    st.sampled_from([10, 192]),
    st.integers(0, 2),
    st.integers(0, 5),
    st.one_of(st.integers(0, 12), st.integers(250, 255)),
)
V6 = st.one_of(
    st.builds(lambda high, low: 0xFD77 << 112 | high << 16 | low, st.integers(0, 2), st.integers(0, 40)),
    st.integers(0, 2**128 - 1),
)


@given(st.sets(V4), st.sets(V6, max_size=20))
def test_the_notation_has_exactly_the_addresses(v4: set[int], v6: set[int]) -> None:
    text = addresses_text(sorted(v4), sorted(v6))
    assert read_addresses(text) == {*map(IPv4Address, v4), *map(IPv6Address, v6)}


@given(st.sets(st.integers(0, 65535)))
def test_ranges_have_exactly_the_numbers(numbers: set[int]) -> None:
    assert read_numbers(ranges(sorted(numbers))) == numbers


def test_the_notation_is_short() -> None:
    def text(*addresses: str) -> str:
        numbers = sorted(IPv4Address(address) for address in addresses)
        return addresses_text(map(int, numbers))

    assert text("10.78.1.4") == "10.78.1.4"
    assert text("10.78.1.4", "10.78.1.5", "10.78.1.6", "10.78.1.12") == "10.78.1.4-6,12"
    assert text("10.78.1.4", "10.78.3.4", "10.79.0.1") == "10.78.1,3.4; 10.79.0.1"
    assert text("10.78.1.4", "10.78.3.5") == "10.78.{1.4 3.5}"
    whole = range(int(IPv4Address("10.78.0.0")), int(IPv4Address("10.79.0.0")))
    assert addresses_text(whole) == "10.78.0-255.0-255"
    assert addresses_text([], [(0xFD77 << 112) + low for low in (10, 11, 32)]) == "fd77::{a-b,20}"


def test_spans_may_start_at_zero() -> None:
    assert spans([0, 1, 2, 9]) == [(0, 2), (9, 9)]
    assert spans([]) == []


@given(st.lists(st.tuples(st.sampled_from([4, 6]), st.integers(0, 600)), max_size=50))
def test_a_set_counts_and_orders_its_members(members: list[tuple[int, int]]) -> None:
    found = AddressSet()
    expected: set[Address] = set()
    for version, number in members:
        address = IPv4Address(number) if version == 4 else IPv6Address(number)
        assert found.add(address) is (address not in expected)
        expected.add(address)
    assert len(found) == len(expected)
    assert list(found) == sorted(expected, key=lambda address: (address.version, int(address)))
    assert all(address in found for address in expected)
    network = ip_network("0.0.2.0/24")
    assert set(found.missing([network])) == set(network) - expected


def test_the_missing_addresses_of_a_large_network_are_not_computed_at_once() -> None:
    network = ip_network("fd77::/64")
    found = AddressSet()
    found.add(network[0])
    assert next(found.missing([network])) == network[1]
