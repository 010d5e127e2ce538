"""Run the compatibility matrix: each interpreter, with and without root, with and without each optional program.

It builds the wheel, installs it with hashes into an empty environment of each interpreter, and tests it there
(smoke.py). It prints the state of every cell (passed, failed, in part, not run) with the reasons. Exit status: 1 if a
cell failed, 2 if no cell was run.

    python -m scripts.matrix [--python 3.12 ...] [--lacks nothing nmap ...] [--page docs/compatibility.md]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from scripts import cells, interpreters
from scripts.cells import Cell, Verdict
from scripts.interpreters import Interpreter, InterpreterNotFoundError

ROOT: Final = Path(__file__).resolve().parent.parent
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
LACKING: Final = {"nothing": (), **{name: (name,) for name in cells.OPTIONAL}, "everything": cells.OPTIONAL}
BEGIN, END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->\n"


class InstallationError(Exception):
    """The wheel could not be installed for an interpreter; the message has the end of the output."""


def build(folder: Path) -> tuple[Path, str]:
    """Build the wheel of this checkout; return its path and the version in its name."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel, wheel.name.split("-")[1]


def install(interpreter: Interpreter, wheel: Path, folder: Path) -> Path:
    """Create an empty virtual environment and install the locked packages and the wheel into it, by hash.

    Raises InstallationError if the interpreter cannot create one, or if no package of a locked version fits it.
    """
    environment = folder / f"python-{interpreter.version}"
    pinned = folder / "wheel.txt"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pinned.write_text(f"mcp-network-tools @ {wheel.as_uri()} --hash=sha256:{digest}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python"), "--quiet", "install"]
    for command in (
        [str(interpreter.program), "-I", "-m", "venv", "--without-pip", str(environment)],
        [*pip, "--only-binary", ":all:", "--require-hashes", "--requirement", str(ROOT / "requirements/run.lock")],
        [*pip, "--no-deps", "--require-hashes", "--requirement", str(pinned)],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
            raise InstallationError(f"the installation failed: {' '.join(errors[-3:])}")
    return environment


def run_cells(wanted: list[Cell], folder: Path, jobs: int) -> tuple[dict[Cell, Verdict], dict[str, str]]:
    """Run every cell, ``jobs`` at a time; return the verdicts, and the version and source of each interpreter."""
    wheel, version = build(folder)
    verdicts: dict[Cell, Verdict] = {}
    sources: dict[str, str] = {}
    for minor in dict.fromkeys(cell.python for cell in wanted):
        mine = [cell for cell in wanted if cell.python == minor]
        try:
            found = interpreters.find(minor, ROOT / ".cache/interpreters")
        except InterpreterNotFoundError as error:
            verdicts |= dict.fromkeys(mine, Verdict("not run", [f"no interpreter: {error}"]))
            continue
        sources[minor] = f"{found.version} ({found.source})"
        try:
            environment = install(found, wheel, folder)
        except InstallationError as error:
            verdicts |= dict.fromkeys(mine, Verdict("failed", [str(error)]))
            continue
        with ThreadPoolExecutor(jobs) as pool:
            # The loop continues with the next interpreter only after this pool has ended.
            done = pool.map(lambda cell, found=found, at=environment: cells.run(cell, found, at, version), mine)
            for cell, verdict in zip(mine, done, strict=True):
                verdicts[cell] = verdict
                print(f"{minor} as {cell.user}, missing {cell.lacks}: {verdict.state}", file=sys.stderr, flush=True)
    return verdicts, sources


def report(verdicts: dict[Cell, Verdict], sources: dict[str, str], seconds: float) -> str:
    """Return the table, the interpreters and all reasons as Markdown."""
    columns = list(dict.fromkeys(cell.absent for cell in verdicts))
    heads = [Cell("", "", absent).lacks for absent in columns]
    summary = f"{len(verdicts)} cells in {seconds:.0f} s, " + ", ".join(
        f"{count} {state}" for state, count in Counter(v.state for v in verdicts.values()).items()
    )
    lines = [
        f"Linux {platform.release().partition('-')[0]}, {platform.machine()}, {datetime.now(UTC):%Y-%m-%d}: {summary}",
        "",
        f"| Python | user | missing: {' | '.join(heads)} | start |",
        f"|---|---|{'---|' * len(heads)}---|",
    ]
    for python, user in dict.fromkeys((cell.python, cell.user) for cell in verdicts):
        row = [verdicts[Cell(python, user, absent)] for absent in columns]
        starts = [each.cold_start for each in row if each.cold_start is not None]
        start = f"{min(starts):.2f} s" if starts else "none"
        lines.append(f"| {python} | {user} | {' | '.join(each.state for each in row)} | {start} |")
    lines += ["", "Interpreters: " + ", ".join(sources.values()) + ".", ""]
    notes: dict[str, list[str]] = {}
    for cell, verdict in verdicts.items():
        for note in verdict.notes:
            notes.setdefault(note, []).append(f"{cell.python} {cell.user}, missing {cell.lacks}")
    lines += [f"- {note} — {'; '.join(where)}" for note, where in notes.items()]
    return "\n".join(lines).rstrip() + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the compatibility matrix.")
    parser.add_argument("--python", nargs="+", default=list(PYTHONS), help="minor versions (default: %(default)s)")
    parser.add_argument("--lacks", nargs="+", choices=list(LACKING), default=list(LACKING), metavar="NAME")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="number of cells that run at the same time"
    )
    parser.add_argument("--page", type=Path, help="a page whose results are replaced")
    options = parser.parse_args(argv)
    wanted = list(cells.cells(options.python, [LACKING[name] for name in options.lacks]))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="matrix-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the unprivileged user of a cell runs programs in it
        verdicts, sources = run_cells(wanted, folder, options.jobs)
    text = report(verdicts, sources, time.monotonic() - started)
    print(text)
    if options.page:
        before, _, rest = options.page.read_text().partition(BEGIN)
        options.page.write_text(before + BEGIN + text + END + rest.partition(END)[2])
    states = {verdict.state for verdict in verdicts.values()}
    return 1 if "failed" in states else 0 if states & {"passed", "in part"} else 2


if __name__ == "__main__":
    sys.exit(main())
