"""The signing key of a log: created with the first checkpoint, kept in ``audit.key`` with mode 0600."""

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
    """Return the signing key, or None if there is none. Raises OSError, and PlatformError if it cannot be used."""
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
            raise PlatformError(f"Other users can read the audit key {path}.", hint=f"Run 'chmod 600 {path}'.")
        pem = file.read(4096)
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise PlatformError(f"The audit key {path} is not an Ed25519 key.", hint="Restore the key of this log.")
    return key


def make_key(folder: Path) -> Ed25519PrivateKey:
    """Create the signing key of a new log. Raises OSError; then there is no key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    replace_file(folder, KEY, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def public_key(folder: Path) -> VerifierKey:
    """Return the public half of the key in a folder. Raises NotFoundError if there is no key, and PlatformError."""
    try:
        key = load_key(folder)
    except OSError as error:
        raise PlatformError(f"The audit key in {folder} cannot be read: {error.strerror}.") from error
    if key is None:
        raise NotFoundError(
            f"There is no audit key in {folder} yet.",
            hint="It is created with the first checkpoint. Run 'mcp-network-tools audit checkpoint' to make one now.",
        )
    return verifier_of(key)


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Replace a small file by renaming a new one, which is synced and has mode 0600. Raises OSError."""
    fresh = folder / f"{name}.new"
    descriptor = open_regular(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(folder / name)
