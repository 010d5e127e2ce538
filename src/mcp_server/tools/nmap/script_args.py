"""Arguments for scripts: a closed table of names, each with its type and bounds, written in nmap's notation.

nmap reads ``--script-args`` as a table: ``name="value",name="value"``. An unquoted word ends at ``, { } =``, and a
quoted word ends at its quote (nse_main.lua and lpeg-utility.lua of 7.93). Every value here is written in double quotes,
and its type allows neither a quote nor a backslash, so a value cannot end early.

Never add an argument whose value is a file, a host, a credential or a list of targets, or an argument that makes a
script change something on the target (``http-methods.test-all`` sends DELETE). ``http.host`` and ``tls.servername`` are
set by `mcp_server.tools.nmap.argv` only, to the name of the target. That name is an A-label inside the scope.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mcp_server.model.untrusted import sanitize
from mcp_server.tools.flags import check_characters

MAX_ARGS: Final = 16
ARGS_HINT: Final = 'Write script_args as {"http-title.url": "/login"}. The documentation lists the names.'

_PATH: Final = re.compile(r"/(?:[A-Za-z0-9._~?=:,*+-]+(?:/[A-Za-z0-9._~?=:,*+-]+)*/?)?")
_AGENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/()+:,=-]{0,98}[A-Za-z0-9.)]")
_PATH_CHARS: Final = 255
_WEB: Final = ("http-auth", "http-git", "http-headers", "http-methods", "http-robots.txt", "http-title", "http-trace")
_VULNS: Final = (
    *("ipmi-cipher-zero", "realvnc-auth-bypass", "smb-vuln-ms17-010", "ssl-ccs-injection", "ssl-dh-params"),
    *("ssl-heartbleed", "ssl-poodle", "sslv2-drown", "tls-ticketbleed"),
)


@dataclass(frozen=True, slots=True)
class Path:
    """A path on the scanned web server: ``/``, ``/login``, ``/a/b.html?c=d``."""

    label: str = "PATH"

    def emit(self, value: Any) -> str | None:
        """Return the path. Raises ValueError that says what is allowed."""
        fits = isinstance(value, str) and len(value) <= _PATH_CHARS and _PATH.fullmatch(value)
        if not fits or any(part in {".", ".."} for part in re.split("[/?]", value)):
            raise ValueError(f"a path of up to {_PATH_CHARS} characters as /login or /a/b.html?c=d, without '..'")
        return str(value)


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number within bounds, with a unit that is appended."""

    low: int
    high: int
    unit: str = ""

    @property
    def label(self) -> str:
        """The label: ``INT low-high``."""
        return f"INT {self.low}-{self.high}"

    def emit(self, value: Any) -> str | None:
        """Return its digits and the unit. Raises ValueError that says what is allowed."""
        if not isinstance(value, int) or isinstance(value, bool) or not self.low <= value <= self.high:
            raise ValueError(f"a whole number from {self.low} to {self.high}")
        return f"{value}{self.unit}"


