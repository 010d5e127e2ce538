"""EnhancedMCPServer builds everything a door needs from a configuration, starts it, and stops it.

``python -m mcp_server.server`` serves over the configured transport, as ``mcp-network-tools serve`` does.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mcp_server.audit import AuditLog
from mcp_server.base_tool import ToolPolicy
from mcp_server.config import Config, get_config, log_notices, reload_config
from mcp_server.discovery import Toolbox, discover
from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.execution.admission import Admission
from mcp_server.execution.commands import invalidate_command_cache
from mcp_server.execution.guard import Enforcement
from mcp_server.execution.guard.choice import Choice, require
from mcp_server.execution.guard.client import ArgumentGuard
from mcp_server.execution.pinned_files import forget as forget_files
from mcp_server.execution.privilege import can_open_raw_sockets
from mcp_server.logs import configure_logging
from mcp_server.model.run import Outcome
from mcp_server.pipeline import Pipeline
from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.resolver import SystemResolver

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from mcp_server.execution.guard import Guard
    from mcp_server.store.base import Store

logger = logging.getLogger(__name__)


class EnhancedMCPServer:
    """One server: the pipeline, its store, and the door it is asked to open.

    Building it touches the state folder only (made with mode 0700); the store is opened at its first use, so
    that a client is answered before a database library is imported.
    """

    def __init__(
        self, config: Config | None = None, *, guard: Guard | None = None, listener: socket.socket | None = None
    ) -> None:
        """Build a server; ``guard`` is the one it lives inside of, ``listener`` a socket to take HTTP requests from.

        Raises ConfigError for a policy that cannot be used, PlatformError ``enforcement_too_weak``.
        """
        self.config = config or get_config()
        self.guard: Guard = guard or ArgumentGuard()
        require(self.config, Choice(self.guard.enforcement))
        self._listener = listener
        policy = self.config.scope_policy()
        prepare_state_dir(self.config)
        self._store: Store | None = None
        self._opening = asyncio.Lock()
        self.pipeline = Pipeline(
            config=self.config,
            policy=policy,
            toolbox=build_toolbox(self.config, self.guard),
            resolver=make_resolver(policy, self.guard),
            guard=self.guard,
            admission=Admission(self._concurrency_of, lambda: self.config.effective.concurrency_ceiling),
            audit=AuditLog(self.config.state_dir, self.config.audit),
            open_store=self.store,
            pins=_pins(self.config),
        )

    async def reload(self, config: Config) -> None:
        """Use ``config`` for every call that comes after; running calls keep what they started with.

        All of it or nothing: raises NetworkToolsError, and the old stays, where the policy is bad, enforcement would
        be too weak, or the guard did not take the policy over. Programs are looked for and pinned anew.
        """
        require(config, Choice(self.guard.enforcement))
        policy, pins = config.scope_policy(), _pins(config)
        toolbox = build_toolbox(config, self.guard)
        await self.guard.reload(policy.hash)
        invalidate_command_cache()
        forget_files()
        pipeline = self.pipeline
        self.config = pipeline.config = config
        pipeline.policy, pipeline.toolbox, pipeline.pins = policy, toolbox, pins
        pipeline.resolver, pipeline.audit.settings = make_resolver(policy, self.guard), config.audit
        logger.info("server.reloaded scope_hash=%s", policy.hash)
        await self._log_policy()

    async def _log_policy(self) -> None:
        """Put on the log which policy is in force from here on, and how it is enforced."""
        policy, tier = self.pipeline.policy, self.guard.enforcement
        await self.pipeline.audit.append("policy", scope_hash=policy.hash, enforcement=tier.value)

    async def reload_from_owner(self) -> None:
        """Read the configuration again and use it; what is wrong with it is logged, and the old stays."""
        try:
            await self.reload(reload_config())
        except NetworkToolsError as error:
            logger.error("server.not_reloaded code=%s: %s %s", error.code, error.message, error.hint)  # noqa: TRY400 - the owner's mistake, not ours

    def _concurrency_of(self, tool_name: str) -> int:
        return self.config.effective.concurrency_for(self.pipeline.toolbox.get(tool_name).concurrency)

    async def store(self) -> Store:
        """The open store; raises PlatformError ``store_unavailable`` where it cannot be opened."""
        async with self._opening:
            if self._store is None:
                from mcp_server.store import open_store

                database = self.config.database
                # The first call imports the database library, which would stop the loop for a quarter of a second.
                store = await asyncio.to_thread(
                    open_store,
                    database.url,
                    self.config.state_dir,
                    pool_size=database.pool_size,
                    max_overflow=database.max_overflow,
                    pool_timeout=database.pool_timeout,
                    pool_recycle=database.pool_recycle,
                )
                interrupted = await store.open()
                self._store = store
                await self._log_interrupted(interrupted)
            return self._store

    async def _log_interrupted(self, runs: Sequence[str]) -> None:
        """Write the end that every accepted call has on the log: the process that had to write it is gone."""
        for run_id in runs:
            logger.warning("store.interrupted_run run=%s", run_id)
            try:
                await self.pipeline.audit.append("end", run_id=run_id, outcome=Outcome.INTERRUPTED.value)
            except NetworkToolsError as error:
                # What was remembered stays readable without a log; a run needs one, and will say so.
                logger.error("audit.end_not_logged run=%s: %s", run_id, error.message)  # noqa: TRY400 - no traceback: the failure is a disk

    async def serve(self, *, ready: Callable[[str], None] | None = None) -> None:
        """Serve the configured transport until its input ends or a signal asks to stop, then clean up."""
        reloads: set[asyncio.Task[None]] = set()

        def on_hangup() -> None:
            task = asyncio.create_task(self.reload_from_owner())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)
        try:
            await self.pipeline.audit.start()
            try:
                await self._log_policy()
            except NetworkToolsError as error:
                # Nothing runs without a log, but what was remembered can be read.
                logger.error("audit.policy_not_logged: %s", error.message)  # noqa: TRY400 - no traceback: the failure is a disk
            if self.config.server.transport == "stdio":
                await self._serve_stdio()
            else:
                await self._serve_http(ready)
        finally:
            await self.cleanup()

    async def _serve_stdio(self) -> None:
        with _uncollected():
            from mcp_server.doors.mcp import build_mcp_server
            from mcp_server.doors.stdio import serve_stdio

        serving = asyncio.create_task(serve_stdio(build_mcp_server(self.pipeline, "stdio")))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, serving.cancel)
        with suppress(asyncio.CancelledError):
            await serving

    async def _serve_http(self, ready: Callable[[str], None] | None) -> None:
        from mcp_server.doors.application import build_application
        from mcp_server.doors.http import adopt, listen, serve_http

        settings = self.config.server
        inherited, self._listener = self._listener, None
        listener = adopt(inherited, settings.host) if inherited else listen(settings.host, settings.port)
        try:
            application = build_application(self)
        except BaseException:
            listener.close()
            raise
        await serve_http(
            application,
            listener,
            shutdown_grace=settings.shutdown_grace_period,
            ready=ready,
        )

    async def cleanup(self) -> None:
        """Release everything; safe to call twice."""
        store, self._store = self._store, None
        if store is not None:
            await store.close()
        await self.pipeline.audit.close()
        await asyncio.to_thread(self.guard.close)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Import inside without garbage collection, and leave what is there to no later one.

    Modules and models live as long as the process. Looking through them again and again while they are being made
    takes an eighth of a cold start (docs/performance.md), and a full collection of them 40 ms of somebody's call.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def make_resolver(policy: ScopePolicy, guard: Guard) -> SystemResolver:
    """The resolver a policy names, or else this host's own; inside a guard that one cannot be asked, and is not."""
    if guard.enforcement is not Enforcement.ARGUMENT and not policy.resolvers:
        return SystemResolver([])
    return SystemResolver.of(policy)


