"""Build and check a release in dist/, without publishing it.

Every step is run and reported. If a step failed or could not be run, SHA256SUMS is not written and the exit status is
1, unless the step is named after ``--release-anyway``; RELEASE.md then lists it.

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
from scripts.artifacts import CheckFailedError, run
from scripts.connect import ROOT
from scripts.interpreters import Interpreter
from scripts.locked import locked_packages

PASSED, FAILED, COULD_NOT, ANYWAY = "passed", "FAILED", "COULD NOT", "ANYWAY"


class StepNotPossibleError(Exception):
    """The step could not be run here, so it neither passed nor failed; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The state of one step, and its result as text."""

    step: str
    state: str
    detail: str


class Release:
    """The steps, in order. Each returns its result as text, or raises."""

    def __init__(self, folder: Path, to: Path) -> None:
        self.folder = folder
        self.to = to
        self.version = manifests.version()
        self.files: dict[str, Path] = {}
        self.environment: Path | None = None

    def step_tree(self) -> str:
        """Check that everything is committed."""
        changed = run("git", "status", "--porcelain", cwd=ROOT).splitlines()
        if changed:
            raise CheckFailedError(f"{len(changed)} files are not committed: {', '.join(changed[:3])}")
        return f"clean at {run('git', 'rev-parse', '--short', 'HEAD', cwd=ROOT).strip()}"

    def step_version(self) -> str:
        """Check that the version is new, and that every file made from it is current."""
        if run("git", "tag", "--list", f"v{self.version}", cwd=ROOT).strip():
            raise CheckFailedError(f"the tag v{self.version} exists: raise src/mcp_server/__init__.py")
        if stale := manifests.stale():
            raise CheckFailedError(f"not made from {self.version}: {', '.join(stale)}")
        return self.version

    def step_changelog(self) -> str:
        """Check that the changelog has a dated section of this version with entries."""
        return changelog_section((ROOT / "CHANGELOG.md").read_text(), self.version)

    def step_hashes(self) -> str:
        """Check that every locked package is pinned by hash."""
        bare = [each.name for each in locked_packages() if not each.hashes]
        if bare:
            raise CheckFailedError(f"without a hash: {', '.join(bare)}")
        return f"{len(locked_packages())} packages"

    def step_build(self) -> str:
        """Build twice in different folders, and check that the files are identical."""
        epoch = run("git", "log", "-1", "--format=%ct", cwd=ROOT).strip()
        self.files = artifacts.build_twice(self.folder, epoch)
        return ", ".join(f"{path.name} ({path.stat().st_size // 1024} KiB)" for path in self.files.values())

    def step_contents(self) -> str:
        """Check the content of wheel and sdist."""
        return artifacts.check_contents(self.built(), self.version)

    def step_metadata(self) -> str:
        """Check the metadata that an index reads."""
        return artifacts.check_metadata(self.built())

    def step_wheel(self) -> str:
        """Install the wheel into an empty environment, with hashes, and test it."""
        here = Interpreter("wheel", Path(sys.executable), Path(sys.base_prefix), "current interpreter")
        self.environment = matrix.install(here, self.built()["wheel"], self.folder)
        return self.use(self.environment)

    def step_sdist(self) -> str:
        """Build and install the sdist into an empty environment, with the locked packages, and test it."""
        environment = self.folder / "python-sdist"
        run(sys.executable, "-m", "venv", "--without-pip", environment)
        pip = (sys.executable, "-m", "pip", "--python", environment / "bin/python", "--quiet", "install")
        with tempfile.TemporaryDirectory() as name:  # use the lock file of the sdist
            shutil.unpack_archive(self.built()["sdist"], name, filter="data")
            (lock,) = Path(name).glob("*/requirements/run.lock")
            run(*pip, "--require-hashes", "--requirement", lock, cwd=self.folder)
        run(*pip, "--no-deps", "--no-build-isolation", self.built()["sdist"], cwd=self.folder)
        self.environment = self.environment or environment
        return self.use(environment)

    def use(self, environment: Path) -> str:
        """Check that an installation does not import the checkout, list its tools, and scan loopback with it."""
        where = run(environment / "bin/python", "-I", "-c", "import mcp_server; print(mcp_server.__file__)").strip()
        if not where.startswith(str(environment)):
            raise CheckFailedError(f"the installation imports {where}")
        state = Path(tempfile.mkdtemp(dir=self.folder))
        smoke_script = shutil.copy(cells.SMOKE, state)
        words: list[str | Path] = ["--program", environment / "bin/mcp-network-tools", "--state", state / "state"]
        (state / "state").mkdir()
        steps = ["--steps", "installed", "doctor", "stdio", "handshake", "http"]
        output = run(
            environment / "bin/python", "-I", smoke_script, *words, "--version", self.version, *steps, cwd=state
        )
        return str({step["step"]: step for step in map(json.loads, output.splitlines())}["stdio"]["detail"])

    def step_sbom(self) -> str:
        """Write a CycloneDX SBOM of the environment, and compare it with its schema and the lock file."""
        if self.environment is None:
            raise StepNotPossibleError("nothing was installed")
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
        wanted = {each.name: each.version for each in locked_packages() if each.here}
        found = {name.lower().replace("_", "-").replace(".", "-"): version for name, version in listed.items()}
        if missing := sorted(wanted.items() - found.items()):
            raise CheckFailedError(f"the SBOM lacks {missing[:3]}")
        return f"{out.name}, {len(listed)} components"

    def step_licenses(self) -> str:
        """Check that the license of every dependency is on the list, and that the page is current."""
        found = licenses.report(str(self.environment / "bin/python") if self.environment else sys.executable)
        if problems := licenses.refused(found):
            raise CheckFailedError(f"not on the list: {'; '.join(problems)}")
        if licenses.PAGE.read_text() != licenses.page(found):
            raise CheckFailedError("docs/licenses.md is stale")
        shutil.copy(licenses.PAGE, self.to / "licenses.md")
        return f"{len(found)} packages"

    def step_audit(self) -> str:
        """Check that no pinned package has a known vulnerability."""
        found = audit.audit()
        if found.status == audit.COULD_NOT_AUDIT:
            raise StepNotPossibleError("; ".join(found.lines))
        if found.status != audit.CLEAN:
            raise CheckFailedError("; ".join(found.lines))
        return "; ".join(found.lines)

    def step_registry(self) -> str:
        """Check the registry entry against its schema, the proof of ownership in README.md, and the owner."""
        rule = "mcp-registry-server-json-valid"
        run(Path(sys.executable).with_name("skillsaw"), "lint", "--strict", "--rule", rule, ROOT / "server.json")
        if manifests.MCP_NAME not in (ROOT / "README.md").read_text():
            raise CheckFailedError(f"README.md lacks {manifests.MCP_NAME}")
        shutil.copy(ROOT / "server.json", self.to)
        if manifests.OWNER == manifests.NO_OWNER:
            raise StepNotPossibleError(
                "valid, but no owner is set: set owner in pyproject.toml, [tool.mcp-network-tools]"
            )
        return manifests.REGISTRY_NAME

    def step_bundle(self) -> str:
        """Pack the bundle for Claude Desktop; the bundler checks it, and its content is checked."""
        self.built()
        packed = artifacts.bundle(self.folder, self.folder / "one/tree")
        shutil.copy(packed, self.to)
        return f"{packed.name} ({packed.stat().st_size // 1024} KiB)"

    def step_bundle_used(self) -> str:
        """Run the command of the bundle's manifest like Claude Desktop: uv creates the environment and serves."""
        unpacked = self.folder / "unpacked"
        if not unpacked.exists():
            raise StepNotPossibleError("there is no bundle")
        server = json.loads((unpacked / "manifest.json").read_text())["server"]["mcp_config"]
        default = manifests.bundle_manifest()["user_config"]["scope"]["default"]
        settings = {key: value.replace("${user_config.scope}", default) for key, value in server["env"].items()}
        words = [word.replace("${__dirname}", str(unpacked)) for word in server["args"]]
        uv = Path(sys.executable).with_name(server["command"])
        state = {"MCP_STATE_DIR": str(self.folder / "bundle-state")}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": smoke.MODERN}}
        ended = subprocess.run(
            [uv, *words],
            input=json.dumps(message) + "\n",
            env={**os.environ, **settings, **state},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if '"nmap"' not in ended.stdout:
            raise CheckFailedError(f"the server ended with {ended.returncode}: {ended.stderr.strip()[-300:]}")
        return "tools/list was answered"

    def built(self) -> dict[str, Path]:
        """Return the wheel and the sdist; raise StepNotPossibleError if they were not built."""
        if not self.files:
            raise StepNotPossibleError("nothing was built")
        return self.files


STEPS: Final = tuple(name.removeprefix("step_") for name in vars(Release) if name.startswith("step_"))


def changelog_section(text: str, version: str) -> str:
    """Return the number of entries of a version's section; raise CheckFailedError if it is missing or empty."""
    found = re.search(
        rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise CheckFailedError(f"CHANGELOG.md has no section '## {version} - YYYY-MM-DD'")
    lines = [line for line in found.group(1).splitlines() if line.startswith("- ")]
    if not lines:
        raise CheckFailedError(f"the section {version} of CHANGELOG.md is empty")
    unreleased = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if unreleased and "- " in unreleased.group(1):
        raise CheckFailedError("CHANGELOG.md has entries under Unreleased")
    return f"{len(lines)} lines"


def attempt(name: str, step: Callable[[], str], anyway: frozenset[str]) -> StepResult:
    """Run a step and return its result."""
    try:
        return StepResult(name, PASSED, step())
    except StepNotPossibleError as error:
        return StepResult(name, ANYWAY if name in anyway else COULD_NOT, str(error))
    except (CheckFailedError, matrix.InstallationError, OSError, subprocess.SubprocessError, StopIteration) as error:
        return StepResult(name, ANYWAY if name in anyway else FAILED, f"{type(error).__name__}: {error}"[:400])


def record(to: Path, version: str, results: list[StepResult]) -> str:
    """Write RELEASE.md: each step, and the steps whose failure was ignored."""
    rows = "\n".join(f"| {each.step} | {each.state} | {each.detail.replace('|', '/')} |" for each in results)
    ignored = [each.step for each in results if each.state == ANYWAY]
    note = (
        f"\n\nReleased although these steps did not pass, by --release-anyway: {', '.join(ignored)}." if ignored else ""
    )
    text = f"# mcp-network-tools {version}\n\n| step | state | found |\n|---|---|---|\n{rows}{note}\n"
    (to / "RELEASE.md").write_text(text)
    return text


def write_checksums(to: Path) -> None:
    """Write SHA256SUMS of all files, in the format of sha256sum --check."""
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(to.iterdir())]
    (to / "SHA256SUMS").write_text("".join(lines))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build and check a release. Nothing is published.")
    parser.add_argument("--to", type=Path, default=ROOT / "dist")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=STEPS,
        default=list(STEPS),
        metavar="STEP",
        help="run only these steps; this makes no release",
    )
    parser.add_argument("--release-anyway", nargs="+", choices=STEPS, default=[], metavar="STEP")
    options = parser.parse_args(argv)
    shutil.rmtree(options.to, ignore_errors=True)
    options.to.mkdir(parents=True)
    os.environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    with tempfile.TemporaryDirectory(prefix="release-") as name:
        release = Release(Path(name), options.to)
        results = []
        for step in STEPS:
            if step in options.only:
                results.append(attempt(step, getattr(release, f"step_{step}"), frozenset(options.release_anyway)))
                print(f"{results[-1].state:10} {step:10} {results[-1].detail}", flush=True)
        for path in release.files.values():
            shutil.copy(path, options.to)
    record(options.to, release.version, results)
    blocking = [each.step for each in results if each.state in {FAILED, COULD_NOT}]
    if blocking or set(options.only) != set(STEPS):
        print(f"\nNot a release: {', '.join(blocking) or 'only some steps were run'}. SHA256SUMS was not written.")
        return 1 if blocking else 0
    write_checksums(options.to)
    print(f"\n{options.to} is ready to be published.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
