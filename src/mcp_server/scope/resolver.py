"""Look up a name once, in the hosts file or by DNS, without search domains, and return evidence of the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from mcp_server.errors import RefusedError, TargetError
from mcp_server.model.target import Evidence
from mcp_server.model.untrusted import quoted
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.reading import read_target

if TYPE_CHECKING:
    import dns.asyncresolver
    import dns.resolver

HOSTS_FILE: Final = Path("/etc/hosts")
RESOLV_CONF: Final = Path("/etc/resolv.conf")
LIFETIME_SEC: Final = 5.0
"""Seconds that one question may take, over all name servers and retries."""

Address = IPv4Address | IPv6Address


class Resolver(Protocol):
    """Turns a canonical name into all of its addresses."""

    async def lookup(self, name: str) -> Evidence:
        """Return every A and AAAA answer; raises TargetError ``target_unresolvable`` if there is none."""
        ...


class CachingResolver:
    """Asks another resolver once per name, so that two look-ups within one call get the same answer."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._answers: dict[str, asyncio.Task[Evidence]] = {}

    async def lookup(self, name: str) -> Evidence:
        """Return the result of the first look-up of ``name``, or raise its error."""
        if name not in self._answers:
            self._answers[name] = asyncio.ensure_future(self._resolver.lookup(name))
        return await asyncio.shield(self._answers[name])


class SystemResolver:
    """Looks names up as this host does: in ``/etc/hosts`` first, then at the name servers of ``/etc/resolv.conf``.

    ``nameservers`` (addresses) replaces those of ``resolv_conf``. ``hosts_file`` None means that no hosts file is read.
    A name in the hosts file is not looked up in DNS, as with ``hosts: files dns`` in nsswitch.conf(5). A name server
    gets one A and one AAAA question for the absolute name. The next server is asked only if the first one does not
    answer or fails. CNAMEs are followed inside the answer, which a recursive server completes (RFC 1034 section
    5.3.3). ``lifetime`` is in seconds.
    """

    def __init__(
        self,
        nameservers: Sequence[str] | None = None,
        *,
        port: int = 53,
        lifetime: float = LIFETIME_SEC,
        hosts_file: Path | None = HOSTS_FILE,
        resolv_conf: Path = RESOLV_CONF,
    ) -> None:
        self._nameservers = nameservers
        self._port = port
        self._lifetime = lifetime
        self._hosts_file = hosts_file
        self._resolv_conf = resolv_conf

    @classmethod
    def of(cls, policy: ScopePolicy) -> SystemResolver:
        """Return the resolver of a policy. It asks the policy's servers only, or this host's if the policy has none."""
        if not policy.resolvers:
            return cls()
        return cls([str(address) for address in policy.resolvers], hosts_file=None)

    async def lookup(self, name: str) -> Evidence:
        """Return every address of ``name``, IPv4 first.

        If one of the two questions times out or fails, the name is refused, because some addresses may be missing.
        NXDOMAIN for only one type counts as no address of that type.
        """
        if self._hosts_file is not None:
            listed = await asyncio.to_thread(_hosts_addresses, name, self._hosts_file)
            if listed:
                return Evidence(name, listed, source=str(self._hosts_file))
        if self._nameservers is not None and not self._nameservers:
            raise _unresolvable(
                name, "the guard allows questions only to the 'resolvers' of the policy file, and it has none"
            )
        from dns.exception import DNSException

        try:
            found = await self._question(name)
        except DNSException as error:
            raise _unresolvable(name, _why(error)) from error
        if not found.addresses:
            raise _unresolvable(name, "it does not exist or has no address")
        return found

    async def _question(self, name: str) -> Evidence:
        # Importing dnspython and reading resolv.conf read the disk, so do it in a thread.
        resolver = await asyncio.to_thread(self._configured)
        # Wait for both questions before raising an error of one, so that no question outlives this call.
        answers = await asyncio.gather(
            self._ask(resolver, name, "A"), self._ask(resolver, name, "AAAA"), return_exceptions=True
        )
        parts: list[dns.resolver.Answer] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            if answer is not None:
                parts.append(answer)
        aliases = (str(each.target) for part in parts for chain in part.chaining_result.cnames for each in chain)
        lifetimes = [part.chaining_result.minimum_ttl for part in parts if part.rrset]
        return Evidence(
            name,
            tuple(ip_address(record.address) for part in parts for record in part.rrset or ()),
            aliases=tuple(dict.fromkeys(alias.rstrip(".").lower() for alias in aliases)),
            ttl=min(lifetimes, default=None),
            source=", ".join(dict.fromkeys(str(part.nameserver) for part in parts if part.rrset)),
        )

    async def _ask(self, resolver: dns.asyncresolver.Resolver, name: str, kind: str) -> dns.resolver.Answer | None:
        import dns.resolver

        try:  # the final dot makes the name absolute, so that no search domain is added
            return await resolver.resolve(f"{name}.", kind, raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN:
            return None

    def _configured(self) -> dns.asyncresolver.Resolver:
        import dns.asyncresolver
        import dns.resolver

        try:
            resolver = dns.asyncresolver.Resolver(str(self._resolv_conf), configure=self._nameservers is None)
        except ValueError as error:  # a line of resolv.conf is not an address, or not text
            raise dns.resolver.NoResolverConfiguration from error
        if self._nameservers is not None:
            resolver.nameservers = list(self._nameservers)
        resolver.port = self._port
        resolver.lifetime = self._lifetime
        return resolver


def _hosts_addresses(name: str, path: Path) -> tuple[Address, ...]:
    """Return every address that a hosts(5) file has for a canonical name, in file order.

    A file that does not exist or cannot be read counts as empty. Raises TargetError ``target_unresolvable`` if a line
    for this name does not begin with a canonical address: to skip the line would scan less than the operator wrote.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ()
    found: list[Address] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if name not in (word.lower() for word in words[1:]):
            continue
        address = _canonical_address(words[0])
        if address is None:
            raise _unresolvable(
                name, f"line {number} of {path} begins with {quoted(words[0])}, which is not a canonical address"
            )
        found.append(address)
    return tuple(found)


def _canonical_address(word: str) -> Address | None:
    """Return the address in ``word``, or None if it has a zone id or a form that a target may not have."""
    try:
        network = read_target(word).network
    except RefusedError:
        return None
    return None if network is None or "/" in word else network.network_address


def _why(error: Exception) -> str:
    """Return the reason, without the library's list of servers and ports."""
    import dns.resolver

    if isinstance(error, dns.resolver.LifetimeTimeout):
        return "no name server answered in time"
    if isinstance(error, dns.resolver.NoResolverConfiguration):
        return "this host has no usable name server configured"
    return "the name servers gave no usable answer"


def _unresolvable(name: str, why: str) -> TargetError:
    return TargetError(f"{name} cannot be resolved: {why}.", code="target_unresolvable", parameter="target")
