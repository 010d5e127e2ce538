"""The authenticator: finds the actor of a bearer credential. Every interface uses it."""

from __future__ import annotations

import time
from collections.abc import Callable

from mcp_server.config import Config
from mcp_server.identity.access_tokens import AccessTokens
from mcp_server.identity.api_keys import ApiKeys
from mcp_server.identity.base import Directory, Identity, Rejected, RoleDirectory
from mcp_server.identity.issuer_keys import read_jwks_file
from mcp_server.identity.key_file import KEY, read_keys
from mcp_server.identity.local_token import LocalToken, load_or_create_token
from mcp_server.identity.lockout import Lockout, source_of


class Authenticator:
    """Asks each kind of credential; used from one event loop.

    ``config`` returns the configuration in force. ``directory`` says what each actor may do.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        directory: Directory | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        known = directory or RoleDirectory()
        self._config = config
        self._token: LocalToken | None = None
        self.keys = ApiKeys(config().state_dir, known)
        """API keys."""
        self.tokens = AccessTokens(lambda: config().auth, known)
        """Access tokens of an issuer."""
        self._lockout = Lockout(lambda: config().auth, clock)

    def prepare(self) -> str | None:
        """Read all files that hold credentials. Returns the local token if it is new, so that it can be shown once.

        Blocks. Raises ConfigError for a file that cannot be used, and PlatformError for a folder.
        """
        config = self._config()
        read_keys(config.state_dir)
        if config.auth.issuer and config.auth.jwks_file is not None:
            read_jwks_file(config.auth.jwks_file)
        if not config.auth.local_token:
            return None
        token, made = load_or_create_token(config.state_dir)
        self._token = LocalToken(token)
        return token if made else None

    @property
    def lets_nobody_in(self) -> bool:
        """Whether no credential would be accepted now."""
        settings = self._config().auth
        return not (settings.local_token or settings.issuer or self.keys.count)

    async def admit(self, credential: str, peer: str) -> Identity:
        """Return the identity that a credential from the address ``peer`` belongs to.

        Raises Rejected for a wrong credential, BusyError ``locked_out`` for a new credential after too many wrong ones,
        and PlatformError ``identity_unavailable``.
        """
        found = KEY.fullmatch(credential)
        sources = [source_of(peer), *([f"key {found['id']}"] if found else [])]
        self._lockout.check(credential, *sources)
        try:
            identity = await self._check(credential)
        except Rejected as rejected:
            if rejected.guess:
                # Count only keys that exist: a caller could invent any number of other ids.
                self._lockout.failed(*(sources if rejected.key_id else sources[:1]))
            raise
        self._lockout.succeeded(credential)
        return identity

    async def _check(self, credential: str) -> Identity:
        token = self._local_token()
        # Ask the token first: it has no form, so it could look like another kind.
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
        if self._token is None:  # a reload has switched the local token on
            self._token = LocalToken(load_or_create_token(config.state_dir)[0])
        return self._token
