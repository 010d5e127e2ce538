"""Control the lab by hand: ``python -m tests.lab.network up|exec|status|truth|down``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict

from tests.lab.network.handle import Lab
from tests.lab.network.programs import ROOT, LabError
from tests.lab.network.truth import make_truth

_STATE = ROOT / ".cache/lab.json"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return 0, or 1 with the reason on standard error."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
    except LabError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.network", description="a private network to scan")
    commands = parser.add_subparsers(required=True)
    up = commands.add_parser("up", help="build the lab and leave it running")
    up.set_defaults(command=_up)
    truth = commands.add_parser("truth", help="print the hosts and ports of a lab as JSON")
    truth.set_defaults(command=_truth)
    for builder in (up, truth):
        builder.add_argument("--fleet", type=int, default=2000, metavar="HOSTS")
        builder.add_argument("--no-databases", action="store_true")
    inside = commands.add_parser("exec", help="run a program in a namespace: exec scan -- nmap -n -sT 10.77.1.10")
    inside.add_argument("namespace")
    inside.add_argument("argv", nargs="+")
    inside.set_defaults(command=_exec)
    commands.add_parser("status", help="show whether the lab is up, and its namespaces").set_defaults(command=_status)
    commands.add_parser("down", help="end the lab").set_defaults(command=_down)
    return parser


def _up(options: argparse.Namespace) -> int:
    if _load().namespaces():
        raise LabError("the lab is already up")
    _STATE.parent.mkdir(exist_ok=True)
    lab = Lab.start(fleet=options.fleet, databases=not options.no_databases, detached=True)
    _STATE.write_text(json.dumps({"pid": lab.pid}))
    _print(f"up in {lab.build['total']} s: {lab.build}")
    return 0


def _truth(options: argparse.Namespace) -> int:
    _print(json.dumps(asdict(make_truth(fleet=options.fleet, databases=not options.no_databases)), indent=1))
    return 0


def _exec(options: argparse.Namespace) -> int:
    argv = _load().exec_argv(options.namespace, options.argv)
    os.execv(argv[0], argv)  # noqa: S606 - the program gets the terminal and the signals, and its exit status is returned


def _status(_options: argparse.Namespace) -> int:
    lab = _load()
    names = lab.namespaces()
    _print(f"up, process {lab.pid}: {' '.join(names)}" if names else "down")
    return 0 if names else 1


def _down(_options: argparse.Namespace) -> int:
    _load().stop()
    _STATE.unlink(missing_ok=True)
    return 0


def _load() -> Lab:
    pid = json.loads(_STATE.read_text())["pid"] if _STATE.exists() else 0
    return Lab(make_truth(fleet=0, databases=False), pid)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
