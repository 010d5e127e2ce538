"""The gate: takes a bearer credential and says who that is, or refuses; every interface asks this one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mcp_server.identity.access_tokens import AccessTokens
from mcp_server.identity.api_keys import ApiKeys
from mcp_server.identity.base import Directory, Identity, Rejected, RoleDirectory
from mcp_server.identity.key_file import KEY
from mcp_server.identity.local_token import LocalToken, load_or_create_token
from mcp_server.identity.lockout import Lockout, source_of

if TYPE_CHECKING:
    from mcp_server.config import Config


class Authenticator:
    """Asks the kinds of credentials; used from one event loop.

    ``config`` gives the configuration in force, each time. ``directory`` may be replaced at any moment.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        directory: Directory | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory: Directory = directory or RoleDirectory()
        """What bounds single actors."""
        self._config = config
        self._token: LocalToken | None = None
        self.keys = ApiKeys(config().state_dir, lambda: self.directory)
        """API keys."""
        self.tokens = AccessTokens(lambda: config().auth, lambda: self.directory)
        """Access tokens of an issuer."""
        self._lockout = Lockout(lambda: config().auth, clock)

    def prepare(self) -> str | None:
        """Read, or make, the local token where it is taken; returns one that was made just now, to be shown once.

        Blocks for a moment. Raises ConfigError for files that cannot be used, PlatformError for a folder.
        """
        from mcp_server.identity.issuer_keys import read_file
        from mcp_server.identity.key_file import read_keys

        config = self._config()
        read_keys(config.state_dir)
        if config.auth.issuer and config.auth.jwks_file is not None:
            read_file(config.auth.jwks_file)
        if not config.auth.local_token:
            return None
        token, made = load_or_create_token(config.state_dir)
        self._token = LocalToken(token)
        return token if made else None

    @property
    def lets_nobody_in(self) -> bool:
        """Whether no credential would do at present."""
        settings = self._config().auth
        return not (settings.local_token or settings.issuer or self.keys.count)

    async def admit(self, credential: str, peer: str) -> Identity:
        """Who a credential stands for, that came from the address ``peer``.

        Raises Rejected for a wrong one, BusyError ``locked_out`` for any new one after too many of those, PlatformError
        ``identity_unavailable``.
        """
        found = KEY.fullmatch(credential)
        sources = [source_of(peer), *([f"key {found['id']}"] if found else [])]
        self._lockout.check(credential, *sources)
        try:
            identity = await self._check(credential)
        except Rejected as rejected:
            if rejected.guess:
                # Only of keys that there are: strangers could think of any number of others.
                self._lockout.failed(*(sources if rejected.key_id else sources[:1]))
            raise
        self._lockout.succeeded(credential)
        return identity

    async def _check(self, credential: str) -> Identity:
        token = self._local_token()
        # In any case, and first: it has no form of its own, and might look like another kind.
        if token is not None and token.claims(credential):
            return await token.check(credential)
        for kind in (self.keys, self.tokens):
            if kind.claims(credential):
                return await kind.check(credential)
        raise Rejected("token", "wrong")

    def _local_token(self) -> LocalToken | None:
        config = self._config()
        if not config.auth.local_token:
            return None
        if self._token is None:  # a reload has switched it on
            self._token = LocalToken(load_or_create_token(config.state_dir)[0])
        return self._token
