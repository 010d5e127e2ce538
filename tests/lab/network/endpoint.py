"""One open port, as the truth knows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Certificate:
    """The certificate a TLS port shows. All of the lab's are self-signed."""

    common_name: str
    expired: bool


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One open port.

    ``product`` and ``version`` are what nmap -sV prints; None means that the truth makes no statement, because nmap
    has no stable answer there. ``version`` "" means that nmap knows the product and prints no version. ``state`` is the
    most a scanner can know of the port. ``ipv6`` is false where the daemon listens on IPv4 only.
    """

    transport: str
    port: int
    service: str
    product: str | None = None
    version: str | None = None
    tunnel: str = ""
    certificate: Certificate | None = None
    ipv6: bool = True
    state: str = "open"

    @property
    def key(self) -> str:
        """The port as people write it: ``80/tcp``."""
        return f"{self.port}/{self.transport}"
