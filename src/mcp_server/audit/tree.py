"""The Merkle tree over the records: RFC 6962 section 2.1 with SHA-256. A leaf is a line without its newline."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(line: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(b"\x00" + line).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of the node above two nodes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The roots of the complete subtrees, largest first. A tree that grows needs nothing else.

    There is one hash for each bit that is set in ``size``. Raises ValueError if the number of ``hashes`` differs.
    """

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        self.size = size
        self.hashes = list(hashes)
        if len(self.hashes) != size.bit_count() or any(len(each) != len(EMPTY_ROOT) for each in self.hashes):
            raise ValueError(f"a tree of {size} leaves does not have these {len(self.hashes)} hashes")

    def add(self, line: bytes) -> None:
        """Append a leaf."""
        merged, size = leaf_hash(line), self.size
        while size & 1:
            merged = node_hash(self.hashes.pop(), merged)
            size >>= 1
        self.hashes.append(merged)
        self.size += 1

    def root(self) -> bytes:
        """Return the root of the tree."""
        if not self.hashes:
            return EMPTY_ROOT
        *others, root = self.hashes
        for left in reversed(others):
            root = node_hash(left, root)
        return root