def _pins(config: Config) -> Mapping[str, frozenset[str]]:
    from mcp_server.execution.pinned_files import read_pins

    return read_pins(config.security.pinned_files) if config.security.pinned_files else {}


def build_toolbox(config: Config, guard: Guard | None = None) -> Toolbox:
    """Discover the tools of a configuration, rebuilt from their base lists; without a guard raw sockets are off."""
    policy = ToolPolicy(
        allow_intrusive=config.security.allow_intrusive,
        raw_sockets=guard is not None and guard.raw_sockets and can_open_raw_sockets(),
    )
    return discover(
        policy,
        packages=config.tool.packages,
        include=config.tool.include_patterns,
        exclude=config.tool.exclude_patterns,
    )


def prepare_state_dir(config: Config) -> None:
    """Make the state folder, mode 0700; raises PlatformError ``permission_denied`` where that fails."""
    try:
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PlatformError(
            f"the state folder {config.state_dir} cannot be made: {error.strerror}",
            hint="Set MCP_STATE_DIR to a folder that this user can write.",
        ) from error
    found = config.state_dir.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        whose = "belongs to another user" if found.st_uid != os.geteuid() else "can be written by others"
        raise PlatformError(
            f"the state folder {config.state_dir} {whose}, who could put links and logs of their own into it",
            hint=_owner_hint(config.state_dir, found.st_uid),
        )


def _owner_hint(folder: Path, uid: int) -> str:
    if uid == os.geteuid():
        return f"chmod 700 {folder}"
    # Taking it over would lock out a server that runs as its owner, as a guarded one does.
    return f"Run it as the folder's owner (sudo -u '#{uid}' env MCP_STATE_DIR={folder} ...), or set MCP_STATE_DIR."


def main() -> int:
    """Run the server as the environment configures it; returns an exit code of `errors.ExitCode`."""
    os.umask(0o077)  # whatever is made from here on, also by the log, is for this user only
    try:
        config = get_config(notify=False)
        configure_logging(config.logging)
        log_notices(config)
        asyncio.run(EnhancedMCPServer(config).serve(ready=lambda url: print(url, file=sys.stderr)))
    except NetworkToolsError as error:
        print(f"{error.code}: {error.message}\n{error.hint}", file=sys.stderr)
        return error.spec.exit
    return 0


if __name__ == "__main__":
    sys.exit(main())
