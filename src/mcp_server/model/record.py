"""Hosts and runs as every interface shows them whole: the fields of `codec`, with the text of targets set apart.

What a target wrote stands only under a key ``from_target``. Each key there names where the text came from, and
everything below it is the target's: ``{"name": "http", "from_target": {"version_probe": {"product": "nginx"}}}``.
Outside of it stand the tool's own vocabulary, numbers, addresses and what the caller gave. Sources are
``version_probe``, ``script:NAME``, ``stdout``, ``stderr``.
"""

from __future__ import annotations

from typing import Any, Final

from mcp_server.model.codec import to_dict
from mcp_server.model.digest import HOST_COUNTS
from mcp_server.model.host import Host
from mcp_server.model.run import Run
from mcp_server.model.summary import is_service_name
from mcp_server.model.untrusted import FROM_TARGET, VERSION_PROBE

_SAID: Final = ("product", "version", "extra_info", "hostname", "os_type", "cpe")
"""Fields of a service that are taken from what the target answered; its name is the tool's own word for it."""


def host_record(host: Host) -> dict[str, Any]:
    """Return a host with all it holds; `mcp_server.model.codec.host_from_dict` reads it back."""
    record = to_dict(host)
    for port in record.get("ports", ()):
        if "service" in port:
            port["service"] = _service(port["service"])
        if "scripts" in port:
            port["scripts"] = [_script(script) for script in port["scripts"]]
    if "scripts" in record:
        record["scripts"] = [_script(script) for script in record["scripts"]]
    return record


def run_record(run: Run) -> dict[str, Any]:
    """Return a run with all it holds; what it wrote on standard error may repeat a target's words."""
    record = to_dict(run)
    counts = record.pop("counts", {})
    record |= {name: counts.get(name, 0) for name in HOST_COUNTS}
    stderr = record.pop("stderr", "")
    if stderr:
        record[FROM_TARGET] = {"stderr": stderr}
    return record


def _service(service: dict[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {key: service.pop(key) for key in _SAID if key in service}
    if not is_service_name(service["name"]):
        said["name"] = service.pop("name")
    if said:
        service[FROM_TARGET] = {VERSION_PROBE: said}
    return service


def _script(script: dict[str, Any]) -> dict[str, Any]:
    return {"id": script["id"], FROM_TARGET: {f"script:{script['id']}": script["output"]}}
