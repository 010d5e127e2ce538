"""nginx, with and without TLS."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.lab.network.daemons import Daemon, folder, write
from tests.lab.network.programs import find
from tests.lab.network.services.certificates import make_certificate
from tests.lab.network.truth import LabHost, Truth

_BROKEN_TLS = "ssl_protocols TLSv1 TLSv1.1 TLSv1.2; ssl_ciphers ALL:@SECLEVEL=0;"


def web_daemons(truth: Truth) -> Iterable[Daemon]:
    """Yield one nginx for each host that has a web port."""
    for host in truth.hosts.values():
        if any(endpoint.product == "nginx" for endpoint in host.endpoints):
            yield _nginx(host)


def _nginx(host: LabHost) -> Daemon:
    home = folder(f"nginx-{host.name}")
    write(
        f"nginx-{host.name}/html/index.html",
        f"<html><head><title>{host.name}</title></head><body>{host.name}</body></html>\n",
    )
    servers = []
    ports = []
    for port, endpoint in host.open_ports("tcp").items():
        if endpoint.product != "nginx":
            continue
        ports.append(("tcp", port))
        tls = " ssl" if endpoint.certificate else ""
        listen = f"listen {port}{tls};" + (f" listen [::]:{port}{tls};" if endpoint.ipv6 else "")
        extra = ""
        if endpoint.certificate:
            files = make_certificate(endpoint.certificate)
            extra = f"ssl_certificate {files}.crt; ssl_certificate_key {files}.key;"
            extra += _BROKEN_TLS if endpoint.certificate.expired else ""
        servers.append(f"server {{ {listen} {extra} autoindex {'on' if port == 8080 else 'off'}; }}")
    return Daemon(f"nginx-{host.name}", host.name, _command(home, servers), ports)


def _command(home: Path, servers: Iterable[str]) -> list[str]:
    temporary = " ".join(
        f"{kind}_temp_path {home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = write(
        f"{home.name}/nginx.conf",
        f"""
worker_processes 1; user root; daemon off; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; root {home}/html; {temporary}
  {" ".join(servers)}
}}
""",
    )
    return [find("nginx"), "-e", f"{home}/error.log", "-p", str(home), "-c", str(configuration)]
