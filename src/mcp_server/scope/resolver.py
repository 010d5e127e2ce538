"""Looking a name up: the hosts file first, then DNS, once, without search domains."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from mcp_server.errors import TargetError
from mcp_server.scope.hosts import addresses_of

if TYPE_CHECKING:
    import dns.asyncresolver

HOSTS_FILE: Final = Path("/etc/hosts")
RESOLV_CONF: Final = Path("/etc/resolv.conf")
LIFETIME_SEC: Final = 5.0
"""How long one question may take over all name servers and retries, in seconds."""

Address = IPv4Address | IPv6Address


class Resolver(Protocol):
    """Turns a canonical name into all of its addresses."""

    async def lookup(self, name: str) -> tuple[Address, ...]:
        """Return every A and AAAA answer; raise TargetError (``target_unresolvable``) where there is none."""
        ...


class SystemResolver:
    """The host's own view of a name: ``/etc/hosts`` first, then the name servers of ``/etc/resolv.conf``.

    ``nameservers`` (addresses) replaces those of ``resolv_conf``; ``hosts_file`` None means no such file. A name
    in the hosts file is not asked of DNS, as ``hosts: files dns`` in nsswitch.conf(5) has it. DNS gets exactly one
    A and one AAAA question for the absolute name; CNAMEs are followed inside the answer, which a recursive
    server completes (RFC 1034 section 5.3.3). ``lifetime`` is in seconds.
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

    async def lookup(self, name: str) -> tuple[Address, ...]:
        """Return every address of ``name``, IPv4 first.

        A question that times out or fails at the server refuses the name even where the other one was
        answered: half of an answer is not the host. NXDOMAIN for one type only counts as no address of it.
        """
        if self._hosts_file is not None:
            listed = await asyncio.to_thread(addresses_of, name, self._hosts_file)
            if listed:
                return listed
        from dns.exception import DNSException

        try:
            found = await self._question(name)
        except DNSException as error:
            raise _unresolvable(name, _why(error)) from error
        if not found:
            raise _unresolvable(name, "it does not exist or has no address")
        return found

    async def _question(self, name: str) -> tuple[Address, ...]:
        # Importing dnspython and reading resolv.conf both touch the disk; the event loop need not wait.
        resolver = await asyncio.to_thread(self._configured)
        # Both questions end before a failure of either is raised, so none is left running behind the caller.
        answers = await asyncio.gather(
            self._ask(resolver, name, "A"), self._ask(resolver, name, "AAAA"), return_exceptions=True
        )
        found: list[Address] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            found += answer
        return tuple(found)

    async def _ask(self, resolver: dns.asyncresolver.Resolver, name: str, kind: str) -> tuple[Address, ...]:
        import dns.resolver

        try:  # the final dot makes the name absolute: no search domain is ever added
            answer = await resolver.resolve(f"{name}.", kind, raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN:
            return ()
        return tuple(ip_address(record.address) for record in answer.rrset or ())

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
