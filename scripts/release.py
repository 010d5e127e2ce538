"""Makes a release, and publishes nothing: dist/ with what would be published, how it was checked, and its sums.

Every step is carried out and told. A step that failed, or could not be carried out, keeps SHA256SUMS from being written
and ends this with status 1, unless it is named after ``--release-anyway``; RELEASE.md beside the files then says so.

    python -m scripts.release [--to dist] [--release-anyway STEP ...]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts import artifacts, audit, cells, licenses, manifests, matrix, smoke
from scripts.artifacts import NotAsItShouldBeError, run
from scripts.connect import ROOT
from scripts.interpreters import Interpreter, NotHadError
from scripts.locked import pins

PASSED, FAILED, COULD_NOT, ANYWAY = "passed", "FAILED", "COULD NOT", "ANYWAY"


class CouldNotError(Exception):
    """A step that could not be carried out here, and why: not the same as one that passed."""


@dataclass(frozen=True, slots=True)
class Told:
    """One step, how it went, and what it found."""

    step: str
    state: str
    detail: str


class Release:
    """The steps in their order; each returns what it found, or raises."""

    def __init__(self, folder: Path, to: Path) -> None:
        self.folder = folder
        self.to = to
        self.version = manifests.version()
        self.files: dict[str, Path] = {}
        self.environment: Path | None = None

    def step_tree(self) -> str:
        """What is released is a commit."""
        changed = run("git", "status", "--porcelain", cwd=ROOT).splitlines()
        if changed:
            raise NotAsItShouldBeError(f"{len(changed)} files are not committed: {', '.join(changed[:3])}")
        return f"clean at {run('git', 'rev-parse', '--short', 'HEAD', cwd=ROOT).strip()}"

    def step_version(self) -> str:
        """The version is a new one, and every file that is made from it is current."""
        if run("git", "tag", "--list", f"v{self.version}", cwd=ROOT).strip():
            raise NotAsItShouldBeError(f"the tag v{self.version} exists: raise src/mcp_server/__init__.py")
        if stale := manifests.stale():
            raise NotAsItShouldBeError(f"not made from {self.version}: {', '.join(stale)}")
        return self.version

    def step_changelog(self) -> str:
        """The changelog has a dated section of this version, and it says something."""
        return changelog_section((ROOT / "CHANGELOG.md").read_text(), self.version)

    def step_hashes(self) -> str:
        """Every locked package is pinned by hash."""
        bare = [pin.name for pin in pins() if not pin.hashes]
        if bare:
            raise NotAsItShouldBeError(f"without a hash: {', '.join(bare)}")
        return f"{len(pins())} pins"

    def step_build(self) -> str:
        """Built twice at different places, byte by byte the same."""
        epoch = run("git", "log", "-1", "--format=%ct", cwd=ROOT).strip()
        self.files = artifacts.build_twice(self.folder, epoch)
        return ", ".join(f"{path.name} ({path.stat().st_size // 1024} KiB)" for path in self.files.values())

    def step_contents(self) -> str:
        """What is in them."""
        return artifacts.check_contents(self.built(), self.version)

    def step_metadata(self) -> str:
        """What an index reads."""
        return artifacts.check_metadata(self.built())

    def step_wheel(self) -> str:
        """Installed into an empty environment, with hashes, and used."""
        here = Interpreter("wheel", Path(sys.executable), Path(sys.base_prefix), "this one")
        self.environment = matrix.install(here, self.built()["wheel"], self.folder)
        return self.use(self.environment)

    def step_sdist(self) -> str:
        """Built and installed into an empty environment from the sdist, with the locked packages, and used."""
        environment = self.folder / "python-sdist"
        run(sys.executable, "-m", "venv", "--without-pip", environment)
        pip = (sys.executable, "-m", "pip", "--python", environment / "bin/python", "--quiet", "install")
        with tempfile.TemporaryDirectory() as name:  # the lock file is the sdist's own
            shutil.unpack_archive(self.built()["sdist"], name, filter="data")
            (lock,) = Path(name).glob("*/requirements/run.lock")
            run(*pip, "--require-hashes", "--requirement", lock, cwd=self.folder)
        run(*pip, "--no-deps", "--no-build-isolation", self.built()["sdist"], cwd=self.folder)
        self.environment = self.environment or environment
        return self.use(environment)

    def use(self, environment: Path) -> str:
        """List the tools and scan loopback with an installation; the checkout is not on its path."""
        where = run(environment / "bin/python", "-I", "-c", "import mcp_server; print(mcp_server.__file__)").strip()
        if not where.startswith(str(environment)):
            raise NotAsItShouldBeError(f"it imports {where}")
        state = Path(tempfile.mkdtemp(dir=self.folder))
        steps_of_use = shutil.copy(cells.SMOKE, state)
        words: list[str | Path] = ["--program", environment / "bin/mcp-network-tools", "--state", state / "state"]
        (state / "state").mkdir()
        steps = ["--steps", "installed", "doctor", "stdio", "handshake", "http"]
        said = run(environment / "bin/python", "-I", steps_of_use, *words, "--version", self.version, *steps, cwd=state)
        return str({step["step"]: step for step in map(json.loads, said.splitlines())}["stdio"]["detail"])

    def step_sbom(self) -> str:
        """CycloneDX of an environment that the package was installed into, held against its schema and the lock."""
        if self.environment is None:
            raise CouldNotError("nothing was installed")
        out = self.to / f"{manifests.NAME}-{self.version}.cdx.json"
        options = (
            "--pyproject",
            ROOT / "pyproject.toml",
            "--output-reproducible",
            "--validate",
            "--spec-version",
            "1.6",
        )
        interpreter = self.environment / "bin/python"
        run(sys.executable, "-m", "cyclonedx_py", "environment", *options, "--output-file", out, interpreter)
        listed = {each["name"]: each["version"] for each in json.loads(out.read_text())["components"]}
        wanted = {pin.name: pin.version for pin in pins() if pin.here}
        found = {name.lower().replace("_", "-").replace(".", "-"): version for name, version in listed.items()}
        if missing := sorted(wanted.items() - found.items()):
            raise NotAsItShouldBeError(f"the SBOM lacks {missing[:3]}")
        return f"{out.name}, {len(listed)} components"

    def step_licenses(self) -> str:
        """The license of every dependency is on the list, and the page is current."""
        found = licenses.report(str(self.environment / "bin/python") if self.environment else sys.executable)
        if problems := licenses.refused(found):
            raise NotAsItShouldBeError(f"not on the list: {'; '.join(problems)}")
        if licenses.PAGE.read_text() != licenses.page(found):
            raise NotAsItShouldBeError("docs/licenses.md is stale")
        shutil.copy(licenses.PAGE, self.to / "licenses.md")
        return f"{len(found)} packages"

    def step_audit(self) -> str:
        """No known vulnerability in what is pinned; a service that cannot be asked is no verdict."""
        found = audit.audit()
        if found.status == audit.COULD_NOT_AUDIT:
            raise CouldNotError("; ".join(found.lines))
        if found.status != audit.CLEAN:
            raise NotAsItShouldBeError("; ".join(found.lines))
        return "; ".join(found.lines)

    def step_registry(self) -> str:
        """The MCP registry's entry against its schema, the proof in the README, and somebody to publish it."""
        rule = "mcp-registry-server-json-valid"
        run(Path(sys.executable).with_name("skillsaw"), "lint", "--strict", "--rule", rule, ROOT / "server.json")
        if manifests.MCP_NAME not in (ROOT / "README.md").read_text():
            raise NotAsItShouldBeError(f"README.md lacks {manifests.MCP_NAME}")
        shutil.copy(ROOT / "server.json", self.to)
        if manifests.OWNER == manifests.NO_OWNER:
            raise CouldNotError(
                "valid, but nobody owns the name yet: set owner in pyproject.toml, [tool.mcp-network-tools]"
            )
        return manifests.REGISTRY_NAME

    def step_bundle(self) -> str:
        """The bundle for Claude Desktop: the bundler's own check, and what is in it."""
        self.built()
        packed = artifacts.bundle(self.folder, self.folder / "one/tree")
        shutil.copy(packed, self.to)
        return f"{packed.name} ({packed.stat().st_size // 1024} KiB)"

    def step_bundle_used(self) -> str:
        """The command in the bundle's manifest, as Claude Desktop would: uv makes the environment and serves."""
        unpacked = self.folder / "unpacked"
        if not unpacked.exists():
            raise CouldNotError("there is no bundle")
        server = json.loads((unpacked / "manifest.json").read_text())["server"]["mcp_config"]
        default = manifests.bundle_manifest()["user_config"]["scope"]["default"]
        settings = {key: value.replace("${user_config.scope}", default) for key, value in server["env"].items()}
        words = [word.replace("${__dirname}", str(unpacked)) for word in server["args"]]
        uv = Path(sys.executable).with_name(server["command"])
        state = {"MCP_STATE_DIR": str(self.folder / "bundle-state")}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": smoke.MODERN}}
        said = subprocess.run(
            [uv, *words],
            input=json.dumps(message) + "\n",
            env={**os.environ, **settings, **state},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if '"nmap"' not in said.stdout:
            raise NotAsItShouldBeError(f"it ended with {said.returncode}: {said.stderr.strip()[-300:]}")
        return "tools/list was answered"

    def built(self) -> dict[str, Path]:
        """The wheel and the sdist."""
        if not self.files:
            raise CouldNotError("nothing was built")
        return self.files


STEPS: Final = tuple(name.removeprefix("step_") for name in vars(Release) if name.startswith("step_"))


def changelog_section(text: str, version: str) -> str:
    """The heading of a version's section; NotAsItShouldBeError where there is none, or nothing stands in it."""
    found = re.search(
        rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise NotAsItShouldBeError(f"CHANGELOG.md has no section '## {version} - YYYY-MM-DD'")
    lines = [line for line in found.group(1).splitlines() if line.startswith("- ")]
    if not lines:
        raise NotAsItShouldBeError(f"nothing stands under {version} in CHANGELOG.md")
    unreleased = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if unreleased and "- " in unreleased.group(1):
        raise NotAsItShouldBeError("lines stand under Unreleased in CHANGELOG.md")
    return f"{len(lines)} lines"


def attempt(name: str, step: Callable[[], str], anyway: frozenset[str]) -> Told:
    """Carry a step out and tell how it went."""
    try:
        return Told(name, PASSED, step())
    except CouldNotError as error:
        return Told(name, ANYWAY if name in anyway else COULD_NOT, str(error))
    except (NotAsItShouldBeError, NotHadError, OSError, subprocess.SubprocessError, StopIteration) as error:
        return Told(name, ANYWAY if name in anyway else FAILED, f"{type(error).__name__}: {error}"[:400])


def record(to: Path, version: str, told: list[Told]) -> str:
    """RELEASE.md: each step, and for the reader what was let pass."""
    rows = "\n".join(f"| {each.step} | {each.state} | {each.detail.replace('|', '/')} |" for each in told)
    let = [each.step for each in told if each.state == ANYWAY]
    note = f"\n\nReleased although these steps did not pass, by --release-anyway: {', '.join(let)}." if let else ""
    text = f"# mcp-network-tools {version}\n\n| step | state | found |\n|---|---|---|\n{rows}{note}\n"
    (to / "RELEASE.md").write_text(text)
    return text


def sums(to: Path) -> None:
    """SHA256SUMS of all files, as sha256sum --check reads it."""
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(to.iterdir())]
    (to / "SHA256SUMS").write_text("".join(lines))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make a release; nothing is published.")
    parser.add_argument("--to", type=Path, default=ROOT / "dist")
    parser.add_argument(
        "--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help="a rehearsal of some steps"
    )
    parser.add_argument("--release-anyway", nargs="+", choices=STEPS, default=[], metavar="STEP")
    options = parser.parse_args(argv)
    shutil.rmtree(options.to, ignore_errors=True)
    options.to.mkdir(parents=True)
    os.environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    with tempfile.TemporaryDirectory(prefix="release-") as name:
        release = Release(Path(name), options.to)
        told = []
        for step in STEPS:
            if step in options.only:
                told.append(attempt(step, getattr(release, f"step_{step}"), frozenset(options.release_anyway)))
                print(f"{told[-1].state:10} {step:10} {told[-1].detail}", flush=True)
        for path in release.files.values():
            shutil.copy(path, options.to)
    record(options.to, release.version, told)
    held = [each.step for each in told if each.state in {FAILED, COULD_NOT}]
    if held or set(options.only) != set(STEPS):
        print(f"\nNot a release: {', '.join(held) or 'only some steps were carried out'}. No SHA256SUMS was written.")
        return 1 if held else 0
    sums(options.to)
    print(f"\n{options.to} is ready to be published.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