@dataclass(frozen=True, slots=True)
class Switch:
    """A switch: true or false. False has the same effect as leaving it out."""

    label: str = "BOOL"

    def emit(self, value: Any) -> str | None:
        """Return ``true``, or None for false. Raises ValueError that says what is allowed."""
        if not isinstance(value, bool):
            raise ValueError("true or false")  # noqa: TRY004 - one error type for values of every kind
        return "true" if value else None


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a closed list of words."""

    words: tuple[str, ...]

    @property
    def label(self) -> str:
        """The label: ``a|b``."""
        return "|".join(self.words)

    def emit(self, value: Any) -> str | None:
        """Return the word. Raises ValueError that says what is allowed."""
        if value not in self.words or not isinstance(value, str):
            raise ValueError(f"one of {', '.join(self.words)}")
        return value


@dataclass(frozen=True, slots=True)
class Agent:
    """The name of a client: letters, digits, spaces and ``. _ / ( ) + : , = -``."""

    label: str = "TEXT"

    def emit(self, value: Any) -> str | None:
        """Return the text. Raises ValueError that says what is allowed."""
        if not isinstance(value, str) or not _AGENT.fullmatch(value):
            raise ValueError("2 to 100 letters, digits, spaces and . _ / ( ) + : , = -")
        return value


@dataclass(frozen=True, slots=True)
class ScriptArg:
    """One argument: its name in nmap, the scripts that read it, its type, and its description."""

    name: str
    scripts: tuple[str, ...]
    value: Path | Number | Switch | OneOf | Agent
    help: str


ARGS: Final = (
    ScriptArg("banner.timeout", ("banner",), Number(1, 60, "s"), "Seconds to wait for a banner; 5 by default."),
    ScriptArg("ftp-anon.maxlist", ("ftp-anon",), Number(0, 1000), "Highest number of files listed; 20 by default."),
    ScriptArg("http-auth.path", ("http-auth",), Path(), "Path that is requested; / by default."),
    ScriptArg("http-git.root", ("http-git",), Path(), "Folder in which .git is searched; / by default."),
    ScriptArg("http-headers.path", ("http-headers",), Path(), "Path that is requested; / by default."),
    ScriptArg("http-headers.useget", ("http-headers",), Switch(), "Send GET instead of HEAD."),
    ScriptArg("http-methods.url-path", ("http-methods",), Path(), "Path that is requested; / by default."),
    ScriptArg("http-title.url", ("http-title",), Path(), "Path that is requested; / by default."),
    ScriptArg("http-trace.path", ("http-trace",), Path(), "Path that is requested; / by default."),
    ScriptArg("http.max-body-size", _WEB, Number(1024, 2_097_152), "Highest number of bytes read of a page."),
    ScriptArg("http.useragent", _WEB, Agent(), "User-Agent header that is sent to web servers."),
    ScriptArg(
        "ssh_hostkey",
        ("ssh-hostkey",),
        OneOf(("full", "sha256", "md5", "bubble", "visual", "all")),
        "How host keys are shown.",
    ),
    ScriptArg("vulns.short", _VULNS, Switch(), "One line for each vulnerability."),
    ScriptArg("vulns.showall", _VULNS, Switch(), "Also report checks that found no vulnerability."),
)
"""Every argument that a caller can give. nmap's http library reads ``http.*``, its vulns library ``vulns.*``."""

_BY_NAME: Final = {argument.name: argument for argument in ARGS}

ScriptArgs = tuple[tuple[str, str], ...]
"""Pairs of name and value as nmap reads them, sorted by name."""


def parse_script_args(given: Mapping[str, Any]) -> ScriptArgs:
    """Return the arguments as nmap reads them.

    Raises ValueError that names an unknown argument or a wrong value, and ArgumentError ``forbidden_characters`` for a
    character that no value may hold.
    """
    found: dict[str, str] = {}
    for name, value in given.items():
        argument = _BY_NAME.get(name)
        if argument is None:
            raise ValueError(f"'{sanitize(name, 40)}' is not a script argument{_nearest(name)}")
        if isinstance(value, str):
            check_characters(value, f"script_args {name}")
        try:
            text = argument.value.emit(value)
        except ValueError as error:
            shown = sanitize(str(value), 40)
            raise ValueError(f"{name} does not take '{shown}'; it takes {error}") from None
        if text is not None:
            found[name] = text
    return tuple(sorted(found.items()))


def unread(arguments: ScriptArgs, scripts: tuple[str, ...]) -> str | None:
    """Return the name of an argument that none of ``scripts`` reads, or None."""
    return next((name for name, _ in arguments if not set(_BY_NAME[name].scripts).intersection(scripts)), None)


def emit_script_args(arguments: ScriptArgs) -> str:
    """Return the value of nmap's ``--script-args``."""
    return ",".join(f'{name}="{value}"' for name, value in arguments)


def _nearest(name: str) -> str:
    import difflib

    nearest = difflib.get_close_matches(name[:40], _BY_NAME, n=2, cutoff=0.5)
    return f" (similar: {', '.join(nearest)})" if nearest else ""
