"""One port that a scan of the lab must find open (see `truth`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Certificate:
    """The certificate of a TLS port. All certificates of the lab are self-signed."""

    common_name: str
    expired: bool


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One open port.

    ``product`` and ``version`` are what nmap -sV prints. None means that the tests expect no particular value, because
    the result of nmap is not stable. ``version`` "" means that nmap knows the product and prints no version. ``state``
    is the most exact state that a scanner can find. ``ipv6`` is false if the daemon listens only on IPv4.
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
        """The usual notation of the port: ``80/tcp``."""
        return f"{self.port}/{self.transport}"
