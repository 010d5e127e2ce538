"""The policy's verdict on one network or name."""

from __future__ import annotations

from collections.abc import Callable

from mcp_server.errors import TargetError
from mcp_server.model.run import Risk
from mcp_server.scope.entries import PolicyEntry


class Verdict:
    """Whether a network or name is in scope. Risk, rate and window are the terms of the entries.

    ``entries`` are the entries that decide, in order of address: up to 12 of them, and after that at least one for each
    distinct set of terms. If an entry excludes the target, it is the only one. ``allowed_by`` names the entries that
    allow the target. ``code`` is the error code of a refusal. ``reason`` and ``hint`` are made only when they are read,
    because formatting an address takes as long as looking it up.
    """

    __slots__ = ("_hint", "_reason", "allowed", "allowed_by", "code", "entries")

    def __init__(
        self,
        allowed: bool,
        reason: Callable[[], str],
        *,
        allowed_by: str | None = None,
        code: str | None = None,
        hint: Callable[[], str | None] | None = None,
        entries: tuple[PolicyEntry, ...] = (),
    ) -> None:
        self.allowed = allowed
        self.allowed_by = allowed_by
        self.code = code
        self.entries = entries
        self._reason = reason
        self._hint = hint

    @property
    def reason(self) -> str:
        """The reason for the verdict, as a sentence."""
        return self._reason()

    @property
    def hint(self) -> str | None:
        """The target to use instead, as a sentence, or None if the policy allows nothing similar."""
        return None if self._hint is None else self._hint()

    @property
    def max_risk(self) -> Risk | None:
        """The highest risk that all deciding entries allow, or None for a refusal."""
        return min((entry.terms.max_risk for entry in self.entries), default=None) if self.allowed else None

    def require(self) -> None:
        """Raise TargetError with the code, reason and hint of a refusal."""
        if not self.allowed:
            raise TargetError(self.reason, code=self.code, hint=self.hint, parameter="target")
