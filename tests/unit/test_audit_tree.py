"""The Merkle tree: compared with the vectors of the Certificate Transparency reference and with RFC 6962."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.audit.tree import EMPTY_ROOT, Frontier, leaf_hash, node_hash

# The test inputs and roots of the Certificate Transparency reference implementation's Merkle tree.
LEAVES = [
    b"",
    b"\x00",
    b"\x10",
    b"\x20\x21",
    b"\x30\x31",
    b"\x40\x41\x42\x43",
    b"\x50\x51\x52\x53\x54\x55\x56\x57",
    b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def rfc_6962_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1: split at the largest power of two smaller than the number of leaves."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    left, right = rfc_6962_root(leaves[:split]), rfc_6962_root(leaves[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


@pytest.mark.parametrize("count", range(9))
def test_roots_equal_those_of_the_reference(count: int) -> None:
    tree = Frontier()
    for leaf in LEAVES[:count]:
        tree.add(leaf)
    assert tree.root().hex() == ROOTS[count]
    assert tree.size == count


@given(st.lists(st.binary(max_size=40), max_size=130))
def test_the_root_of_any_leaves_equals_that_of_the_rfc(leaves: list[bytes]) -> None:
    tree = Frontier()
    for leaf in leaves:
        tree.add(leaf)
    assert tree.root() == rfc_6962_root(leaves)


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_tree_continues_from_its_frontier(first: int, more: int) -> None:
    whole = Frontier()
    for number in range(first):
        whole.add(str(number).encode())
    resumed = Frontier(whole.size, whole.hashes)
    for number in range(first, first + more):
        whole.add(str(number).encode())
        resumed.add(str(number).encode())
    assert resumed.root() == whole.root()
    assert len(resumed.hashes) == (first + more).bit_count()


def test_the_hash_of_a_leaf_differs_from_those_of_a_node_and_of_an_empty_tree() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert node_hash(left, right) != leaf_hash(left + right)
    assert leaf_hash(b"") != EMPTY_ROOT


@pytest.mark.parametrize(("size", "hashes"), [(1, []), (2, [b"x" * 32] * 2), (3, [b"x" * 32]), (1, [b"short"])])
def test_a_frontier_of_the_wrong_size_is_refused(size: int, hashes: list[bytes]) -> None:
    with pytest.raises(ValueError, match="does not have these"):
        Frontier(size, hashes)
