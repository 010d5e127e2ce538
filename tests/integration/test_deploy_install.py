"""install.sh on a plain Debian: it installs, upgrades and uninstalls, and a failure changes nothing.

The host is a new root folder, in which systemd does not run. ``systemd-analyze`` checks the unit files offline.
"""

from __future__ import annotations

import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.integration.test_deploy_image import ask, ports, scan
from tests.support.container import Spec, container
from tests.support.debian_root import PATH, PROJECT, Ran, build_step, fresh_root, scratch
from tests.support.guarded import OPEN_PORT, TARGET, World, policy, wait_for, world
from tests.support.processes import binary

pytestmark = pytest.mark.timeout(600)

LINK: Final = "opt/mcp-network-tools"
STATE: Final = "var/lib/mcp-network-tools"
UNITS: Final = "etc/systemd/system"


class Host:
    """A plain Debian with a checkout of the project in /src."""

    def __init__(self, folder: Path) -> None:
        self.root = fresh_root("bookworm", folder / "host")
        for name in ("deploy", "requirements", "src", "pyproject.toml", "README.md", "LICENSE"):
            source, target = PROJECT / name, self.root / "src" / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "secrets"))
            else:
                shutil.copy(source, target)

    def install(self, *words: str) -> Ran:
        return build_step(self.root, ["/src/deploy/install.sh", *words])

    def run(self, *argv: str) -> Ran:
        return build_step(self.root, argv)

    def listing(self, *, but: tuple[str, ...] = ()) -> dict[str, tuple[int, int, int, bytes]]:
        """Return owner, group, mode and content of every installed file and folder, without those in ``but``."""
        found = {}
        for top in ("etc/mcp-network-tools", STATE, UNITS):
            for path in (self.root / top).rglob("*"):
                at = path.lstat()
                content = path.read_bytes() if path.is_file() else b""
                found[str(path.relative_to(self.root))] = (at.st_uid, at.st_gid, stat.S_IMODE(at.st_mode), content)
        return {name: value for name, value in found.items() if name not in but}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with scratch() as folder:
        made = Host(folder)
        done = made.install()
        assert done.code == 0, done.output
        yield made


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    with world() as made:
        yield made


def test_an_installation_has_program_user_configuration_and_unit(host: Host) -> None:
    assert (host.root / LINK).is_symlink()
    assert host.run(f"/{LINK}/bin/mcp-network-tools", "version").code == 0
    user = host.run("id", "-u", "mcp-network-tools").output.strip()
    assert int(user) > 0
    etc = (host.root / "etc/mcp-network-tools").stat()
    assert (etc.st_uid, stat.S_IMODE(etc.st_mode)) == (0, 0o750)
    for name in ("config.yaml", "policy.yaml", "environment"):
        found = (host.root / "etc/mcp-network-tools" / name).stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, etc.st_gid, 0o640)
    state = (host.root / STATE).stat()
    token = (host.root / STATE / "token").stat()
    assert {state.st_uid, token.st_uid} == {int(user)}
    assert (stat.S_IMODE(state.st_mode), stat.S_IMODE(token.st_mode)) == (0o700, 0o600)
    units = [path.name for path in (host.root / UNITS).glob("mcp-*")]
    assert units == ["mcp-network-tools.service"]
    in_system = list((host.root / "usr/lib/python3/dist-packages").glob("pydantic*"))
    assert not in_system, "packages were installed into the Python of the system"


def unit(host: Host, name: str) -> dict[str, list[str]]:
    """Return the settings of an installed unit."""
    lines = (host.root / UNITS / f"{name}.service").read_text().splitlines()
    found: dict[str, list[str]] = {}
    for key, _, value in (line.partition("=") for line in lines if "=" in line and not line.startswith("#")):
        found.setdefault(key, []).append(value)
    return found


