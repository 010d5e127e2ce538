"""The signing key of a log: made at the first checkpoint, kept in ``audit.key``, mode 0600."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mcp_server.audit.files import open_regular
from mcp_server.audit.notes import VerifierKey, verifier_of
from mcp_server.errors import NotFoundError, PlatformError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY: Final = "audit.key"


def load_key(folder: Path) -> Ed25519PrivateKey | None:
    """The signing key, or None where there is none; raises OSError, and PlatformError for one that cannot be used."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = folder / KEY
    try:
        descriptor = open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
            raise PlatformError(f"the audit key {path} can be read by others", hint=f"chmod 600 {path}")
        pem = file.read(4096)
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise PlatformError(f"the audit key {path} is no Ed25519 key", hint="Put the log's own key back there.")
    return key


def make_key(folder: Path) -> Ed25519PrivateKey:
    """Make the signing key of a new log; raises OSError. Whole or not at all: it is renamed into place."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    replace_file(folder, KEY, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def public_key(folder: Path) -> VerifierKey:
    """The public half of the key in a folder; raises NotFoundError where there is none, PlatformError."""
    try:
        key = load_key(folder)
    except OSError as error:
        raise PlatformError(f"the audit key in {folder} cannot be read: {error.strerror}") from error
    if key is None:
        raise NotFoundError(
            f"there is no audit key in {folder} yet",
            hint="It is made with the first checkpoint: 'mcp-network-tools audit checkpoint' makes one now.",
        )
    return verifier_of(key)


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Put a small file in place at once, synced, mode 0600; raises OSError."""
    fresh = folder / f"{name}.new"
    descriptor = open_regular(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(folder / name)
