"""The release script, run on the current commit: its steps pass, and it refuses wrong files and licenses."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from scripts import artifacts, audit, licenses, locked, manifests, release
from scripts.artifacts import CheckFailedError
from tests.support.mcp_wire import ServedProcess, modern
from tests.support.packages import offline_pip, packages

STEPS_RUN_HERE = (
    "version",
    "hashes",
    "build",
    "contents",
    "metadata",
    "sdist",
    "sbom",
    "licenses",
    "registry",
    "bundle",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, release.StepResult]]:
    """Run every step that needs no network; return the folder and the result of each step."""
    to = tmp_path_factory.mktemp("dist")
    folder = tmp_path_factory.mktemp("release")
    started = release.Release(folder, to)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in offline_pip(packages()).items():
            environment.setenv(name, value)
        results = {
            name: release.attempt(name, getattr(started, f"step_{name}"), frozenset()) for name in STEPS_RUN_HERE
        }
    for path in started.files.values():
        shutil.copy(path, to)
    return to, results


@pytest.mark.timeout(300)
@pytest.mark.parametrize("step", [name for name in STEPS_RUN_HERE if name != "registry"])
def test_each_step_passes(made: tuple[Path, dict[str, release.StepResult]], step: str) -> None:
    assert made[1][step].state == release.PASSED, made[1][step].detail


def test_the_registry_entry_is_valid_and_waits_for_an_owner(made: tuple[Path, dict[str, release.StepResult]]) -> None:
    result = made[1]["registry"]
    if manifests.OWNER == manifests.NO_OWNER:
        assert result.state == release.COULD_NOT
        assert result.detail.startswith("valid, but no owner is set")
    else:
        assert result.state == release.PASSED, result.detail


def test_the_sbom_names_every_pin_with_its_version(made: tuple[Path, dict[str, release.StepResult]]) -> None:
    (path,) = made[0].glob("*.cdx.json")
    document = json.loads(path.read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["component"]["name"] == "mcp-network-tools"
    found = {(canonicalize_name(each["name"]), each["version"]) for each in document["components"]}
    assert {(each.name, each.version) for each in locked.locked_packages() if each.here} <= found
    assert [each["name"] for each in document["components"] if not each.get("licenses")] == []


def test_every_pin_has_hashes_in_both_lock_files() -> None:
    for name in ("run.lock", "dev.lock"):
        path = locked.ROOT / "requirements" / name
        found = locked.locked_packages(path)
        lines = re.findall(r"^[a-z0-9._-]+(?:\[[^\]]*\])?==", path.read_text(), re.MULTILINE)
        assert len(found) == len(lines) > 50
        assert [each.name for each in found if not each.hashes] == []


# contents and changelog


def altered(wheel: Path, folder: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """Return a copy of a wheel with changed files."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    copy = folder / wheel.name
    with zipfile.ZipFile(copy, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return copy


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (
            lambda files: files.update({"mcp_server/secret.env": b""}),
            "contains unexpected files: mcp_server/secret.env",
        ),
        (lambda files: files.update({"tests/data/x.xml": b""}), "contains unexpected files: tests/data/x.xml"),
        (lambda files: files.pop("mcp_server/py.typed"), "lacks mcp_server/py.typed"),
        (lambda files: files.pop("mcp_server/audit/record.schema.json"), "lacks mcp_server/audit/record.schema.json"),
        (
            lambda files: files.pop(next(name for name in files if "migrations/versions" in name)),
            "lacks mcp_server/",
        ),
        (lambda files: files.pop(next(name for name in files if name.endswith("LICENSE"))), "lacks mcp_network_tools"),
    ],
    ids=["a secret", "test data", "no py.typed", "no schema", "no migration", "no license"],
)
def test_a_wheel_with_additional_or_missing_files_is_refused(
    made: tuple[Path, dict[str, release.StepResult]],
    tmp_path: Path,
    change: Callable[[dict[str, bytes]], object],
    word: str,
) -> None:
    (wheel,), (sdist,) = made[0].glob("*.whl"), made[0].glob("*.tar.gz")
    assert artifacts.check_contents({"wheel": wheel, "sdist": sdist}, manifests.version())
    with pytest.raises(CheckFailedError, match=re.escape(word)):
        artifacts.check_contents({"wheel": altered(wheel, tmp_path, change), "sdist": sdist}, manifests.version())


def test_an_sdist_with_additional_files_is_refused(
    made: tuple[Path, dict[str, release.StepResult]], tmp_path: Path
) -> None:
    (wheel,), (sdist,) = made[0].glob("*.whl"), made[0].glob("*.tar.gz")
    shutil.unpack_archive(sdist, tmp_path, filter="data")
    (top,) = tmp_path.iterdir()
    (top / "tests").mkdir()
    (top / "tests/secret").touch()
    with tarfile.open(tmp_path / sdist.name, "w:gz") as archive:
        archive.add(top, top.name)
    with pytest.raises(CheckFailedError, match="the sdist contains unexpected files: tests/secret"):
        artifacts.check_contents({"wheel": wheel, "sdist": tmp_path / sdist.name}, manifests.version())


