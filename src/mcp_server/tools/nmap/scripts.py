"""The scripts that nmap may run: a closed list of names. Each file was reviewed as it is in nmap 7.93.

Of the 604 scripts of 7.93, 52 use files or run programs, 43 can add targets, and many connect to third parties although
they are in the category ``safe``. A script is on the list `SAFE` only if all of this is true:

- It is in one of the categories safe, default and discovery, and in none of external, broadcast, brute, dos, exploit,
  fuzzer, malware, intrusive and vuln.
- It opens no file and adds no target.
- It connects to the scanned host only.

These were left out after review: ``http-security-headers`` (follows a redirect to any host), ``dns-nsid`` and other
users of ``dns.query`` (follow a referral to any name server), ``snmp-interfaces`` (adds targets), ``nbstat`` and
``http-favicon`` (read data files).

A category word (``safe``, ``default``, ``discovery``, ``vuln``) stands for the listed scripts of that category. A
category, path or expression never reaches an argv.

A named script runs only if its file is the reviewed one. The files of 7.94 and 7.95 are the same. nmap's own code is
trusted as the program itself is: it must not change while the server runs. It consists of ``nse_main.lua``, the
libraries, ``script.db``, and the scripts of category ``version``, which version detection runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mcp_server.model.untrusted import sanitize

NAMES_HINT: Final = "Give scripts by name, or by one of the words default, safe, discovery, vuln."


@dataclass(frozen=True, slots=True)
class NseScript:
    """A reviewed script: its name, its categories in script.db of 7.93, and the SHA-256 (hex) of the reviewed file."""

    name: str
    categories: str
    sha256: str


SAFE: Final = (
    NseScript("banner", "discovery safe", "5c7f1c6ce18e9b2543d21340974419d4b51c39b6bfca1230b96f3ed81a0eb14e"),
    NseScript("ftp-anon", "auth default safe", "65fde0934ff5cacba460aa0dbf0a797e99dbce255595d397d5a04f954ad5fadd"),
    NseScript("ftp-syst", "default discovery safe", "b4d1d25070d2c668a783a047562ea3294c11f1366609beded021084ff8afef87"),
    NseScript("http-auth", "auth default safe", "f1da83996856ff83760f1c7d0fa334ea9e9cfb9150e163b8e0ee3751c3d391d3"),
    NseScript("http-headers", "discovery safe", "988bd14e36758aac2350bcc23dc3b374de6c7c937774ca65c92187d899cabe46"),
    NseScript("http-methods", "default safe", "3e591ab8c42585fd491ff6b7555169095430676b289ea37fadd07d2ece7b4202"),
    NseScript(
        "http-robots.txt", "default discovery safe", "b1386a39cb77555f6fb62fd95de656f049ebb4ed5a09fd019dde13b699c865e5"
    ),
    NseScript(
        "http-title", "default discovery safe", "44148f81fec823ddc8ad7b6c23d9e342b70051d3f82f043a587cec6baec9c728"
    ),
    NseScript("imap-capabilities", "default safe", "0b4d91e5fa76dde758799fca36138106991859827f471c9a25cab8ae7b295c98"),
    NseScript("ldap-rootdse", "discovery safe", "18dacef2ff57e4a898fa16b88d4bbdfea87203fef413b856fd3ba6a940eeae21"),
    NseScript(
        "mysql-info", "default discovery safe", "e927da976d59a6dd7fa9ae9747bd740a8e314eba03a800979cf41d3b874c42a9"
    ),
    NseScript("ntp-info", "default discovery safe", "4cbde5b359e4b66df9c15d97be3ff715d7448602d455798b45a2f09730501df2"),
    NseScript(
        "rdp-ntlm-info", "default discovery safe", "efd5b69213c1ca081e246388e63e98ae591be9f560d0d4a4d2c170d6b253b2a6"
    ),
    NseScript(
        "rpcinfo", "default discovery safe version", "a6c8189c98194a28cba5148f4aa3306b2b68d3bad67454530aedcaa2e0b546ee"
    ),
    NseScript(
        "smb-os-discovery", "default discovery safe", "70cea1e95a7a8d9152574a860350169e8224a0e4ab43a2422c5e726f9d5aef1a"
    ),
    NseScript("smb-protocols", "discovery safe", "1a0717739ae7aa0e315122aa356ce2956d48395f2ed37f5a9392b0d0ff471494"),
    NseScript(
        "smb2-security-mode",
        "default discovery safe",
        "525787a85b6def7f57406e4f9be59a965cc77dc8a1a508273c03a1328c8bedc8",
    ),
    NseScript(
        "smtp-commands", "default discovery safe", "9afe6141906ef749be9a35b15aaae997ff1919c4a336b5e3f6e7548627094018"
    ),
    NseScript(
        "ssh-hostkey", "default discovery safe", "28ab3488c7ed664f1a6acaa0b48ea910fd332bb6a26e40e5f240eee76ea72a1f"
    ),
    NseScript("ssh2-enum-algos", "discovery safe", "c2a9d581095c236593ee76d588898381f9aa5e8732ca96cad8bdac1e82cc33f2"),
    NseScript("ssl-cert", "default discovery safe", "d5e6846289d1b8d4a0945b7a1080e6a3dc2041c7591f0faaef3794ae7f207b1b"),
)
"""Scripts that are always available."""

INTRUSIVE: Final = (
    NseScript("http-git", "default safe vuln", "f7f14ef38b4a8e9026b274a3d1b76711de798e0818c6c2d5d33013e91d633425"),
    NseScript("http-trace", "discovery safe vuln", "57d241e35684fad83665be5104dc345182753830ee57adad2b0fb0362a4f0da3"),
    NseScript("ipmi-cipher-zero", "safe vuln", "5af4eea5da65262ed9d3a4a1576fed215523d0f3889ed2caf22cb8961d8b8f27"),
    NseScript(
        "realvnc-auth-bypass", "auth safe vuln", "841a2d587de90326ff6c70a26e8a0de1af22de7de9071852c88ab1da2c1f97d4"
    ),
    NseScript(
        "smb-enum-shares", "discovery intrusive", "4506cfe176f00713b91054ae6eadd034d9b2f4bc027a9da0a124c52b5009ac19"
    ),
    NseScript("smb-vuln-ms17-010", "safe vuln", "243a3837b5bbcc4399f13f6f4f7ce4302b5f9c631240cdbaa20a9ddea199996e"),
    NseScript("ssl-ccs-injection", "safe vuln", "8d6370c3a876c64e236d1d2979614f200b44310d3f60d11c85be9813b25f14dd"),
    NseScript("ssl-dh-params", "safe vuln", "421c4f1ce8659493d5da542d01a2cbb4bd653b9227c9ac2d742eb4f4db3c4bb1"),
    NseScript(
        "ssl-enum-ciphers", "discovery intrusive", "a4b2a990e49f734323444bc124412eb878f5381ed5f0957de3dbd0d43abddd52"
    ),
    NseScript("ssl-heartbleed", "safe vuln", "9c84be1dea9df9e4a2e367d025a818e2b6af197dfa325fbbfc59b827a940efa5"),
    NseScript("ssl-poodle", "safe vuln", "9353cb716ea6bfea01d15bee135f4eccafd9d4fc983a4538810369b874d585cd"),
    NseScript("sslv2-drown", "intrusive vuln", "a311786f123efd12c1ffc30028bd4eeeac375a8f4179485caaa7491f6b692c9c"),
    NseScript("tls-ticketbleed", "safe vuln", "12ce8bdcd00754eaa73a5d5a0f2f80577fcdbb3b7de66d7e95b24e97c6b6fb6e"),
)
"""Scripts that check for vulnerabilities or may disturb a service. They need ``security.allow_intrusive``."""

SAFE_NAMES: Final = frozenset(script.name for script in SAFE)
INTRUSIVE_NAMES: Final = frozenset(script.name for script in INTRUSIVE)

CATEGORIES: Final[dict[str, tuple[str, ...]]] = {
    word: tuple(script.name for script in SAFE if word in script.categories.split())
    for word in ("default", "safe", "discovery")
} | {"vuln": tuple(script.name for script in INTRUSIVE)}
"""Category word to the names that it stands for."""

MAX_SCRIPTS: Final = len(SAFE) + len(INTRUSIVE)

OWN_CODE: Final = ("nse_main.lua", "scripts/script.db", "scripts/*.nse", "nselib/*.lua", "nselib/data/*.lua")
"""Files of nmap's data folder that nmap executes whenever it runs a script."""

