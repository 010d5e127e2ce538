"""Pin targets: turn the texts of a call into the numeric targets that a tool is given. Nothing is resolved later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_network
from itertools import islice
from typing import Final

from mcp_server.errors import TargetError
from mcp_server.model.target import Evidence, Network, Target, Targets
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.reading import ParsedTarget, read_target
from mcp_server.scope.resolver import Resolver

_JUDGED_OF_TOO_MANY: Final = 8
LOOKUPS_AT_ONCE: Final = 16
"""Names per batch. The first batch with a failure ends the call, so a dead name server costs one lifetime."""


async def pin_targets(texts: Sequence[str], policy: ScopePolicy, resolver: Resolver, *, max_addresses: int) -> Targets:
    """Read, judge, resolve and count the targets of one call.

    Every text is read, judged and counted before the first look-up, so a refused call sends no question to a name
    server. Each name is looked up once and *all* its addresses are pinned: otherwise, a tool that takes only the first
    one could scan a different host than the caller meant. One address out of scope, or one excluded alias, refuses the
    whole call.

    No address occurs twice in the result. A network inside another network is left out of its target. Such a target
    stays in ``items`` with empty ``networks``.

    Raises:
        ArgumentError: a text is unsafe or too long.
        TargetError: ``invalid_target``, ``target_out_of_scope``, ``target_unresolvable`` or ``too_many_targets``.
    """
    parsed = [read_target(text) for text in texts]
    if not parsed:
        raise TargetError("The call has no target.", parameter="target")
    names = list(dict.fromkeys(target.name for target in parsed if target.name is not None))
    given = _without_overlaps([_literal(target) for target in parsed])
    distinct = list({target.name or target.network: target for target in parsed}.values())
    too_many = len(names) > max_addresses or _size(given) > max_addresses
    # Judging a wide network takes long if the policy has many entries. Of too many targets, judge only the first few.
    for target in distinct[:_JUDGED_OF_TOO_MANY] if too_many else distinct:
        await asyncio.sleep(0)  # let other tasks run in between
        _judge(target, policy)
    _check_count(len(names), max_addresses, "names")  # this also limits the number of look-ups
    _check_count(_size(given), max_addresses)

    answers: dict[str, Evidence] = {}
    for batch in _batches(names, LOOKUPS_AT_ONCE):
        answers |= await _resolve_all(batch, policy, resolver)

    evidence = [None if target.name is None else answers[target.name] for target in parsed]
    networks = _without_overlaps(
        [
            _literal(target) if found is None else _networks(found)
            for target, found in zip(parsed, evidence, strict=True)
        ]
    )
    _check_count(_size(networks), max_addresses)
    return Targets(
        tuple(
            Target(given=target.given, networks=pinned, name=target.name, evidence=found)
            for target, pinned, found in zip(parsed, networks, evidence, strict=True)
        )
    )


def _judge(target: ParsedTarget, policy: ScopePolicy) -> None:
    if target.name is not None:
        policy.check_name(target.name).require()
    elif target.network is not None:
        policy.check_network(target.network).require()


def _literal(target: ParsedTarget) -> tuple[Network, ...]:
    return () if target.network is None else (target.network,)


def _networks(found: Evidence) -> tuple[Network, ...]:
    return tuple(ip_network(address) for address in found.addresses)


async def _resolve_all(names: list[str], policy: ScopePolicy, resolver: Resolver) -> dict[str, Evidence]:
    """Resolve names concurrently. If several fail, the error is that of the first failed name in ``names``."""
    answers = await asyncio.gather(*(resolver.lookup(name) for name in names), return_exceptions=True)
    result: dict[str, Evidence] = {}
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, BaseException):
            raise answer
        if not answer.addresses:
            raise TargetError(f"{name} has no address.", code="target_unresolvable", parameter="target")
        # Name servers rotate their answers. Sort them, so that the same answer always makes the same plan.
        ordered = tuple(sorted(set(answer.addresses), key=lambda a: (a.version, int(a))))
        for verdict in (*map(policy.check_alias, answer.aliases), *map(policy.check_address, ordered)):
            if not verdict.allowed:
                raise TargetError(
                    f"{name} resolves out of scope: {verdict.reason}", code=verdict.code, parameter="target"
                )
        result[name] = replace(answer, addresses=ordered)
    return result


def _without_overlaps(groups: Sequence[tuple[Network, ...]]) -> list[tuple[Network, ...]]:
    """Leave each address in one network only: the widest that contains it, and the first of equal networks.

    CIDR networks are disjoint or nested, so no network has to be split.
    """
    seen: set[Network] = set()
    given = {network for group in groups for network in group}
    prefixes: set[tuple[int, int]] = {(network.version, network.prefixlen) for network in given}
    result: list[tuple[Network, ...]] = []
    for group in groups:
        kept: list[Network] = []
        for network in group:
            if network not in seen and not _inside_wider(network, given, prefixes):
                kept.append(network)
            seen.add(network)
        result.append(tuple(kept))
    return result


def _inside_wider(network: Network, given: set[Network], prefixes: set[tuple[int, int]]) -> bool:
    return any(
        network.supernet(new_prefix=prefix) in given
        for version, prefix in prefixes
        if version == network.version and prefix < network.prefixlen
    )


def _size(groups: Iterable[tuple[Network, ...]]) -> int:
    return sum(network.num_addresses for group in groups for network in group)


def _check_count(count: int, limit: int, what: str = "addresses") -> None:
    if count > limit:
        raise TargetError(
            f"The targets contain {count} {what}; the limit for this call is {limit}.",
            code="too_many_targets",
            parameter="target",
            count=count,
            limit=limit,
        )


def _batches(names: list[str], size: int) -> Iterator[list[str]]:
    rest = iter(names)
    while batch := list(islice(rest, size)):
        yield batch
