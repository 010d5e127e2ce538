"""Looking a name up once: in the hosts file or by DNS, without search domains, and with evidence of the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from mcp_server.errors import TargetError
from mcp_server.model.target import Evidence
from mcp_server.scope.hosts import addresses_of

if TYPE_CHECKING:
    import dns.asyncresolver
    import dns.resolver

    from mcp_server.scope.policy import ScopePolicy

HOSTS_FILE: Final = Path("/etc/hosts")
RESOLV_CONF: Final = Path("/etc/resolv.conf")
LIFETIME_SEC: Final = 5.0
"""How long one question may take over all name servers and retries, in seconds."""

Address = IPv4Address | IPv6Address


class Resolver(Protocol):
    """Turns a canonical name into all of its addresses."""

    async def lookup(self, name: str) -> Evidence:
        """Return every A and AAAA answer; raise TargetError (``target_unresolvable``) where there is none."""
        ...


class CachingResolver:
    """A resolver that asks another one once for each name, so that two looks at one call see one answer."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._answers: dict[str, asyncio.Task[Evidence]] = {}

    async def lookup(self, name: str) -> Evidence:
        """Return what the first lookup of ``name`` came to, or raise what it raised."""
        if name not in self._answers:
            self._answers[name] = asyncio.ensure_future(self._resolver.lookup(name))
        return await asyncio.shield(self._answers[name])


class SystemResolver:
    """The host's own view of a name: ``/etc/hosts`` first, then the name servers of ``/etc/resolv.conf``.

    ``nameservers`` (addresses) replaces those of ``resolv_conf``; ``hosts_file`` None means no such file. A name
    in the hosts file is not asked of DNS, as ``hosts: files dns`` in nsswitch.conf(5) has it. DNS gets one A and one
    AAAA question for the absolute name, a second server only where the first is silent or broken. CNAMEs are
    followed inside the answer, which a recursive server completes (RFC 1034 section 5.3.3). ``lifetime`` is in seconds.
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
        """The resolver of a policy: the servers it names and nothing else, or else the host's own view."""
        if not policy.resolvers:
            return cls()
        return cls([str(address) for address in policy.resolvers], hosts_file=None)

    async def lookup(self, name: str) -> Evidence:
        """Return every address of ``name``, IPv4 first.

        A question that times out or fails at the server refuses the name even where the other one was
        answered: half of an answer is not the host. NXDOMAIN for one type only counts as no address of it.
        """
        if self._hosts_file is not None:
            listed = await asyncio.to_thread(addresses_of, name, self._hosts_file)
            if listed:
                return Evidence(name, listed, source=str(self._hosts_file))
        if self._nameservers is not None and not self._nameservers:
            raise _unresolvable(
                name, "the guard lets questions pass to 'resolvers' of the policy file only; it has none"
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
        # Importing dnspython and reading resolv.conf both touch the disk; the event loop need not wait.
        resolver = await asyncio.to_thread(self._configured)
        # Both questions end before a failure of either is raised, so none is left running behind the caller.
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

        try:  # the final dot makes the name absolute: no search domain is ever added
            return await resolver.resolve(f"{name}.", kind, raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN:
            return None

    def _configured(self) -> dns.asyncresolver.Resolver:
        import dns.asyncresolver
        import dns.resolver

        try:
            resolver = dns.asyncresolver.Resolver(str(self._resolv_conf), configure=self._nameservers is None)
        except ValueError as error:  # a line of resolv.conf that is not an address, or not text
            raise dns.resolver.NoResolverConfiguration from error
        if self._nameservers is not None:
            resolver.nameservers = list(self._nameservers)
        resolver.port = self._port
        resolver.lifetime = self._lifetime
        return resolver


def _why(error: Exception) -> str:
    """A sentence without the library's transcript of servers and ports."""
    import dns.resolver

    if isinstance(error, dns.resolver.LifetimeTimeout):
        return "no name server answered in time"
    if isinstance(error, dns.resolver.NoResolverConfiguration):
        return "this host has no usable name server configured"
    return "the name servers gave no usable answer"


def _unresolvable(name: str, why: str) -> TargetError:
    return TargetError(f"{name} cannot be resolved: {why}", code="target_unresolvable", parameter="target")
