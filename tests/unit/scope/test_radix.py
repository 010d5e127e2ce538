"""The radix tree and the arithmetic of ranges, compared with a check of every address."""

from __future__ import annotations

from ipaddress import collapse_addresses, ip_address, ip_network
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server.scope.address_ranges import ipv4_networks, ipv6_networks, merged, prefixes, without
from mcp_server.scope.radix import RadixTree

WIDTH = 7
NETWORKS = st.tuples(st.integers(0, 2**WIDTH - 1), st.integers(0, WIDTH)).map(
    lambda pair: (pair[0] >> (WIDTH - pair[1]) << (WIDTH - pair[1]), pair[1])
)
SPANS = st.lists(st.tuples(st.integers(0, 127), st.integers(0, 40)).map(lambda pair: (pair[0], pair[0] + pair[1])))


def last_of(first: int, length: int) -> int:
    return first | ((1 << (WIDTH - length)) - 1)


def narrowest(networks: list[tuple[int, int]], first: int, last: int) -> int | None:
    """The narrowest network that contains a whole range, and the first of equal networks."""
    found = [
        (length, -n) for n, (start, length) in enumerate(networks) if start <= first and last <= last_of(start, length)
    ]
    return -max(found)[1] if found else None


@given(st.lists(NETWORKS, max_size=24), st.lists(NETWORKS, min_size=1, max_size=6))
@settings(max_examples=500, deadline=None)
def test_the_narrowest_network_decides_on_every_address(
    networks: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    tree = RadixTree(WIDTH, [(*network, number) for number, network in enumerate(networks)])
    for first, length in asked:
        last = last_of(first, length)
        assert tree.holding(first, last) == narrowest(networks, first, last)
        pieces = tree.pieces(first, last)
        assert [address for start, end, _ in pieces for address in range(start, end + 1)] == list(
            range(first, last + 1)
        )
        for start, end, number in pieces:
            assert {narrowest(networks, address, address) for address in range(start, end + 1)} == {number}
    assert tree.all_pieces() == tree.pieces(0, 2**WIDTH - 1)


@given(st.lists(NETWORKS, max_size=24), NETWORKS)
@settings(max_examples=300, deadline=None)
def test_the_networks_inside_a_network_are_in_order(networks: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    first, last = asked[0], last_of(*asked)
    tree = RadixTree(WIDTH, [(*network, number) for number, network in enumerate(networks)])
    holder, inside = tree.touching(first, last)
    assert holder == narrowest(networks, first, last)
    expected = {
        (start, last_of(start, length))
        for start, length in networks
        if first <= start and last_of(start, length) <= last and (start, length) != asked
    }
    assert [(start, end) for start, end, _ in inside] == sorted(expected, key=lambda span: (span[0], -span[1]))


def test_an_empty_tree_holds_nothing() -> None:
    tree = RadixTree(32, [])
    assert tree.holding(0, 0) is None
    assert tree.touching(0, 2**32 - 1) == (None, [])
    assert tree.all_pieces() == [(0, 2**32 - 1, None)]


def addresses(spans: list[tuple[int, int]]) -> set[int]:
    return {address for first, last in spans for address in range(first, last + 1)}


@given(SPANS, SPANS)
@settings(max_examples=400, deadline=None)
def test_ranges_are_merged_and_subtracted_like_sets(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    a, b = merged(one), merged(other)
    assert addresses(a) == addresses(one)
    assert all(left[1] + 1 < right[0] for left, right in pairwise(a))
    assert addresses(without(a, b)) == addresses(one) - addresses(other)


@given(SPANS)
@settings(max_examples=200, deadline=None)
def test_ranges_become_the_fewest_networks(spans: list[tuple[int, int]]) -> None:
    found = ipv4_networks(merged(spans))
    assert {int(address) for network in found for address in network} == addresses(spans)
    assert list(found) == list(collapse_addresses(found)), "the networks could be joined further"


def test_the_whole_space_is_one_network() -> None:
    assert list(prefixes([(0, 2**32 - 1)], 4)) == [(0, 0)]
    assert ipv6_networks([(0, 2**128 - 1)]) == (ip_network("::/0"),)
    everything_but_one = without([(0, 2**128 - 1)], [(1, 1)])
    assert sum(network.num_addresses for network in ipv6_networks(everything_but_one)) == 2**128 - 1
    assert not any(ip_address("::1") in network for network in ipv6_networks(everything_but_one))