def test_a_build_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(tree: Path, folder: Path, _epoch: str) -> dict[str, Path]:
        folder.mkdir(parents=True)
        (folder / "x").write_text(str(tree))
        return {"wheel": folder / "x"}

    monkeypatch.setattr(artifacts, "build", build)
    with pytest.raises(CheckFailedError, match="the wheel differs"):
        artifacts.build_twice(tmp_path, "0")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("# Changelog\n\n## Unreleased\n\n- x\n", "has no section '## 1.2.3 - YYYY-MM-DD'"),
        ("## 1.2.3\n\n- x\n", "has no section"),
        ("## 1.2.30 - 2026-01-01\n\n- x\n", "has no section"),
        ("## 1.2.3 - 2026-01-01\n\n## 1.2.2 - 2025-01-01\n\n- x\n", "the section 1.2.3 of CHANGELOG.md is empty"),
        ("## Unreleased\n\n- more\n\n## 1.2.3 - 2026-01-01\n\n- x\n", "has entries under Unreleased"),
    ],
)
def test_a_changelog_without_its_section_is_refused(text: str, word: str) -> None:
    with pytest.raises(CheckFailedError, match=word):
        release.changelog_section(text, "1.2.3")


def test_a_changelog_with_its_section_is_accepted() -> None:
    assert release.changelog_section("## Unreleased\n\n## 1.2.3 - 2026-01-01\n\n- x\n- y\n", "1.2.3") == "2 lines"


# version and owner


def test_files_made_from_the_version_are_current() -> None:
    assert manifests.stale() == []
    assert manifests.MCP_NAME in (locked.ROOT / "README.md").read_text()
    assert manifests.version() == json.loads((locked.ROOT / "server.json").read_text())["version"]


def test_the_version_is_defined_in_one_file() -> None:
    git = shutil.which("git") or "git"
    listed = subprocess.run([git, "ls-files"], cwd=locked.ROOT, capture_output=True, text=True, check=True).stdout
    made_from_it = {str(path.relative_to(locked.ROOT)) for path in manifests.FILES}
    expected = {"src/mcp_server/__init__.py", "CHANGELOG.md", *made_from_it}
    named = re.compile(
        rf"(?:version|mcp.network.tools)\W{{0,20}}{re.escape(manifests.version())}(?![\d.])", re.IGNORECASE
    )
    for name in listed.split():
        if name not in expected and not name.startswith(("requirements/", "tests/", "docs/decisions/")):
            path = locked.ROOT / name
            if path.is_file() and path.suffix not in {".png", ".gz"}:
                assert named.search(path.read_text(errors="replace")) is None, name


@pytest.mark.parametrize("wrong", [{"version": "^1.0"}, {"name": "no-namespace"}, {"description": "x" * 101}])
def test_an_invalid_registry_entry_is_refused(tmp_path: Path, wrong: dict[str, str]) -> None:
    (tmp_path / "server.json").write_text(json.dumps(manifests.server_json() | wrong))
    skillsaw = Path(sys.executable).with_name("skillsaw")
    words = ("lint", "--strict", "--rule", "mcp-registry-server-json-valid", tmp_path / "server.json")
    with pytest.raises(CheckFailedError, match="skillsaw ended with 1"):
        artifacts.run(skillsaw, *words)


# licenses


def test_the_license_page_is_current_and_every_license_is_on_the_list() -> None:
    found = licenses.report()
    assert licenses.refused(found) == []
    assert licenses.PAGE.read_text() == licenses.page(found)


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("Apache-2.0 AND BSD-2-Clause", True),
        ("MIT AND (GPL-2.0-only OR ISC)", True),
        ("GPL-3.0-or-later", False),
        ("MIT AND GPL-3.0-only", False),
        ("AGPL-3.0-only", False),
        ("UNKNOWN", False),
        ("Proprietary", False),
        ("", False),
        ("MIT OR", False),
    ],
)
def test_only_licenses_on_the_list_are_allowed(expression: str, allowed: bool) -> None:
    assert licenses.allowed(expression) is allowed
    assert bool(licenses.refused({"package": ("1", expression)})) is not allowed


# the audit: the tests may run without internet access, so a local server replaces the vulnerability service


