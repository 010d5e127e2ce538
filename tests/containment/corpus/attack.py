"""One attack call, and the words it comes to where nothing is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

CANARIES: Final = "/run/canary"
"""Files that an attack may try to read; `canaries` makes them where the servers run."""
DROP_ZONE: Final = f"{CANARIES}/out"
"""A folder that anyone may write to, and in which nothing may appear."""

HELD: Final[frozenset[str]] = frozenset()
"""The call is taken, and touches only what is in scope."""
TARGET: Final = frozenset({"invalid_target"})
SCOPE: Final = frozenset({"target_out_of_scope"})
FLAG: Final = frozenset({"argument_not_allowed"})
VALUE: Final = frozenset({"invalid_arguments"})
CHARACTERS: Final = frozenset({"forbidden_characters"})

_DEFAULTS: Final = ("--privileged", "-T4", "--max-retries", "0", "--max-rate", "400", "--host-timeout", "2s")
"""What every unchecked scan gets, so that hundreds of them end soon."""


@dataclass(frozen=True, slots=True)
class Attack:
    """A call, what it tries, and the codes its refusal may have; none where it is taken and must stay in scope."""

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
        """The words for nmap where nothing is checked; None where the attack is on the call and not on nmap."""
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
