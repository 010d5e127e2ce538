"""Makes services for tests."""

from __future__ import annotations

from mcp_server.model.host import Service, ServiceText, VersionProbe


def make_service(
    name: str = "",
    product: str = "",
    version: str = "",
    *,
    extra_info: str = "",
    tunnel: str = "",
    hostname: str = "",
    os_type: str = "",
    method: str = "",
    conf: int = 0,
    cpe: tuple[str, ...] = (),
    odd_name: str = "",
) -> Service:
    """Return a service with the texts of its version probe. ``odd_name`` is a name that nmap's table does not have."""
    probe = VersionProbe(odd_name, product, version, extra_info, hostname, os_type, cpe)
    return Service(name, tunnel, method, conf, ServiceText(probe))