class Osv(http.server.BaseHTTPRequestHandler):
    """A server for OSV queries: one vulnerability for ``vulnerable``, status 500 for ``broken``, otherwise none."""

    vulnerable: str = ""
    broken: str = ""

    def do_POST(self) -> None:
        """Answer one query."""
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = query["package"]["name"]
        ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99"}]}]
        affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": ranges}]
        known = {"id": "TEST-2026-1", "affected": affected, "summary": "made for this test"}
        body = json.dumps({"vulns": [known]} if name == self.vulnerable else {}).encode()
        self.send_response(500 if name == self.broken else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    found = tmp_path / "some.lock"
    found.write_text("".join(f"{name}==1.0 \\\n    --hash=sha256:{'0' * 64}\n" for name in ("anyio", "idna")))
    return found


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Iterator[str]:
    handler: type[Osv] = type("Handler", (Osv,), dict(request.param))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("service", "status"),
    [({}, audit.CLEAN), ({"vulnerable": "idna"}, audit.VULNERABLE), ({"broken": "idna"}, audit.COULD_NOT_AUDIT)],
    indirect=["service"],
    ids=["clean", "vulnerable", "no result for one"],
)
def test_the_audit_has_a_status_for_clean_vulnerable_and_not_audited(service: str, status: int, lock: Path) -> None:
    found = audit.audit(lock, ("osv",), service)
    assert found.status == status, found.lines
    if status == audit.VULNERABLE:
        assert found.lines == ("idna 1.0: TEST-2026-1, fixed in 99",)


def test_an_unreachable_service_is_not_a_clean_audit(lock: Path) -> None:
    found = audit.audit(lock, ("osv",), "http://127.0.0.1:9/v1/query")
    assert found.status == audit.COULD_NOT_AUDIT
    assert "could not audit" in found.lines[0]


def test_packages_unknown_to_the_service_count_as_not_audited(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = {
        "dependencies": [{"name": "anyio", "version": "1.0", "vulns": []}, {"name": "idna", "skip_reason": "?"}]
    }
    monkeypatch.setattr(audit, "_ask", lambda *_: (document, ""))
    found = audit.audit(lock, ("pypi",))
    assert found.status == audit.COULD_NOT_AUDIT
    assert found.lines == ("pypi: could not audit 1 of 2 packages (idna)",)


# the result of a release


@pytest.fixture
def three_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the release to three steps: one passes, one could not be run, one fails."""

    def could_not(_self: release.Release) -> str:
        raise release.StepNotPossibleError("no service answered")

    def failed(_self: release.Release) -> str:
        raise CheckFailedError("the metadata is wrong")

    monkeypatch.setattr(release, "STEPS", ("hashes", "audit", "metadata"))
    monkeypatch.setattr(release.Release, "step_audit", could_not)
    monkeypatch.setattr(release.Release, "step_metadata", failed)


@pytest.mark.usefixtures("three_steps")
@pytest.mark.parametrize("anyway", [[], ["audit"], ["metadata"]])
def test_one_step_that_did_not_pass_prevents_the_release(anyway: list[str], tmp_path: Path) -> None:
    words = ["--release-anyway", *anyway] if anyway else []
    assert release.main(["--to", str(tmp_path / "dist"), "--only", *release.STEPS, *words]) == 1
    assert not (tmp_path / "dist/SHA256SUMS").exists()
    record = (tmp_path / "dist/RELEASE.md").read_text()
    assert ("| audit | COULD NOT | no service answered |" in record) == ("audit" not in anyway)
    assert ("| metadata | FAILED | " in record) == ("metadata" not in anyway)


@pytest.mark.usefixtures("three_steps")
def test_a_release_with_ignored_steps_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "dist"
    words = ["--only", *release.STEPS, "--release-anyway", "audit", "metadata"]
    assert release.main(["--to", str(to), *words]) == 0
    assert "ANYWAY     audit" in capsys.readouterr().out
    assert "although these steps did not pass, by --release-anyway: audit, metadata." in (to / "RELEASE.md").read_text()
    digest = hashlib.sha256((to / "RELEASE.md").read_bytes()).hexdigest()
    assert (to / "SHA256SUMS").read_text() == f"{digest}  RELEASE.md\n"


def test_running_only_some_steps_makes_no_release(tmp_path: Path) -> None:
    assert release.main(["--to", str(tmp_path / "dist"), "--only", "hashes"]) == 0
    assert not (tmp_path / "dist/SHA256SUMS").exists()


# installation without a checkout


async def test_uvx_runs_the_wheel_with_downloaded_packages(
    made: tuple[Path, dict[str, release.StepResult]], tmp_path: Path
) -> None:
    """Run the command of docs/clients.md, with a folder of the locked packages instead of an index."""
    (line,) = re.findall(r"^    (uvx .*)$", (locked.ROOT / "docs/clients.md").read_text(), re.MULTILINE)
    (wheel,) = made[0].glob("*.whl")
    uvx, *words = [str(wheel) if word.startswith("dist/") else word for word in line.split()]
    own = [
        "--no-index",
        "--find-links",
        str(packages()),
        "--python",
        sys.executable,
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    environment: dict[str, Any] = {"MCP_STATE_DIR": str(tmp_path / "state")}
    command = str(Path(sys.executable).with_name(uvx))
    async with ServedProcess.open(command, *own, *words, env=environment) as client:
        await client.send(modern(1, "tools/list"))
        answer = await client.receive()
    assert "nmap" in {tool["name"] for tool in answer["result"]["tools"]}
