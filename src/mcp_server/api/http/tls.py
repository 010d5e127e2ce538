"""TLS for the HTTP interfaces: TLS 1.2 or later, and a client's certificate where the owner names who signs those."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mcp_server.errors import ConfigError
from mcp_server.operator_files.reading import OTHERS_ACCESS, FileRules, read_file

if TYPE_CHECKING:
    from mcp_server.config.sections import ServerConfig

_MAX_BYTES: Final = 4 * 1024 * 1024


def tls_context(settings: ServerConfig) -> ssl.SSLContext | None:
    """What the server speaks TLS with, or None where no certificate is set.

    Raises ConfigError that names the key: for a file that cannot be read or is none of its kind, a private key that
    others can read or that is not the certificate's.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _check("tls_cert", settings.tls_cert)
    _check("tls_key", settings.tls_key, OTHERS_ACCESS)
    try:
        # A passphrase would be asked for on the terminal: there is none to give it.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"server.tls_cert {settings.tls_cert} and server.tls_key {settings.tls_key} cannot be used together: "
            f"{_reason(error)}",
            hint="Both are PEM files, the key has no passphrase, and is the one of the first certificate.",
        ) from None
    if settings.tls_client_ca is not None:
        _check("tls_client_ca", settings.tls_client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"server.tls_client_ca {settings.tls_client_ca} cannot be used: {_reason(error)}",
                hint="It is a PEM file of the certificates that sign those of clients.",
            ) from None
    return context


def _check(key: str, path: Path, forbidden_mode: int = 0) -> None:
    """Raise ConfigError unless ``path`` is a file that OpenSSL can read for the setting ``key``."""
    hint = "Run 'chmod 600' on the file, and give it to the user of the server (in the kernel tier, guard.user)."
    read_file(path, FileRules(f"file of server.{key}", _MAX_BYTES, f"server.{key}", forbidden_mode, hint=hint))


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or type(error).__name__
