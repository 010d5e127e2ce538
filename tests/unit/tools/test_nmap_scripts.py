"""The script lists hold the reviewed scripts, and no other script can be named."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from mcp_server.tools.nmap.scripts import (
    CATEGORIES,
    INTRUSIVE,
    INTRUSIVE_NAMES,
    MAX_SCRIPTS,
    SAFE,
    SAFE_NAMES,
    NseScript,
    ScriptsValue,
    parse_scripts,
)

FOLDER = Path("/usr/share/nmap/scripts")
NEVER = {"external", "broadcast", "brute", "dos", "exploit", "fuzzer", "malware"}
TOUCHES_FILES_OR_TARGETS = re.compile(
    r"io\.(open|popen|lines|output)|os\.(execute|remove|rename|tmpname|getenv)|loadfile|dofile|fetchfile"
    r"|target\.add|newtargets|require ?\(? ?\"(unpwdb|brute|target|datafiles|creds|lfs)\"|\bprerule\s*="
)


def _script_db() -> dict[str, set[str]]:
    found = re.findall(
        r'filename = "(.*?)\.nse", categories = \{(.*?)\}', (FOLDER / "script.db").read_text(encoding="utf-8")
    )
    return {name: set(re.findall(r'"(.*?)"', categories)) for name, categories in found}


def test_there_are_twenty_one_safe_scripts_and_no_name_is_on_both_lists() -> None:
    assert len(SAFE) == len(SAFE_NAMES) == 21
    assert not SAFE_NAMES & INTRUSIVE_NAMES
    assert len(INTRUSIVE) == len(INTRUSIVE_NAMES)
    assert MAX_SCRIPTS == 34


@pytest.mark.parametrize("script", [*SAFE, *INTRUSIVE], ids=lambda script: script.name)
def test_the_installed_file_is_the_reviewed_file(script: NseScript) -> None:
    body = (FOLDER / f"{script.name}.nse").read_bytes()
    assert hashlib.sha256(body).hexdigest() == script.sha256
    assert set(script.categories.split()) == _script_db()[script.name]
    assert not set(script.categories.split()) & NEVER
    assert not TOUCHES_FILES_OR_TARGETS.search(body.decode(errors="replace"))
    assert "dns.query" not in body.decode(errors="replace")
    assert "redirect_ok" not in body.decode(errors="replace")


@pytest.mark.parametrize("script", SAFE, ids=lambda script: script.name)
def test_a_safe_script_is_only_in_safe_categories(script: NseScript) -> None:
    categories = set(script.categories.split())
    assert categories & {"safe", "default", "discovery"}
    assert not categories & {"intrusive", "vuln"}


def test_a_category_selects_only_listed_scripts() -> None:
    assert set(CATEGORIES["safe"]) == SAFE_NAMES
    assert set(CATEGORIES["default"]) < SAFE_NAMES
    assert set(CATEGORIES["discovery"]) < SAFE_NAMES
    assert set(CATEGORIES["vuln"]) == INTRUSIVE_NAMES
    assert parse_scripts(["safe"]) == tuple(sorted(SAFE_NAMES))
    assert parse_scripts(["ssl-cert", "banner", "ssl-cert"]) == ("banner", "ssl-cert")
    assert set(parse_scripts(["default", "ssl-heartbleed"])) == {*CATEGORIES["default"], "ssl-heartbleed"}


@pytest.mark.parametrize(
    "item",
    [
        "",
        " ",
        "ssl-cert.nse",
        "/usr/share/nmap/scripts/ssl-cert.nse",
        "./ssl-cert",
        "../scripts",
        "http-*",
        "not intrusive",
        "safe and discovery",
        "+ssl-cert",
        "all",
        "external",
        "broadcast",
        "intrusive",
        "exploit",
        "SSL-CERT",
        "ssl-cert,banner",
        "http-security-headers",
        "dns-nsid",
        "https://10.0.0.1/x.nse",
        "x" * 64,
    ],
)
def test_paths_categories_and_expressions_are_not_scripts(item: str) -> None:
    with pytest.raises(ValueError, match="is not a script of this tool"):
        parse_scripts([item])


def test_similar_names_are_shown_and_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match=r"similar: .*ssl-cert"):
        parse_scripts(["ssl-certs"])
    with pytest.raises(ValueError, match="no script is named"):
        parse_scripts([])


def test_the_written_flag_value_is_not_changed_by_reading_it() -> None:
    value = ScriptsValue()
    assert value.label == "NAME,NAME"
    names = value.parse("vuln,default")
    assert value.parse(value.emit(names)) == names
    assert value.emit(("banner", "ssl-cert")) == "banner,ssl-cert"