_REVIEWED: Final = {script.name: frozenset({script.sha256}) for script in (*SAFE, *INTRUSIVE)}


def files_of(scripts: tuple[str, ...], *, services: bool) -> tuple[tuple[str, frozenset[str]], ...]:
    """Return the files of nmap's data folder that a scan executes, for `mcp_server.tools.base.Command.files`."""
    if not scripts and not services:
        return ()
    named = tuple((f"scripts/{name}.nse", _REVIEWED[name]) for name in scripts)
    return (*named, *((path, frozenset[str]()) for path in OWN_CODE))


def parse_scripts(items: list[str]) -> tuple[str, ...]:
    """Return the scripts that names and category words stand for, sorted, without repetitions.

    Raises ValueError that names the unknown word. Does not check whether intrusive scripts are allowed.
    """
    names: set[str] = set()
    for item in items:
        if item in CATEGORIES:
            names.update(CATEGORIES[item])
        elif item in SAFE_NAMES or item in INTRUSIVE_NAMES:
            names.add(item)
        else:
            raise ValueError(f"'{sanitize(item, 40)}' is not a script of this tool{_nearest(item)}")
    if not names:
        raise ValueError("no script is named")
    return tuple(sorted(names))


def _nearest(item: str) -> str:
    import difflib

    known = [*CATEGORIES, *sorted(SAFE_NAMES | INTRUSIVE_NAMES)]
    nearest = difflib.get_close_matches(item[:40], known, n=3)
    return f" (similar: {', '.join(nearest)})" if nearest else ""


@dataclass(frozen=True, slots=True)
class ScriptsValue:
    """The value of ``--script``: names and category words, separated by commas."""

    @property
    def label(self) -> str:
        """The label: ``NAME,NAME``."""
        return "NAME,NAME"

    def parse(self, text: str) -> tuple[str, ...]:
        """Return the names."""
        return parse_scripts(text.split(","))

    def emit(self, value: tuple[str, ...]) -> str:
        """Return the sorted names."""
        return ",".join(value)
