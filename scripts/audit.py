"""Check the locked packages for known vulnerabilities; fail if there is no result for one of them.

pip-audit itself exits with 0 if a service knows none of the packages: it counts them as skipped. Here they count as not
audited.

    python -m scripts.audit [--lock requirements/run.lock] [--service pypi|osv] [--osv-url URL]

Exit status: 0 if every package was audited and none is vulnerable, 1 if one is vulnerable, 3 if one was not audited.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scripts.locked import RUN_LOCK, locked_packages

CLEAN, VULNERABLE, COULD_NOT_AUDIT = 0, 1, 3
SERVICES: Final = ("pypi", "osv")


@dataclass(frozen=True, slots=True)
class Audit:
    """The exit status, and a line for each reason."""

    status: int
    lines: tuple[str, ...]


def audit(lock: Path = RUN_LOCK, services: tuple[str, ...] = SERVICES, osv_url: str = "") -> Audit:
    """Ask each service until one has a result for every pin of this platform. Any vulnerability ends the audit."""
    wanted = {each.name: each.version for each in locked_packages(lock) if each.here}
    reasons: list[str] = []
    for service in services:
        document, message = _ask(service, lock, osv_url)
        if document is None:
            reasons.append(f"{service}: could not audit: {message}")
            continue
        found = _vulnerable(document)
        if found:
            return Audit(VULNERABLE, tuple(found))
        left = sorted(set(wanted) - _audited(document))
        if not left:
            return Audit(CLEAN, (f"{service}: {len(wanted)} packages, no known vulnerability",))
        named = ", ".join(left[:3]) + (" …" if len(left) > 3 else "")
        reasons.append(f"{service}: could not audit {len(left)} of {len(wanted)} packages ({named})")
    return Audit(COULD_NOT_AUDIT, tuple(reasons))


def _ask(service: str, lock: Path, osv_url: str) -> tuple[dict[str, Any] | None, str]:
    """Run pip-audit; return its document, or None and the last line of its error output."""
    words = ["--requirement", str(lock), "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    words += ["--vulnerability-service", service, "--timeout", "20"]
    if service == "osv" and osv_url:
        words += ["--osv-url", osv_url]
    done = subprocess.run([sys.executable, "-m", "pip_audit", *words], capture_output=True, text=True, check=False)
    try:
        document = json.loads(done.stdout)
    except ValueError:
        return None, (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
    return document, ""


def _audited(document: dict[str, Any]) -> set[str]:
    return {each["name"] for each in document["dependencies"] if "skip_reason" not in each and "vulns" in each}


def _vulnerable(document: dict[str, Any]) -> list[str]:
    return [
        f"{each['name']} {each['version']}: {known['id']}, fixed in {', '.join(known['fix_versions']) or 'no version'}"
        for each in document["dependencies"]
        for known in each.get("vulns", ())
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Audit the locked packages.")
    parser.add_argument("--lock", type=Path, default=RUN_LOCK)
    parser.add_argument("--service", choices=SERVICES, nargs="+", default=list(SERVICES))
    parser.add_argument("--osv-url", default="")
    options = parser.parse_args()
    found = audit(options.lock, tuple(options.service), options.osv_url)
    print({CLEAN: "clean", VULNERABLE: "VULNERABLE", COULD_NOT_AUDIT: "COULD NOT AUDIT"}[found.status])
    print("\n".join(found.lines))
    return found.status


if __name__ == "__main__":
    sys.exit(main())
