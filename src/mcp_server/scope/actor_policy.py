"""The owner's policy as one actor may use it: what the policy and the actor's own networks both allow.

Terms, exclusions, limits, windows and resolvers stay those of the policy. The actor's networks are asked first: of what
lies outside of them it learns nothing, not even which line of the policy decides there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, islice
from typing import Final

from mcp_server.model.target import Network
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.radix import Prefix, RadixTree
from mcp_server.scope.ranges import WIDTHS, Span, span
from mcp_server.scope.refused import WELL_KNOWN
from mcp_server.scope.terms import PolicyEntry, Verdict

MOST_KEPT: Final = 256
"""Actors whose policies are kept compiled; the one that has not called for the longest gives way."""

_LOOPBACK: Final[dict[int, Span]] = {network.version: span(network) for network in WELL_KNOWN["loopback"]}


class ActorPolicy(ScopePolicy):
    """``policy``, of which only what lies inside ``networks`` counts: entries as in ``security.allowed_targets``.

    Raises ConfigError for an entry that is none.
    """

    def __init__(self, policy: ScopePolicy, networks: Iterable[str]) -> None:
        _ = policy.hash  # made once, and the same for every actor
        # Shared and not made again: a policy may have 100,000 lines, and every actor its own.
        self.__dict__.update(policy.__dict__)
        self._policy: Final = policy
        self._own: Final = ScopePolicy.from_entries(networks, called="the networks of this caller")

    @property
    def networks(self) -> tuple[str, ...]:
        """The actor's own entries in canonical spelling."""
        return self._own.entries

    @property
    def entries(self) -> tuple[str, ...]:
        """The entries of the policy that touch the actor's networks, in their order."""
        return tuple(self._allow.spellings[position] for position in self._touched)

    @property
    def size(self) -> int:
        """How many those are."""
        return len(self._touched)

    def lines(self, at_most: int) -> tuple[PolicyEntry, ...]:
        """The first ``at_most`` of them with their terms."""
        return tuple(map(self._allow.line, self._touched[:at_most]))

    @cached_property
    def exclusions(self) -> tuple[str, ...]:
        """The exclusions of the policy that touch the actor's networks, in their order."""
        trees = {version: trees[2] for version, trees in self._trees.items()}
        found = self._positions(trees, trees, self._exclude.names)
        return tuple(self._exclude.spellings[position] for position in found)

    def summary(self) -> str:
        """What the actor may touch at most, as a refusal says it."""
        return f"{self._own.summary()}, as far as the policy goes"

    def check_network(self, network: Network) -> Verdict:
        """Judge a network as a whole: by the actor's networks, then by the policy."""
        own = self._own.check_network(network)
        return super().check_network(network) if own.allowed else self._outside(own, network)

    def check_name(self, name: str) -> Verdict:
        """Judge a name: by the actor's suffixes, then by the policy."""
        own = self._own.check_name(name)
        return super().check_name(name) if own.allowed else own

    def rest_of(self, network: Network, at_most: int | None = None) -> tuple[Network, ...]:
        """The networks that hold all of ``network`` that this actor may touch, in order; the first ``at_most``."""
        parts = (self._policy.rest_of(part, at_most) for part in self._own.rest_of(network))
        return tuple(islice(chain.from_iterable(parts), at_most))

    def _outside(self, own: Verdict, network: Network) -> Verdict:
        return Verdict(False, lambda: own.reason, code=own.code, hint=lambda: self._rest_hint(network))

    @cached_property
    def _touched(self) -> tuple[int, ...]:
        outside = {version: trees[0] for version, trees in self._trees.items()}
        inside = {version: trees[1] for version, trees in self._trees.items()}
        return tuple(self._positions(outside, inside, self._allow.names))

    def _positions(
        self, trees: dict[int, RadixTree], loopback: dict[int, RadixTree], names: dict[str, int]
    ) -> list[int]:
        """The entries, of networks in ``trees`` (of ``loopback`` in that) and of ``names``, that touch the actor's."""
        own = self._own._allow  # noqa: SLF001 - the two are one class
        found = {position for name, position in names.items() if any(map(name.endswith, own.names))}
        suffixes = [(name, position) for name, position in names.items() if name.startswith(".")]
        found |= {position for name, position in suffixes if any(each.endswith(name) for each in own.names)}
        for version, prefixes in own.networks.items():
            for first, last in _spans(version, prefixes):
                low, high = _LOOPBACK[version]
                holder, within = (loopback if low <= first and last <= high else trees)[version].touching(first, last)
                found |= {position for _, _, position in within}
                found |= set() if holder is None else {holder}
        return sorted(position for position in found if position >= 0)  # below are the ranges always refused


class ActorPolicies:
    """The policies of actors, each compiled once for as long as the owner's is the same."""

    def __init__(self) -> None:
        self._policy: ScopePolicy | None = None
        self._kept: OrderedDict[tuple[str, ...], ActorPolicy] = OrderedDict()

    def of(self, policy: ScopePolicy, networks: tuple[str, ...] | None) -> ScopePolicy:
        """``policy`` as an actor with these networks may use it; None: all of it."""
        if networks is None:
            return policy
        if policy is not self._policy:
            self._policy = policy
            self._kept.clear()
        if (known := self._kept.get(networks)) is not None:
            self._kept.move_to_end(networks)
            return known
        made = self._kept[networks] = ActorPolicy(policy, networks)
        if len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return made


def _spans(version: int, prefixes: Iterable[Prefix]) -> Iterator[tuple[int, int]]:
    width = WIDTHS[version]
    return ((first, first | ((1 << (width - length)) - 1)) for first, length, _ in prefixes)
