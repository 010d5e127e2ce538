"""TLS for the HTTP interfaces: TLS 1.2 or later, and client certificates if the operator names their authority."""

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
    """The TLS context of the server, or None if no certificate is configured.

    Raises ConfigError if a file cannot be read or parsed, if other users can read the private key, or if the key does
    not belong to the certificate. The error names the configuration key.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _check("server.tls_cert", settings.tls_cert)
    _check("server.tls_key", settings.tls_key, OTHERS_ACCESS)
    try:
        # Without this function, OpenSSL would ask for a passphrase on the terminal.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"server.tls_cert {settings.tls_cert} and server.tls_key {settings.tls_key} cannot be used together: "
            f"{_reason(error)}.",
            hint="Use PEM files. The key must have no passphrase, and belong to the first certificate.",
        ) from None
    if settings.tls_client_ca is not None:
        _check("server.tls_client_ca", settings.tls_client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"server.tls_client_ca {settings.tls_client_ca} cannot be used: {_reason(error)}.",
                hint="Use a PEM file with the certificates of the authorities that sign client certificates.",
            ) from None
    return context


def _check(key: str, path: Path, forbidden_mode: int = 0) -> None:
    """Raise ConfigError if the file of the setting ``key`` cannot be read, or its mode has a forbidden bit."""
    hint = "Change its owner to the user that runs the server (in the kernel tier guard.user), and its mode to 600."
    read_file(path, FileRules(f"file of {key}", _MAX_BYTES, key, forbidden_mode, hint=hint))


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or type(error).__name__
