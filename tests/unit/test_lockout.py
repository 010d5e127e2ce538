"""The lock-out: which sources it locks, for how long, and which credentials are still accepted."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mcp_server.config.sections import AuthConfig
from mcp_server.errors import BusyError
from mcp_server.identity.lockout import KNOWN_SEC, MOST_KNOWN, MOST_SOURCES, Lockout, source_of


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settings() -> AuthConfig:
    return AuthConfig(lockout_failures=3, lockout_sec=60)


@pytest.fixture
def lockout(settings: AuthConfig, clock: Clock) -> Lockout:
    return Lockout(lambda: settings, clock)


def locked(lockout: Lockout, credential: str, *sources: str) -> int:
    """Seconds to wait; 0 if the credential is checked."""
    try:
        lockout.check(credential, *sources)
    except BusyError as error:
        return int(error.details["retry_after"]) if error.code == "locked_out" else -1
    return 0


def test_the_third_failure_locks_only_its_source(lockout: Lockout, clock: Clock) -> None:
    assert [lockout.failed("a") for _ in range(3)] == [False, False, True]
    clock.now += 10
    assert (locked(lockout, "new", "a"), locked(lockout, "new", "b")) == (50, 0)
    clock.now += 50
    assert locked(lockout, "new", "a") == 0
    assert [lockout.failed("a") for _ in range(3)] == [False, False, True], "the count must start again"


def test_failures_far_apart_do_not_add_up(lockout: Lockout, clock: Clock) -> None:
    for _ in range(10):
        assert not lockout.failed("a")
        assert not lockout.failed("a")
        clock.now += 61


def test_a_recently_valid_credential_is_accepted_during_a_lock(lockout: Lockout, clock: Clock) -> None:
    lockout.succeeded("good")
    for _ in range(3):
        lockout.failed("a", "key 1")
    assert locked(lockout, "good", "a") == 0
    assert locked(lockout, "good", "key 1") == 0
    assert locked(lockout, "new", "b", "key 1") == 60
    clock.now += KNOWN_SEC + 1
    for _ in range(3):
        lockout.failed("a")
    assert locked(lockout, "good", "a") == 60


def test_a_valid_credential_does_not_reset_the_failures(lockout: Lockout) -> None:
    for _ in range(3):
        lockout.succeeded("of little worth")
        lockout.failed("a")
    assert locked(lockout, "new", "a") == 60


def test_a_reload_switches_the_lock_out_off_and_on(lockout: Lockout, settings: AuthConfig) -> None:
    settings.lockout_failures = 0
    assert not any(lockout.failed("a") for _ in range(100))
    assert locked(lockout, "new", "a") == 0
    settings.lockout_failures = 1
    assert lockout.failed("a")
    settings.lockout_failures = 0
    assert locked(lockout, "new", "a") == 0


def test_the_number_of_sources_and_credentials_is_bounded(lockout: Lockout) -> None:
    for number in range(MOST_SOURCES * 2):
        lockout.failed(f"place {number}")
        lockout.succeeded(f"credential {number}")
    assert len(lockout._sources) == MOST_SOURCES
    assert len(lockout._known) == MOST_KNOWN
    assert not any(b"credential" in digest for digest in lockout._known), "a credential was kept in plain text"


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "peer unknown"),
        ("x" * 1000, "peer " + "x" * 64),
    ],
)
def test_the_source_is_the_ipv4_address_or_the_ipv6_network_of_the_peer(peer: str, source: str) -> None:
    assert source_of(peer) == source
