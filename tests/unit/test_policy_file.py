"""The policy file: its content, the messages about mistakes, its permissions, and its hash."""

from __future__ import annotations

import os
import time
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_server.errors import ConfigError
from mcp_server.model.run import Risk
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.policy_file import MAX_BYTES

GOOD = """\
version: 1
name: Berlin
defaults: {max_risk: probe, packets_per_second: 300, windows: [office]}
windows:
  office: {days: mon-fri, from: 09:00, to: 17:30, timezone: Europe/Berlin}
  nights: {days: [fri, sat-mon], from: "22:00", to: "06:00"}
allow:
  - RFC1918
  - 192.0.2.7          # one host
  - network: 198.51.100.0/24
    max_risk: intrusive
    windows: [nights]
  - entries: [203.0.113.0/24, "fd77::", .Lab.Internal.]
    packets_per_second: 0.5
  - name: one.corp.example
exclude: [10.0.0.13, .hr.lab.internal, printer.lab.internal]
limits:
  addresses_x_ports: 1000000
  packets_per_run: 2000000
  packets_per_hour: 5000000
  packets_per_second: 1000.5
resolvers: [10.0.0.53, "FD77:0::53"]
"""


def write(folder: Path, text: str | bytes, mode: int = 0o600) -> Path:
    file = folder / "policy.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    file.chmod(mode)
    return file


def refusal(folder: Path, text: str | bytes, mode: int = 0o600) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        ScopePolicy.from_file(write(folder, text, mode))
    error = caught.value
    assert str(folder) in error.message
    assert error.hint
    assert error.message.isprintable()
    return error


def test_a_whole_policy_is_read(tmp_path: Path) -> None:
    policy = ScopePolicy.from_file(write(tmp_path, GOOD))
    assert (policy.name, policy.source) == ("Berlin", str(tmp_path / "policy.yaml"))
    assert policy.entries == (
        "RFC1918", "192.0.2.7", "198.51.100.0/24", "203.0.113.0/24", "fd77::", ".lab.internal", "one.corp.example",
    )  # fmt: skip
    assert policy.exclusions == ("10.0.0.13", ".hr.lab.internal", "printer.lab.internal")
    lines = {entry.text: entry for entry in policy.policy_entries(99)}
    assert [lines[entry].line for entry in policy.entries] == [8, 9, 10, 13, 13, 13, 15]
    default = lines["RFC1918"].terms
    assert (default.max_risk, default.packets_per_second, default.windows) == (Risk.PROBE, 300, ("office",))
    own = lines["198.51.100.0/24"].terms
    assert (own.max_risk, own.packets_per_second, own.windows) == (Risk.INTRUSIVE, 300, ("nights",))
    assert lines["203.0.113.0/24"].terms.packets_per_second == 0.5
    name = lines[".lab.internal"].terms
    assert (name.max_risk, name.packets_per_second, name.windows) == (Risk.INTRUSIVE, 0.5, ())
    assert policy.limits.packets_per_second == 1000.5
    assert policy.limits.packets_per_hour == 5_000_000
    assert policy.resolvers == (ip_address("10.0.0.53"), ip_address("fd77::53"))
    assert str(policy.windows["office"]) == "mon, tue, wed, thu, fri 09:00-17:30 Europe/Berlin"
    assert str(policy.windows["nights"]) == "mon, fri, sat, sun 22:00-06:00 UTC"


