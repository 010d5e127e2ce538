"""The part of the policy that one actor may use: both the operator's policy and the actor's own networks allow it.

Terms, exclusions, limits, windows and resolvers are those of the policy. The actor's networks are checked first, so an
actor learns nothing about addresses outside them, not even which entry of the policy decides there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from itertools import chain, islice
from typing import Final

from mcp_server.model.target import Network
from mcp_server.scope.entries import PolicyEntry
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.radix import RadixTree
from mcp_server.scope.special_networks import LOOPBACK
from mcp_server.scope.verdict import Verdict

MOST_KEPT: Final = 256
"""Actors whose policies are cached. When the limit is reached, the least recently used policy is dropped."""


class ActorPolicy(ScopePolicy):
    """The part of ``policy`` inside ``networks``, which are entries as in ``security.allowed_targets``.

    Raises ConfigError for a wrong entry.
    """

    def __init__(self, policy: ScopePolicy, networks: Iterable[str]) -> None:
        _ = policy.hash  # compute it once, because it is the same for every actor
        # Share the data of the policy: it may have 100,000 entries, and every actor has its own ActorPolicy.
        self.__dict__.update(policy.__dict__)
        self._policy: Final = policy
        self._own: Final = ScopePolicy.from_entries(networks, called="the networks of this caller")

    @property
    def networks(self) -> tuple[str, ...]:
        """The actor's own entries in canonical spelling."""
        return self._own.entries

    @property
    def entries(self) -> tuple[str, ...]:
        """The entries of the policy that overlap the actor's networks, in their order."""
        return tuple(self._allow.spellings[position] for position in self._overlapping)

    @property
    def size(self) -> int:
        """The number of entries that overlap the actor's networks."""
        return len(self._overlapping)

    def policy_entries(self, at_most: int) -> tuple[PolicyEntry, ...]:
        """Return the first ``at_most`` of the overlapping entries with their terms."""
        return tuple(map(self._allow.at, self._overlapping[:at_most]))

    @cached_property
    def exclusions(self) -> tuple[str, ...]:
        """The exclusions of the policy that overlap the actor's networks, in their order."""
        trees = {version: trees[2] for version, trees in self._trees.items()}
        found = self._positions(trees, trees, self._exclude.names)
        return tuple(self._exclude.spellings[position] for position in found)

    def summary(self) -> str:
        """Return the actor's networks for the message of a refusal."""
        return f"{self._own.summary()}, if the policy allows it too"

    def check_network(self, network: Network) -> Verdict:
        """Judge a network: by the actor's networks, then by the policy."""
        own = self._own.check_network(network)
        return super().check_network(network) if own.allowed else self._outside(own, network)

    def check_name(self, name: str) -> Verdict:
        """Judge a name: by the actor's suffixes, then by the policy."""
        own = self._own.check_name(name)
        return super().check_name(name) if own.allowed else own

    def rest_of(self, network: Network, at_most: int | None = None) -> tuple[Network, ...]:
        """Return the networks that cover the part of ``network`` this actor may scan, in order, at most ``at_most``."""
        parts = (self._policy.rest_of(part, at_most) for part in self._own.rest_of(network))
        return tuple(islice(chain.from_iterable(parts), at_most))

    def _outside(self, own: Verdict, network: Network) -> Verdict:
        return Verdict(False, lambda: own.reason, code=own.code, hint=lambda: self._allowed_part(network))

    @cached_property
    def _overlapping(self) -> tuple[int, ...]:
        outside = {version: trees[0] for version, trees in self._trees.items()}
        inside = {version: trees[1] for version, trees in self._trees.items()}
        return tuple(self._positions(outside, inside, self._allow.names))

    def _positions(
        self, trees: dict[int, RadixTree], loopback: dict[int, RadixTree], names: dict[str, int]
    ) -> list[int]:
        """Return the positions of the entries that overlap the actor's networks and names.

        ``trees`` holds networks outside loopback, ``loopback`` those inside it.
        """
        own = self._own._allow  # noqa: SLF001 - a policy of the same class
        found = {position for name, position in names.items() if any(map(name.endswith, own.names))}
        suffixes = [(name, position) for name, position in names.items() if name.startswith(".")]
        found |= {position for name, position in suffixes if any(each.endswith(name) for each in own.names)}
        for version, (low, high) in LOOPBACK.items():
            for first, last in own.spans(version):
                holder, within = (loopback if low <= first and last <= high else trees)[version].touching(first, last)
                found |= {position for _, _, position in within}
                found |= set() if holder is None else {holder}
        return sorted(position for position in found if position >= 0)  # negative: an always-refused range


class ActorPolicies:
    """The policies of actors, each built once per version of the operator's policy."""

    def __init__(self) -> None:
        self._policy: ScopePolicy | None = None
        self._kept: OrderedDict[tuple[str, ...], ActorPolicy] = OrderedDict()

    def of(self, policy: ScopePolicy, networks: tuple[str, ...] | None) -> ScopePolicy:
        """``policy`` as an actor with these networks may use it; None means the whole policy."""
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
