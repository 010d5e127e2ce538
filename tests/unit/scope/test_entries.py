"""The fast path for entries reads nothing differently from the strict grammar of targets."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server.errors import ConfigError, RefusedError
from mcp_server.scope.address_ranges import network_of
from mcp_server.scope.entries import Entries, RepeatedEntryError, Terms, canonical_network, read_entry
from mcp_server.scope.reading import read_target
from tests.bad_targets import BAD_TARGETS

_PART = st.sampled_from(
    ["0", "1", "10", "255", "256", "010", "0x1", "", " ", "٣", "1e1", "-1", "00", "fd77", "ffff", "FD77"]
)
NASTY = st.one_of(
    st.text(max_size=20),
    st.text(alphabet="0123456789.:/abcdefxFD%[]-+ \n\0٣", max_size=24),
    st.builds(".".join, st.lists(_PART, min_size=1, max_size=5)),
    st.builds(":".join, st.lists(_PART, min_size=1, max_size=9)),
    st.builds("{}/{}".format, st.builds(".".join, st.lists(_PART, min_size=4, max_size=4)), _PART),
)
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
GOOD = st.one_of(ADDRESSES, st.builds("{}/{}".format, ADDRESSES, st.integers(0, 128)))


def agree(text: str) -> bool:
    """Return whether the fast path reads ``text``. If it does, the strict reader must give the same result."""
    plain = canonical_network(text)
    if plain is None:
        return False
    version, first, length, spelling = plain
    target = read_target(text)
    assert target.network == network_of(version, first, length)
    assert target.canonical == spelling
    return True


@pytest.mark.no_cover
@given(NASTY)
@settings(max_examples=3000, deadline=None)
def test_the_fast_path_reads_text_as_the_strict_reader_does(text: str) -> None:
    agree(text)


def test_the_fast_path_reads_canonical_addresses_and_networks() -> None:
    """The fast path is for files of 100,000 canonical addresses and networks."""
    seen: Counter[bool] = Counter()

    @given(GOOD)
    @settings(max_examples=600, deadline=None)
    def draw(text: str) -> None:
        taken = agree(text)
        try:
            canonical = read_target(text).canonical
            wanted = text in {canonical, f"{canonical}/32", f"{canonical}/128"}
        except RefusedError:
            wanted = False
        seen[taken] += 1
        assert taken == wanted, "the fast path must read exactly the canonical spellings"

    draw()
    assert seen[True] > 100
    assert seen[False] > 100


@pytest.mark.parametrize("text", [text for _, text, _ in BAD_TARGETS])
def test_the_fast_path_reads_no_bad_target(text: str) -> None:
    try:
        agree(text)
    except RefusedError:
        pytest.fail("read by the short way, refused by the strict one")


@pytest.mark.parametrize(
    "text",
    ["::ffff:10.0.0.1", "::ffff:a00:1", "::ffff:0:0/96", "::10.0.0.1", "10.0.0.1/24", "10.0.0.0/024", "10.0.0.0/"],
)
def test_text_that_only_other_parsers_accept_is_left_to_the_strict_reader(text: str) -> None:
    assert canonical_network(text) is None


def test_a_repeated_entry_is_named_with_the_line_it_repeats() -> None:
    entries = Entries()
    entries.add("RFC1918", Terms(), 3)
    for text, words in (
        ("rfc1918", "RFC1918 repeats the entry RFC1918 (line 3)"),
        ("10.0.0.0/8", "10.0.0.0/8 repeats the entry RFC1918"),
    ):
        with pytest.raises(RepeatedEntryError) as caught:
            entries.add(text, Terms(), 9)
        assert words in caught.value.message
    entries.add("127.0.0.0/8", Terms(), 4)
    with pytest.raises(
        RepeatedEntryError, match=r"loopback contains 127\.0\.0\.0/8, which the entry 127\.0\.0\.0/8 \(line 4\)"
    ):
        entries.add("loopback", Terms(), 9)
    entries.add("10.0.0.0/9", Terms(), 5)
    assert entries.spellings == ["RFC1918", "127.0.0.0/8", "10.0.0.0/9"]


@pytest.mark.parametrize(
    "text", ["all", "private", "RFC4193", "localhost", "*", ".", "..", "a..b", "10.0.0.1/33", "\x1b[31m"]
)
def test_a_single_word_is_refused_also_if_names_are_entries(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_entry(text, exact_names=True)
    assert "\x1b" not in caught.value.message
    assert "host.lab.internal for that name alone" in caught.value.hint