def test_the_example_of_the_documentation_is_a_policy(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/policy.md").read_text()
    policy = ScopePolicy.from_file(write(tmp_path, page.partition("```yaml\n")[2].partition("```")[0]))
    assert (policy.name, len(policy.entries), len(policy.exclusions)) == ("Berlin office", 7, 3)
    assert policy.check_network(ip_network("10.40.0.1")).max_risk == Risk.INTRUSIVE
    assert not policy.check_name("hr.corp.example").allowed


def test_both_parsers_of_pyyaml_give_the_same_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML has no C parser if it was built without libyaml."""
    file = write(tmp_path, GOOD)
    quick = ScopePolicy.from_file(file)
    monkeypatch.delattr("yaml.CSafeLoader")
    slow = ScopePolicy.from_file(file)
    assert (slow.hash, slow.policy_entries(99)) == (quick.hash, quick.policy_entries(99))
    for text, line, words in (
        ("version: 1\nallow:\n  -\n", 3, "not nothing"),
        ("version: 1\nallow: [*a]\n", 2, "an alias (*)"),
        ("version: 1\nallow: [\n", 3, "not YAML"),
        ("version: 1\nallow: " + "[" * 5000, 2, "nested more than"),
    ):
        error = refusal(tmp_path, text)
        assert f"line {line}: " in error.message
        assert words in error.message


def test_only_the_version_and_the_allow_list_are_required(tmp_path: Path) -> None:
    for text in ("version: 1\nallow: []\n", "version: 1\nallow:\n", "version: 1\nallow:\n#  - 10.0.0.0/8\nexclude:\n"):
        policy = ScopePolicy.from_file(write(tmp_path, text))
        assert policy.entries == ()
        assert not policy.check_network(ip_network("10.0.0.1")).allowed
    policy = ScopePolicy.from_file(write(tmp_path, "version: 1\nallow: [10.0.0.0/8]\n"))
    assert policy.check_network(ip_network("10.0.0.1")).max_risk == Risk.SCAN, "intrusive must not be a default"


def test_times_and_words_of_yaml_stay_text(tmp_path: Path) -> None:
    """In YAML 1.1, 22:00 is 1320, and `no` and `off` are False."""
    text = "version: 1\nname: no\nallow: [10.0.0.0/8]\nwindows: {off: {from: 22:00, to: 23:30}}\n"
    policy = ScopePolicy.from_file(write(tmp_path, text))
    assert policy.name == "no"
    assert str(policy.windows["off"]) == "daily 22:00-23:30 UTC"


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    policy = ScopePolicy.from_file(write(tmp_path, b"\xef\xbb\xbfversion: 1\r\nallow:\r\n  - 10.0.0.0/8\r\n"))
    assert policy.entries == ("10.0.0.0/8",)
    assert policy.policy_entries(1)[0].line == 3


HEAD = "version: 1\nallow: [10.0.0.0/8]\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "the file is empty"),
        ("# only this\n", 1, "the file is empty"),
        ("- 10.0.0.0/8\n", 1, "a policy must be a mapping"),
        ("allow: [10.0.0.0/8]\n", 1, "begin with 'version: 1'"),
        ("version: 2\nallow: []\n", 1, "begin with 'version: 1'"),
        ("version: 1\n", 1, "no key 'allow'"),
        (HEAD + "exclud: [10.0.0.1]\n", 3, "has no key 'exclud'"),
        (HEAD + "allow: [10.1.0.0/16]\n", 3, "the key 'allow' occurs twice, first in line 2"),
        (HEAD + "limits: {packets_per_run: 1, packets_per_run: 2}\n", 3, "occurs twice"),
        ("version: 1\nallow: 10.0.0.0/8\n", 2, "allow must be a list, not '10.0.0.0/8'"),
        ("version: 1\nallow: {10.0.0.0/8: scan}\n", 2, "allow must be a list, not a mapping"),
        ("version: 1\nallow:\n  - 10.0.0.1/8\n", 3, "host bits"),
        ("version: 1\nallow:\n  - 10.0.0.0/8\n  - 010.0.0.0/8\n", 4, "not a canonical IPv4"),
        ("version: 1\nallow:\n  - 10.0.0.0/8\n  - rfc1918\n", 4, "the entry 10.0.0.0/8 (line 3) contains too"),
        ("version: 1\nallow:\n  - 10.0.0.0/8\n  - 10.0.0.0/8\n", 4, "10.0.0.0/8 repeats the entry 10.0.0.0/8 (line 3)"),
        ("version: 1\nallow:\n  - all\n", 3, "'all' is not a scope entry"),
        ("version: 1\nallow:\n  -\n", 3, "not nothing"),
        ("version: 1\nallow:\n  - [10.0.0.0/8]\n", 3, "an entry of allow must be a mapping"),
        ("version: 1\nallow:\n  - fd77::\n", 3, "has no key 'fd77:'"),
        ("version: 1\nallow:\n  - {network: 10.0.0.0/8, max_risk: high}\n", 3, "max_risk must be one of passive"),
        ("version: 1\nallow:\n  - {network: 10.0.0.0/8, max_risk: }\n", 3, "max_risk must be a text, not nothing"),
        ("version: 1\nallow:\n  - {network: 10.0.0.0/8, maxrisk: scan}\n", 3, "has no key 'maxrisk'"),
        ("version: 1\nallow:\n  - {network: 10.0.0.0/8, name: .a.b}\n", 3, "exactly one of"),
        ("version: 1\nallow:\n  - {max_risk: scan}\n", 3, "exactly one of"),
        ("version: 1\nallow:\n  - {network: .lab.internal}\n", 3, "is not a network"),
        ("version: 1\nallow:\n  - {name: 10.0.0.1}\n", 3, "is not a name"),
        ("version: 1\nallow:\n  - {network: [10.0.0.0/8]}\n", 3, "not a list"),
        ("version: 1\nallow:\n  - {network: 10.0.0.0/8, windows: [night]}\n", 3, "no window 'night'"),
        ("version: 1\nallow:\n  - {network: 10.0.0.0/8, windows: night}\n", 3, "windows must be a list of names"),
        ("version: 1\nallow:\n  - {network: 10.0.0.0/8, windows: }\n", 3, "list of names, not nothing"),
        ("version: 1\nallow:\n  - {network: 10.0.0.0/8, packets_per_second: 0}\n", 3, "from 0.1"),
        ("version: 1\nallow:\n  - {network: 10.0.0.0/8, packets_per_second: 1e3}\n", 3, "from 0.1"),
        (HEAD + "exclude: [.]\n", 3, "'.' is not a scope entry"),
        (HEAD + "exclude:\n  - {network: 10.0.0.1}\n", 4, "an entry must be an address"),
        (HEAD + "limits: {addresses_x_ports: -1}\n", 3, "addresses_x_ports must be a whole number from 1"),
        (HEAD + "limits: {packets_per_run: '1_000'}\n", 3, "packets_per_run must be a whole number"),
        (HEAD + "limits: {packets_per_hour: 99999999999999999999}\n", 3, "packets_per_hour must be a whole number"),
        (HEAD + "limits: {packets_per_run: }\n", 3, "not nothing"),
        (HEAD + "limits: 5\n", 3, "limits must be a mapping"),
        (HEAD + "windows: {w: {from: 22:00}}\n", 3, "has no key 'to'"),
        (HEAD + "windows: {w: {from: 25:00, to: 06:00}}\n", 3, "clock time"),
        (HEAD + "windows: {w: {from: 9:00, to: 17:00}}\n", 3, "clock time"),
        (HEAD + "windows: {w: {from: 06:00, to: 06:00}}\n", 3, "never open"),
        (HEAD + "windows: {w: {from: 24:00, to: 06:00}}\n", 3, "never open"),
        (HEAD + "windows: {w: {from: 06:00, to: 07:00, days: monday}}\n", 3, "days must be mon, tue"),
        (HEAD + "windows: {w: {from: 06:00, to: 07:00, days: []}}\n", 3, "names no day"),
        (HEAD + "windows: {w: {from: 06:00, to: 07:00, timezone: Europe/Berln}}\n", 3, "no time zone"),
        (HEAD + "windows: {w: {from: 06:00, to: 07:00, timezone: ../../etc/passwd}}\n", 3, "no time zone"),
        (HEAD + "windows: {w: {from: 06:00, to: 07:00, timezone: Europe}}\n", 3, "no time zone"),
        (HEAD + "windows: {'a b': {from: 06:00, to: 07:00}}\n", 3, "a window's name"),
        (HEAD + "resolvers: [dns.lab.internal]\n", 3, "a resolver must be an address"),
        (HEAD + "resolvers: [10.0.0.0/24]\n", 3, "a resolver must be an address"),
        (HEAD + "resolvers: [169.254.169.253]\n", 3, "which no policy can allow"),
        (HEAD + "resolvers: [10.0.0.53, 10.0.0.53]\n", 3, "occurs twice"),
        (HEAD + f"resolvers: [{', '.join(f'10.0.0.{n}' for n in range(9))}]\n", 3, "more than 8"),
        (HEAD + "name: [a]\n", 3, "name must be a text"),
        (HEAD + f"name: {'x' * 81}\n", 3, "at most 80"),
        # features of YAML that are refused
        ("version: 1\nallow:\n\t- 10.0.0.0/8\n", 3, "not YAML"),
        ("version: 1\nallow: [10.0.0.0/8\n", 3, "not YAML"),
        ("version: 1\nallow: [10.0.0.0/8]\n...\n---\nversion: 1\n", 4, "second document"),
        ("version: 1\nallow: &a [10.0.0.0/8]\nexclude: *a\n", 2, "an anchor (&) is not supported"),
        ("version: 1\nallow: [*a]\n", 2, "an alias (*) is not supported"),
        ("version: 1\nallow: !!python/object/apply:os.system [id]\n", 2, "a tag (!) is not supported"),
        ("version: !!int 1\nallow: []\n", 1, "a tag (!) is not supported"),
        ("version: 1\nallow: []\n<<: {exclude: []}\n", 3, "merge keys (<<) are not supported"),
        ("version: 1\n? [a]\n: b\n", 2, "a key must be a single word"),
        ("version: 1\nallow: " + "[" * 40 + "]" * 40 + "\n", 2, "nested more than"),
        ('version: 1\nallow: ["10.0.0.0/8\\u202e"]\n', 2, "U+202E"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    error = refusal(tmp_path, text)
    assert error.code == "config_invalid"
    assert f"policy.yaml, line {line}: " in error.message
    assert words in error.message


def test_hints_name_the_nearest_word(tmp_path: Path) -> None:
    assert "Did you mean 'exclude'?" in refusal(tmp_path, HEAD + "exclud: []\n").hint
    assert (
        "'Europe/Berlin'"
        in refusal(tmp_path, HEAD + "windows: {w: {from: 06:00, to: 07:00, timezone: Europe/Berln}}").hint
    )
    assert 'in quotes: "fd77::"' in refusal(tmp_path, "version: 1\nallow:\n  - fd77::\n").hint
    windows = "windows: {nights: {from: 22:00, to: 06:00}}\n"
    assert (
        "'nights'" in refusal(tmp_path, f"version: 1\n{windows}allow: [{{network: 10.0.0.1, windows: [night]}}]\n").hint
    )


def test_yaml_bombs_are_refused_quickly(tmp_path: Path) -> None:
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    started = time.monotonic()
    for text in (f"version: 1\nl0: &l0 [x]\n{levels}", "[" * 200_000, "{a: " * 100_000, "? " * 100_000, "- " * 100_000):
        refusal(tmp_path, text)
    assert time.monotonic() - started < 10


def test_a_file_that_is_too_large_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    error = refusal(tmp_path, b"#" * (MAX_BYTES + 1))
    assert f"larger than {MAX_BYTES} bytes" in error.message


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    assert "not UTF-8" in refusal(tmp_path, b"version: 1\nname: \xff\n").message
    assert "not UTF-8" in refusal(tmp_path, "version: 1\nallow: []\n".encode("utf-16")).message
    assert "not YAML" in refusal(tmp_path, b"version: 1\nallow: [\x00]\n").message


def outcome(file: Path) -> str:
    """The error message, or the reason of a verdict on an address that no policy can allow."""
    try:
        return ScopePolicy.from_file(file).check_network(ip_network("169.254.169.254")).reason
    except ConfigError as error:
        return error.message


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_policy_or_a_configuration_error(tmp_path: Path, data: bytes) -> None:
    assert outcome(write(tmp_path, data)).isprintable()


@given(
    st.lists(
        st.sampled_from([*"version: 1\nalow[]{},&*!-'\"\\/0.#|>%@`?:", "\n  - ", "exclude", "windows"]),
        max_size=60,
    )
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_after_a_good_head_is_a_policy_or_a_configuration_error(tmp_path: Path, words: list[str]) -> None:
    assert outcome(write(tmp_path, "version: 1\nallow:\n  - 10.0.0.0/8\n" + "".join(words))).isprintable()


# permissions of the file


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602, 0o664])
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    error = refusal(tmp_path, HEAD, mode)
    assert f"can be written by users other than its owner (mode {mode:04o})" in error.message
    assert error.hint == f"Run 'chmod go-w {tmp_path / 'policy.yaml'}'."


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o444, 0o755])
def test_others_may_read_it(tmp_path: Path, mode: int) -> None:
    assert ScopePolicy.from_file(write(tmp_path, HEAD, mode)).entries == ("10.0.0.0/8",)


def test_a_folder_in_which_others_can_put_another_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    error = refusal(folder, HEAD)
    assert f"its folder {folder} has mode 0777" in error.message
    folder.chmod(0o1777)  # as /tmp: only the owner of a file can replace it
    assert ScopePolicy.from_file(folder / "policy.yaml").entries
    folder.chmod(0o755)
    outside = tmp_path / "link.yaml"
    outside.symlink_to(folder / "policy.yaml")
    assert ScopePolicy.from_file(outside).entries
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="can be replaced by other users"):
        ScopePolicy.from_file(outside)


def test_pipes_devices_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "pipe", "is not a regular file"),
        (tmp_path, "is not a regular file"),
        (tmp_path / "none.yaml", "No such file"),
        (Path("/dev/zero"), "is not a regular file"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            ScopePolicy.from_file(path)
        assert "security.policy_file" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change to a user that may not read the file")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, HEAD, 0o600)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match="Permission denied"):
            ScopePolicy.from_file(file)
    finally:
        os.seteuid(0)


# the file or the list


def test_setting_the_file_and_the_list_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path, HEAD)
    assert ScopePolicy.load(None, ["192.0.2.0/24"], entries_are_set=True).entries == ("192.0.2.0/24",)
    assert ScopePolicy.load(file, ["RFC1918"], entries_are_set=False).entries == ("10.0.0.0/8",)
    with pytest.raises(ConfigError, match=r"security\.policy_file and security\.allowed_targets are both set"):
        ScopePolicy.load(file, ["RFC1918"], entries_are_set=True)


# the hash


def digest(folder: Path, text: str) -> str:
    return ScopePolicy.from_file(write(folder, text)).hash


@pytest.mark.parametrize(("one", "other"), [("1000000", "1000004"), ("100.0", "100.0004")])
def test_a_small_difference_in_a_rate_changes_the_hash(tmp_path: Path, one: str, other: str) -> None:
    text = "version: 1\nallow:\n- {network: 10.0.0.0/8, packets_per_second: RATE}\n"
    limit = "version: 1\nallow: [10.0.0.0/8]\nlimits: {packets_per_second: RATE}\n"
    for policy in (text, limit):
        assert digest(tmp_path, policy.replace("RATE", one)) != digest(tmp_path, policy.replace("RATE", other))


def test_spelling_and_order_do_not_change_the_hash(tmp_path: Path) -> None:
    base = digest(tmp_path, GOOD)
    other = """\
# the same policy in another spelling
resolvers: ["10.0.0.53", "fd77::53"]
limits: {packets_per_second: 1000.5, packets_per_hour: 5000000, packets_per_run: 2000000, addresses_x_ports: 1000000}
windows:
  nights: {to: 06:00, from: 22:00, days: [mon, sun, sat, fri], timezone: UTC}
  office: {from: 09:00, to: 17:30, days: [mon, tue, wed, thu, fri], timezone: Europe/Berlin}
version: "1"
name: another title
exclude: [printer.lab.internal, .HR.lab.internal, 10.0.0.13/32]
defaults: {windows: [office], packets_per_second: 300.0, max_risk: probe}
allow:
  - {name: ONE.corp.example.}
  - {name: .lab.internal, packets_per_second: 0.5}
  - {network: "fd77::/128", packets_per_second: 0.50}
  - {network: 203.0.113.0/25, packets_per_second: 0.5}
  - {network: 203.0.113.128/25, packets_per_second: 0.5}
  - {network: 198.51.100.0/24, windows: [nights, nights], max_risk: intrusive}
  - 192.0.2.7/32
  - 192.168.0.0/16
  - 172.16.0.0/12
  - 10.0.0.0/8
"""
    assert digest(tmp_path, other) == base


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("max_risk: probe", "max_risk: scan"),
        ("packets_per_second: 300", "packets_per_second: 301"),
        ("windows: [office]}", "windows: []}"),
        ("from: 09:00", "from: 09:01"),
        ("days: mon-fri", "days: mon-sat"),
        ("timezone: Europe/Berlin", "timezone: Europe/Paris"),
        ("192.0.2.7 ", "192.0.2.6 "),
        ("RFC1918", "10.0.0.0/8"),
        ("max_risk: intrusive", "max_risk: scan"),
        ("    windows: [nights]\n", ""),
        (".Lab.Internal.", ".Lab2.Internal."),
        ("name: one.corp.example", "name: .one.corp.example"),
        ("10.0.0.13,", "10.0.0.14,"),
        (".hr.lab.internal, ", ""),
        ("printer.lab.internal", ".printer.lab.internal"),
        ("addresses_x_ports: 1000000", "addresses_x_ports: 1000001"),
        ("  packets_per_run: 2000000\n", ""),
        ("packets_per_hour: 5000000", "packets_per_hour: 5"),
        ("1000.5", "1000"),
        ("[10.0.0.53, ", "[10.0.0.54, "),
        ('[10.0.0.53, "FD77:0::53"]', '["FD77:0::53", 10.0.0.53]'),
        ("packets_per_second: 0.5", "packets_per_second: 0.6"),
    ],
)
def test_every_change_of_a_decision_changes_the_hash(tmp_path: Path, old: str, new: str) -> None:
    assert GOOD.count(old) == 1 or old in {"max_risk: intrusive", "10.0.0.13,"}
    assert digest(tmp_path, GOOD.replace(old, new)) != digest(tmp_path, GOOD)


def test_a_file_and_a_list_with_the_same_meaning_have_the_same_hash(tmp_path: Path) -> None:
    text = "version: 1\ndefaults: {max_risk: intrusive}\nallow: [RFC1918, .lab.internal]\n"
    assert digest(tmp_path, text) == ScopePolicy.from_entries(["RFC1918", ".lab.internal"]).hash
