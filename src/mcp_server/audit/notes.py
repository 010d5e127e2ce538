r"""The text form of checkpoints: C2SP signed notes (tlog-checkpoint, signed-note), and the keys that verify them.

A checkpoint is three lines, a blank line and a signature::

    mcp-network-tools/audit/4f1c…            origin: the log, named after its key
    1234                                     number of records that it covers
    q83v…=                                   the root of the tree over them, base64

    — mcp-network-tools/audit/4f1c… 3q2+7w…  name of the key, base64 of its id and the Ed25519 signature

The signature covers the text up to and including the newline before the blank line.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mcp_server.errors import ArgumentError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_ED25519: Final = b"\x01"
_SIGNATURE_BYTES: Final = 4 + 64
_ORIGIN: Final = "mcp-network-tools/audit/"
_NOTE: Final = re.compile(
    r"^(?P<text>(?P<origin>[^\s+]{1,200})\n(?P<size>0|[1-9]\d{0,18})\n(?P<root>[A-Za-z0-9+/]{43}=)\n)\n"
    r"(?P<signatures>(?:— [^\s+]{1,200} [A-Za-z0-9+/=]{1,200}(?:\n|\Z)){1,16})",
    re.MULTILINE,
)
_SHIPPED: Final = re.compile(r'audit-checkpoint: (?P<json>"(?:[^"\\]|\\.){1,4096}")')


@dataclass(frozen=True, slots=True)
class Note:
    """A checkpoint that was found in a text and not verified yet. ``text`` is the signed part of ``whole``."""

    whole: str
    text: str
    origin: str
    size: int
    root: bytes
    signatures: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """The public half of a log's key: its name, and 32 bytes of Ed25519."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        """The four bytes before each signature that identify the key (C2SP signed-note)."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    def __str__(self) -> str:
        """Return the key as one word, ``name+id+key``."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"

    @classmethod
    def of(cls, public: bytes) -> VerifierKey:
        """Return the key of one of this project's logs. Its name is derived from the key."""
        return cls(_ORIGIN + hashlib.sha256(public).hexdigest()[:16], public)

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Parse the form that `__str__` returns. Raises ArgumentError."""
        name, _, rest = text.strip().partition("+")
        identity, _, encoded = rest.partition("+")
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            data = b""
        key = cls(name, data[1:])
        if len(data) != 33 or data[:1] != _ED25519 or key.id.hex() != identity.lower():
            raise ArgumentError(
                "This is not the public key of an audit log.",
                hint="Give the line that 'mcp-network-tools audit show-key' prints, or a file that holds it.",
            )
        return key

    def signed(self, note: Note) -> bool:
        """Return whether this key signed the note under its own name and origin."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        if note.origin != self.name:
            return False
        public = Ed25519PublicKey.from_public_bytes(self.public)
        for name, signature in note.signatures:
            if name == self.name and signature[:4] == self.id:
                try:
                    public.verify(signature[4:], note.text.encode())
                except InvalidSignature:
                    return False
                return True
        return False


def sign(private: Ed25519PrivateKey, size: int, root: bytes) -> str:
    """Return the signed checkpoint of a tree of ``size`` records."""
    key = verifier_of(private)
    text = f"{key.name}\n{size}\n{base64.b64encode(root).decode()}\n"
    signature = base64.b64encode(key.id + private.sign(text.encode())).decode()
    return f"{text}\n— {key.name} {signature}\n"


def verifier_of(private: Ed25519PrivateKey) -> VerifierKey:
    """Return the public half of a signing key."""
    return VerifierKey.of(private.public_key().public_bytes_raw())


def as_log_line(note: str) -> str:
    """Return a note as one line of printable ASCII for a system log. `find_notes` reads it back."""
    return f"audit-checkpoint: {json.dumps(note)}"


def find_notes(text: str) -> list[Note]:
    """Return every checkpoint in a text, in order. The text holds notes, or lines of a system log with notes in them.

    A note whose signature is incomplete is skipped.
    """
    shipped = [json.loads(found["json"]) for found in _SHIPPED.finditer(text) if _is_json(found["json"])]
    notes = [_read(found) for part in (text, *shipped) for found in _NOTE.finditer(part)]
    return [note for note in notes if any(len(signature) == _SIGNATURE_BYTES for _, signature in note.signatures)]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _read(found: re.Match[str]) -> Note:
    signatures = []
    for line in found["signatures"].splitlines():
        _, name, encoded = line.split(" ")
        try:
            signatures.append((name, base64.b64decode(encoded, validate=True)))
        except (binascii.Error, ValueError):
            signatures.append((name, b""))
    root = base64.b64decode(found["root"])
    return Note(found[0], found["text"], found["origin"], int(found["size"]), root, tuple(signatures))