def verify(host: Host, name: str) -> None:
    """Check a unit with systemd, together with the standard units of a host."""
    system = host.root / "usr/lib/systemd/system"
    if not (system / "sysinit.target").exists():
        shutil.copytree("/usr/lib/systemd/system", system, symlinks=True, dirs_exist_ok=True)
    done = subprocess.run(
        [binary("systemd-analyze"), "verify", "--man=no", f"--root={host.root}", f"{name}.service"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    about = [line for line in done.stderr.splitlines() if "mcp-network-tools" in line]
    assert (done.returncode, about) == (0, []), done.stderr


def serve_and_scan(host: Host, net: World, tier: str, log: Path) -> None:
    """Run ExecStart with the user, capabilities, environment and mounts of the unit, and scan through the server."""
    name = "mcp-network-tools" + ("-argument" if tier == "argument" else "")
    assert [path.name for path in (host.root / UNITS).glob("mcp-*")] == [f"{name}.service"]
    (host.root / "etc/mcp-network-tools/policy.yaml").write_text(policy(TARGET))
    settings = unit(host, name)
    env = dict(each.split("=", 1) for each in settings["Environment"])
    file = settings["EnvironmentFile"][0].lstrip("-/")
    env |= dict(line.split("=", 1) for line in (host.root / file).read_text().splitlines())
    ids = [host.run("id", flag, "mcp-network-tools").output.strip() for flag in ("-u", "-g")]
    named = " ".join(settings["CapabilityBoundingSet"]).split()
    spec = Spec(
        host.root, "0:0" if tier == "kernel" else ":".join(ids), tuple(each.removeprefix("CAP_") for each in named),
        {"PATH": PATH, "LC_ALL": "C.UTF-8"} | env, volumes=((host.root / STATE, f"/{STATE}", "rw"),),
        masked=tier != "kernel", proc=",hidepid=" + settings["ProtectProc"][0],
    )  # fmt: skip
    argv = shlex.split(settings["ExecStart"][0])
    with container(spec, argv, log, inside=net.prefix) as made:
        wait_for(lambda: "Listening on http://127.0.0.1:8080" in made.log, lambda: made.log, 30)
        token = (host.root / STATE / "token").read_text().strip()
        result = scan(net, token)
        assert ports(result) == {1: "closed", OPEN_PORT: "open"}
        assert result["metadata"]["enforcement"] == tier
        assert ask(net, "", "/tools")[0] == 401
        assert made.stop() == 0
    assert token not in made.log, "the log has the token"


def test_the_unit_is_valid_and_starts_a_server_that_scans(host: Host, net: World, tmp_path: Path) -> None:
    verify(host, "mcp-network-tools")
    serve_and_scan(host, net, "kernel", tmp_path / "unit.log")


@pytest.mark.parametrize("fault", ["hash", "start"])
def test_a_failed_installation_changes_nothing(host: Host, fault: str) -> None:
    before = (host.listing(), (host.root / LINK).readlink(), sorted((host.root / f"{LINK}.d").iterdir()))
    name = {"hash": "requirements/deploy.lock", "start": "src/mcp_server/cli/__init__.py"}[fault]
    broken = host.root / "src" / name
    whole = broken.read_text()
    broken.write_text(
        re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", whole) if fault == "hash" else "raise RuntimeError('broken')\n"
    )
    try:
        done = host.install()
    finally:
        broken.write_text(whole)
    assert done.code == 1, done.output
    assert "The old installation is still in use." in done.output
    assert (host.listing(), (host.root / LINK).readlink(), sorted((host.root / f"{LINK}.d").iterdir())) == before
    assert host.run(f"/{LINK}/bin/mcp-network-tools", "version").code == 0


def test_an_upgrade_keeps_the_files_of_the_operator_and_can_change_the_unit(
    host: Host, net: World, tmp_path: Path
) -> None:
    (host.root / "etc/mcp-network-tools/policy.yaml").write_text("version: 1\nallow: [10.77.0.0/16]\n")
    units = tuple(f"{UNITS}/{name}.service" for name in ("mcp-network-tools", "mcp-network-tools-argument"))
    before, link = host.listing(but=units), (host.root / LINK).readlink()
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(host.root / "tmp"), str(PROJECT)], check=True, capture_output=True)
    (wheel,) = (host.root / "tmp").glob("*.whl")
    done = host.install("--no-packages", "--unit", "argument", "--from", f"/tmp/{wheel.name}")
    assert done.code == 0, done.output
    assert host.listing(but=units) == before
    assert (host.root / LINK).readlink() != link
    assert len(list((host.root / f"{LINK}.d").iterdir())) == 2, (
        "an upgrade keeps only the current and the previous version"
    )
    assert [path.name for path in (host.root / UNITS).glob("mcp-*")] == ["mcp-network-tools-argument.service"]
    verify(host, "mcp-network-tools-argument")
    serve_and_scan(host, net, "argument", tmp_path / "unit.log")


def test_wrong_options_are_refused(host: Host) -> None:
    for words in (("--unit", "sideways"), ("--purge",), ("--frobnicate",), ("--unit",)):
        assert host.install(*words).code == 2, words
    assert host.install("--from", "/nowhere").code == 1


def test_uninstall_keeps_configuration_and_state_and_purge_removes_them(host: Host) -> None:
    done = host.install("--uninstall")
    assert done.code == 0, done.output
    assert "Kept: /etc/mcp-network-tools (configuration), /var/lib/mcp-network-tools" in done.output
    assert not (host.root / LINK).exists()
    assert not list((host.root / UNITS).glob("mcp-*"))
    assert {"token", "audit.jsonl"} <= {path.name for path in (host.root / STATE).iterdir()}
    done = host.install("--uninstall", "--purge")
    assert done.code == 0, done.output
    remaining = [
        *(host.root / "etc").rglob("*mcp-network*"),
        *(host.root / "var/lib").glob("mcp*"),
        *(host.root / "opt").iterdir(),
    ]
    assert remaining == []
    assert host.run("id", "mcp-network-tools").code != 0
    assert host.install("--uninstall").code == 0, "a second uninstall failed"
