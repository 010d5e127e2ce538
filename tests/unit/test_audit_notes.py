"""Notes: the C2SP form of checkpoints and keys, found in files and in system logs."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mcp_server.audit.notes import Note, VerifierKey, as_log_line, find_notes, sign, verifier_of
from mcp_server.errors import ArgumentError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ROOT = bytes(range(100, 132))

# The key, text and signature in the documentation of Go's golang.org/x/mod/sumdb/note.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="


def test_a_key_and_a_signature_of_the_reference_implementation_verify() -> None:
    key = VerifierKey.parse(GO_KEY)
    assert str(key) == GO_KEY
    signatures = (("PeterNeumann", base64.b64decode(GO_SIGNATURE)),)
    assert key.signed(Note("", GO_TEXT, "PeterNeumann", 0, b"", signatures))
    assert not key.signed(Note("", GO_TEXT + "\n", "PeterNeumann", 0, b"", signatures))


def test_a_checkpoint_has_the_form_of_a_signed_note() -> None:
    text = sign(KEY, 1234, ROOT)
    lines = text.split("\n")
    assert lines[0].startswith("mcp-network-tools/audit/")
    assert lines[1:4] == ["1234", base64.b64encode(ROOT).decode(), ""]
    assert lines[4].startswith(f"\u2014 {lines[0]} ")
    assert lines[5:] == [""]


def test_notes_are_found_in_a_file_and_in_a_system_log() -> None:
    first, second = sign(KEY, 1, ROOT), sign(KEY, 2, ROOT)
    in_file = find_notes(f"{first}\n{second}")
    line = as_log_line(second)
    assert line.isascii()
    assert line.isprintable()
    in_syslog = find_notes(f"Jan  1 00:00:00 host mcp-network-tools[1]: {line}\nJan  1 another line\n")
    assert [note.size for note in in_file] == [1, 2]
    assert [note.whole for note in in_syslog] == [second]
    assert all(verifier_of(KEY).signed(note) for note in (*in_file, *in_syslog))


def test_a_note_after_an_incomplete_one_is_found() -> None:
    whole = sign(KEY, 7, ROOT)
    for cut in range(len(whole)):
        found = find_notes(f"{whole[:cut]}\n\n{whole}")
        assert found[-1].whole == whole
        assert all(note.whole == whole or not verifier_of(KEY).signed(note) for note in found)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("1234", "1235", 1),
        lambda text: text.replace(base64.b64encode(ROOT).decode(), base64.b64encode(ROOT[::-1]).decode()),
        lambda text: text.replace("audit/", "other/"),
        lambda text: text.replace("audit/", "other/", 1),
        lambda text: text[:-8] + "AAAAAA=\n",
    ],
    ids=["size", "root", "name", "origin", "signature"],
)
def test_the_signature_of_a_changed_note_is_invalid(change: object) -> None:
    assert callable(change)
    (note,) = find_notes(change(sign(KEY, 1234, ROOT)))
    assert not verifier_of(KEY).signed(note)


def test_another_key_does_not_verify_a_note() -> None:
    other = verifier_of(Ed25519PrivateKey.from_private_bytes(bytes(32)))
    (note,) = find_notes(sign(KEY, 5, ROOT))
    assert not other.signed(note)
    # Neither does another key under the same name.
    assert not VerifierKey(note.origin, other.public).signed(note)


@pytest.mark.parametrize(
    "text",
    ["", "a+b", "a+00000000+AQ==", "+" * 9, GO_KEY[:-4], GO_KEY.replace("c74f", "c75f"), GO_KEY.replace("Pe", "Pa")],
)
def test_text_that_is_not_a_key_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ArgumentError, match="public key") as caught:
        VerifierKey.parse(text)
    assert "show-key" in caught.value.hint
