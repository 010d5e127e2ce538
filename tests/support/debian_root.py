"""New Debian root folders, and commands run in them as in a container, to test Dockerfiles without a container engine.

debootstrap creates the base system once, from the mirror that apt on this machine uses, and a tar file of it is kept in
``.cache/``. While a step runs, the parts that the network of a build would provide (resolver, certificates, package
index) are mounted from this machine. Every mount is in a mount namespace that ends with the step, in whatever way.
Needs root.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.packages import offline_pip, packages
from tests.support.processes import binary

PROJECT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = PROJECT / ".cache" / "debian-roots"
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STEP_SEC: Final = 400
_PYTHON: Final = (3, 11)
"""The Python of the only suite that is used here."""
_MEMORY_NEEDED: Final = 3 << 30

_BUILD_MOUNTS: Final = """
root=$1 archives=$2 packages=$3 certificates=$4; shift 4
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs machine "$root/mnt"
[ ! -e "$certificates" ] || cp -L "$certificates" "$root/mnt/certificates.pem"
mkdir "$root/mnt/packages"
mount --bind -o ro "$packages" "$root/mnt/packages"
mount --bind "$archives" "$root/var/cache/apt/archives"
touch "$root/etc/resolv.conf"
mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
exec "$@"
"""
"""Mounts the folders of downloaded packages ($2, $3) and certificates ($4) into the root ($1) of a build step."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    code: int
    output: str


def mirrors(suite: str) -> list[tuple[str, str]]:
    """Return the address and suite of each Debian source of this machine for a release, its main archive first."""
    form = "$(REPO_URI) $(CODENAME) $(RELEASE) $(COMPONENT) $(CREATED_BY)"
    said = subprocess.run(
        [binary("apt-get"), "indextargets", "--format", form], capture_output=True, text=True, check=True
    ).stdout
    # The code name is known only after the lists were downloaded; the sources may say "stable".
    rows = dict.fromkeys(
        (uri, release if codename.startswith("$") else codename)
        for uri, codename, release, component, made in map(str.split, said.splitlines())
        if (component, made) == ("main", "Packages")
    )
    found = [(uri, name) for uri, name in rows if name.split("-")[0] == suite]
    main = [row for row in found if row[1] == suite]
    if not main:
        raise AssertionError(f"apt on this machine has no source for Debian's {suite}: {sorted(rows)}")
    return [main[0], *(row for row in found if row[1] != suite)]


def base_system(suite: str) -> Path:
    """Return the tar file of a minimal system like the slim images of the registry; create it if it is missing."""
    CACHE.mkdir(parents=True, exist_ok=True)
    made = CACHE / f"{suite}.tar"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test workers may need this file at the same time
        if made.exists():
            return made
        draft = CACHE / f"{suite}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        sources = mirrors(suite)
        run = [binary("unshare"), "--mount", "--propagation", "private", binary("debootstrap"), "--variant=minbase"]
        _checked([*run, suite, str(draft), sources[0][0]], CACHE / "debootstrap.log")
        lines = [f"deb {uri} {name} main\n" for uri, name in sources]
        (draft / "etc/apt/sources.list").write_text("".join(lines))
        # As in the images of the registry: a build should not wait for a disk.
        (draft / "etc/dpkg/dpkg.cfg.d/docker-apt-speedup").write_text("force-unsafe-io\n")
        fetched = archives()
        for package in (draft / "var/cache/apt/archives").glob("*.deb"):
            shutil.move(package, fetched / package.name)
        tar = [
            binary("tar"),
            "-C",
            str(draft),
            "--numeric-owner",
            "--exclude=./dev/*",
            "--exclude=./var/lib/apt/lists/*",
        ]
        subprocess.run([*tar, "-cf", str(CACHE / f"{suite}.part"), "."], check=True)
        (CACHE / f"{suite}.part").rename(made)
        shutil.rmtree(draft)
    return made


def archives() -> Path:
    """Return the folder that keeps downloaded packages between builds; each worker has one, because apt locks it."""
    kept = CACHE / f"archives-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    (kept / "partial").mkdir(parents=True, exist_ok=True)
    return kept


def fresh_root(suite: str, folder: Path) -> Path:
    """Unpack the base system into ``folder``, which must not exist."""
    folder.mkdir()
    tar = [binary("tar"), "-C", str(folder), "--numeric-owner", "-xpf", str(base_system(suite))]
    subprocess.run(tar, check=True)
    folder.chmod(0o755)
    return folder


@functools.cache
def index_environment() -> dict[str, str]:
    """Return the options with which pip and apt in a root use the same sources as on this machine."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    given = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    kept = {}
    for name in ("index-url", "extra-index-url", "trusted-host", "timeout"):
        value = next((given[key].strip("'") for key in given if key.partition(".")[2].strip(".") == name), "")
        words = [word for word in value.split() if not word.startswith("file:")]
        if words:
            kept["PIP_" + name.upper().replace("-", "_")] = " ".join(words)
    proxies = {name: os.environ[name] for name in ("http_proxy", "https_proxy", "no_proxy") if name in os.environ}
    return kept | proxies | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def certificates() -> Path:
    """Return the bundle of certificates of this machine."""
    return Path(os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")


def build_step(
    root: Path, argv: Sequence[str], *, env: Mapping[str, str] | None = None, user: str = "0:0", folder: str = "/"
) -> Ran:
    """Run a command in ``root`` like a build step: with the network of this machine, as root by default."""
    given = {"PATH": PATH, "HOME": "/nonexistent", "DEBIAN_FRONTEND": "noninteractive"}
    given |= index_environment() | (offline_pip("/mnt/packages") if sys.version_info[:2] == _PYTHON else {})
    given |= env or {}
    if certificates().exists():
        given |= {"PIP_CERT": "/mnt/certificates.pem", "SSL_CERT_FILE": "/mnt/certificates.pem"}
    words = [
        binary("unshare"), "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--propagation", "private",
        "sh", "-euc", _BUILD_MOUNTS, "sh", str(root), str(archives()), str(packages()), str(certificates()),
        binary("chroot"), f"--userspec={user}", str(root), "/usr/bin/env", "-i", "-C", folder,
        *(f"{name}={value}" for name, value in given.items()), *argv,
    ]  # fmt: skip
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False, timeout=STEP_SEC, umask=0o022,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout)


def _checked(argv: Iterable[str], log: Path) -> None:
    with log.open("w") as said:
        done = subprocess.run(list(argv), stdout=said, stderr=said, check=False, timeout=STEP_SEC, umask=0o022)
    if done.returncode:
        raise AssertionError("\n".join(log.read_text().splitlines()[-15:]))


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder for new root folders, which every user may enter.

    It is in memory if there is space, because dpkg writes a lot.

    Raises AssertionError at the end if anything is still mounted below it.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.statvfs(memory).f_bavail * os.statvfs(memory).f_frsize > _MEMORY_NEEDED
    folder = Path(tempfile.mkdtemp(prefix="mcp-roots-", dir=memory if roomy else None))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        left = mounted_below(folder)
        if not left:
            shutil.rmtree(folder)
        assert left == [], f"expected no mounts below {folder}, found {left}"


def mounted_below(folder: Path) -> list[str]:
    """Return the mounts of this machine at or below a folder."""
    listed = json.loads(
        subprocess.run([binary("findmnt"), "--json", "--list", "-o", "TARGET"], capture_output=True, check=True).stdout
    )
    return [entry["target"] for entry in listed["filesystems"] if Path(entry["target"]).is_relative_to(folder)]
