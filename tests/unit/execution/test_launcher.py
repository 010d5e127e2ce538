"""Which tier is chosen, and the words it puts before a program."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_server.execution import launcher, supervisor
from mcp_server.execution.launcher import Bounds, SupervisorLauncher, Tier, containment, default_launcher, launcher_for
from tests.support.processes import binary
from tests.support.processes import launcher as launcher_of


@pytest.fixture(autouse=True)
def fresh_probe() -> Iterator[None]:
    default_launcher.cache_clear()
    yield
    default_launcher.cache_clear()


def test_root_on_debian_gets_a_namespace_for_every_run() -> None:
    assert os.geteuid() == 0
    assert containment().tier is Tier.PID_NAMESPACE
    assert containment().ends_detached
    assert containment().ends_with_server
    assert containment().remedy == ""


def test_every_tier_has_its_description() -> None:
    assert set(launcher._CONTAINMENT) == set(Tier)
    for tier, description in launcher._CONTAINMENT.items():
        assert description.tier is tier
        assert description.remedy or description.ends_with_server


def test_without_util_linux_or_elsewhere_a_supervisor_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "SYSTEM_PATH", "/nowhere")
    assert containment().tier is Tier.SUPERVISOR
    assert "util-linux" in containment().remedy
    default_launcher.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert containment().tier is Tier.SESSION
    assert not containment().ends_detached


def test_a_launcher_that_does_not_work_is_not_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("setpriv", "prlimit", "timeout", "true"):
        (tmp_path / name).symlink_to(binary(name))
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2; exit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setattr(launcher, "SYSTEM_PATH", str(tmp_path))
    assert default_launcher().tier is Tier.SUPERVISOR


def test_a_program_with_privilege_of_its_own_is_kept_out_of_a_user_namespace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launcher, "default_launcher", lambda: launcher_of(Tier.USER_NAMESPACE))
    plain, setuid, capable = (tmp_path / name for name in ("plain", "setuid", "capable"))
    for path in (plain, setuid, capable):
        path.write_bytes(b"")
    setuid.chmod(0o4755)
    # cap_net_raw=ep as linux/capability.h lays it out: revision 2 with the effective bit, then two pairs of masks
    os.setxattr(capable, "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    tiers = [launcher_for(str(path)).tier for path in (plain, setuid, capable)]
    assert tiers == [Tier.USER_NAMESPACE, Tier.SUPERVISOR, Tier.SUPERVISOR]


def test_no_word_of_the_program_is_read_as_an_option() -> None:
    argv = (binary("echo"), "--", "--help", "-n", "--pid=1")
    for tier in (Tier.PID_NAMESPACE, Tier.USER_NAMESPACE, Tier.SUPERVISOR):
        words = launcher_of(tier).wrap(argv, Bounds({"core": 0}, 5), "/")
        assert words[-len(argv) :] == argv
        done = subprocess.run(words, capture_output=True, check=True, start_new_session=True)
        assert done.stdout == b"-- --help -n --pid=1\n"


def test_limits_stay_below_the_servers_own() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard != resource.RLIM_INFINITY
    bounds = Bounds.below_own({"nofile": hard + 1, "core": 0}, 5)
    assert bounds.rlimits == {"nofile": hard, "core": 0}
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


def test_time_is_bounded_even_without_the_server() -> None:
    words = launcher_of(Tier.PID_NAMESPACE).wrap((binary("sleep"), "60"), Bounds({"core": 0}, 1), "/")
    done = subprocess.run(words, capture_output=True, check=False, timeout=10, start_new_session=True)
    assert done.returncode == 137


@pytest.mark.parametrize("tier", [Tier.PID_NAMESPACE, Tier.USER_NAMESPACE])
def test_nothing_is_started_for_a_server_that_is_dead_and_not_yet_reaped(tier: Tier) -> None:
    with subprocess.Popen([binary("true")]) as dead:
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)  # from here on it is a zombie
        own = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/"
        argv = launcher_of(tier).wrap((binary("echo"), "ran"), Bounds({"core": 0}, 5), "/")
        words = [word.replace(own, f"/proc/{dead.pid}/task/{dead.pid}/") for word in argv]
        assert words != list(argv)
        done = subprocess.run(words, capture_output=True, check=False, start_new_session=True)
    assert (done.returncode, done.stdout) == (1, b"")


def test_supervisor_refuses_to_start_for_a_server_that_is_gone() -> None:
    words = list(SupervisorLauncher().wrap((binary("echo"), "ran"), Bounds({}, 5), "/"))
    words[words.index(str(os.getpid()))] = "1"
    done = subprocess.run(words, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (129, b"")


def test_supervisor_knows_the_limits_the_launcher_sends() -> None:
    assert supervisor._RLIMITS == launcher._RLIMITS
