"""An attack call, and the arguments of nmap for it if nothing is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

CANARIES: Final = "/run/canary"
"""The folder of files that an attack may try to read. `canaries` creates them where the servers run."""
DROP_ZONE: Final = f"{CANARIES}/out"
"""A folder that everybody can write to. Nothing may be written there."""

ACCEPTED: Final[frozenset[str]] = frozenset()
"""The call is accepted and must stay in scope."""
TARGET: Final = frozenset({"invalid_target"})
SCOPE: Final = frozenset({"target_out_of_scope"})
FLAG: Final = frozenset({"argument_not_allowed"})
VALUE: Final = frozenset({"invalid_arguments"})
CHARACTERS: Final = frozenset({"forbidden_characters"})

_DEFAULTS: Final = ("--privileged", "-T4", "--max-retries", "0", "--max-rate", "400", "--host-timeout", "2s")
"""Options for every unchecked scan, so that hundreds of them end soon."""


@dataclass(frozen=True, slots=True)
class Attack:
    """A call, what it tries, and the error codes that may refuse it. If there are none, it must stay in scope."""

    name: str
    tries: str
    arguments: dict[str, Any]
    codes: frozenset[str]
    tool: str = "nmap"
    json_only: bool = False

    @property
    def kind(self) -> str:
        """The first part of the name."""
        return self.name.partition("-")[0]

    @property
    def words(self) -> tuple[str, ...] | None:
        """The arguments of nmap if nothing is checked, or None if the attack is not on nmap."""
        if self.tool != "nmap" or self.json_only:
            return None
        texts = self.arguments.get("target", "")
        targets = texts if isinstance(texts, list) else [texts]
        scripts = self.arguments.get("scripts") or []
        extra = str(self.arguments.get("extra_args", "")).split(" ")
        words = [*_DEFAULTS, *(word for word in extra if word)]
        if self.arguments.get("ports"):
            words += ["-p", str(self.arguments["ports"])]
        elif not any(word.startswith(("-p", "-sn", "-sL", "-sO", "--top", "-F")) for word in extra):
            words += ["-p", "22,80"]
        if scripts:
            words += ["--script", ",".join(map(str, scripts))]
        if any(":" in target for target in targets) and "-6" not in extra:
            words.append("-6")
        return (*words, *(str(target) for target in targets))
