"""EnhancedMCPServer builds everything a interface needs from a configuration, starts it, and stops it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from mcp_server import metrics
from mcp_server.audit import AuditLog
from mcp_server.config import Config, get_config, log_notices
from mcp_server.errors import NetworkToolsError, PlatformError
from mcp_server.limits.admission import Admission
from mcp_server.limits.calls import Calls
from mcp_server.limits.circuit_breaker import Breakers
from mcp_server.limits.rate_limit import RateLimiter
from mcp_server.netguard.choice import GuardChoice, require
from mcp_server.netguard.client import ArgumentGuard
from mcp_server.observability.events import EventBus
from mcp_server.observability.logs import configure_logging
from mcp_server.pipeline.current import Current, Snapshot
from mcp_server.pipeline.log_fields import run_facts
from mcp_server.pipeline.pipeline import Pipeline
from mcp_server.pipeline.signals import BreakerSignals, show_breakers
from mcp_server.sandbox.allowed_checksums import forget as forget_files
from mcp_server.sandbox.binaries import invalidate_command_cache
from mcp_server.server.background import BackgroundTasks
from mcp_server.server.building import (
    build_registry,
    caps,
    make_resolver,
    read_actors,
    read_allowed_checksums,
    uncollected,
)
from mcp_server.server.lifecycle import Lifecycle, Phase
from mcp_server.server.reloading import Reloader, Trigger
from mcp_server.server.startup import check_free_space, check_schema, opens_store_later, prepare_state_dir
from mcp_server.store.revision import SchemaError

if TYPE_CHECKING:
    import socket

    from mcp_server.health import HealthCheckManager
    from mcp_server.identity.actors import Actors
    from mcp_server.model.run import Run
    from mcp_server.netguard import Guard
    from mcp_server.scope.policy import ScopePolicy
    from mcp_server.store.base import Store

logger = logging.getLogger(__name__)

OPEN_SEC: Final = 5.0
"""How long a start waits for a database; what is not there by then may come later."""
SWITCH_SEC: Final = 0.001
"""How long a thread of an HTTP server holds the interpreter while another waits for it (Python's own: 5 ms)."""
RELEASE_SEC: Final = 1.0
"""How long one part gets to let go of what it holds, when the server stops."""


class EnhancedMCPServer:
    """One server: the pipeline, its store, and the interface it is asked to open.

    Building it touches the state folder only (made with mode 0700); the store is opened at its first use, so
    that a client is answered before a database library is imported.
    """

    def __init__(
        self, config: Config | None = None, *, guard: Guard | None = None, listener: socket.socket | None = None
    ) -> None:
        """Build a server; ``guard`` is the one it lives inside of, ``listener`` a socket to take HTTP requests from.

        Raises ConfigError for a policy that cannot be used, PlatformError ``enforcement_too_weak``.
        """
        started_with = config or get_config()
        self.guard: Guard = guard or ArgumentGuard()
        require(started_with, GuardChoice(self.guard.enforcement))
        self._listener = listener
        policy = started_with.scope_policy()
        prepare_state_dir(started_with)
        self._store: Store | None = None
        self._store_closed = False
        self._opening = asyncio.Lock()
        self.current = Current(
            Snapshot(
                config=started_with,
                policy=policy,
                registry=build_registry(started_with, self.guard),
                resolver=make_resolver(policy, self.guard),
                allowed_checksums=read_allowed_checksums(started_with),
                actors=read_actors(started_with, policy),
            )
        )
        admission = Admission(caps(lambda: self.config, lambda: self.current.value.registry))
        self.current.observe(admission.refresh)
        self.pipeline = Pipeline(
            self.current,
            guard=self.guard,
            audit=AuditLog(self.config.state_dir, lambda: self.config.audit),
            open_store=self.store,
            admission=admission,
            breakers=Breakers(lambda: self.config.circuit_breaker, observer=BreakerSignals()),
            limiter=RateLimiter(lambda: self.config.rate_limit),
            calls=Calls(),
            events=EventBus(),
            invalidate=lambda: self.background.invalidate(),
        )
        show_breakers(self.pipeline.breakers)
        self.lifecycle = Lifecycle(self.pipeline.calls, self._notify)
        self.background = BackgroundTasks(self)
        self._releasing = asyncio.Lock()

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.current.value.config

    @property
    def ready(self) -> bool:
        """Whether calls are taken: it has started, and is not stopping."""
        return self.lifecycle.phase is Phase.READY

    @property
    def health(self) -> HealthCheckManager:
        """The checks that say how the server is."""
        return self.background.health

    @property
    def reloader(self) -> Reloader:
        """What reads the owner's files again."""
        return self.background.reloader

    async def reload(self, config: Config, *, accept_programs: bool = True) -> None:
        """Use ``config`` for every call that comes after; running calls keep what they started with.

        All of it or nothing: raises NetworkToolsError, and the old stays, where the policy is bad, enforcement would
        be too weak, or the guard did not take the policy over. With ``accept_programs`` programs are looked for and
        pinned again. Tools that an operator has switched off stay off.
        """
        require(config, GuardChoice(self.guard.enforcement))
        # A policy may have 100,000 lines, and a package of tools may take its time to import.
        policy, allowed_checksums = await asyncio.to_thread(
            lambda: (config.scope_policy(), read_allowed_checksums(config))
        )
        actors = await asyncio.to_thread(read_actors, config, policy)
        registry = await asyncio.to_thread(build_registry, config, self.guard)
        await self._take_over(policy, actors)
        if accept_programs:
            invalidate_command_cache()
            forget_files()
        before = self.current.value
        self.current.swap(
            Snapshot(
                config=config,
                policy=policy,
                registry=registry.with_disabled(before.registry.disabled),
                resolver=make_resolver(policy, self.guard),
                allowed_checksums=allowed_checksums,
                actors=actors,
            )
        )
        self.background.follow()
        metrics.gauge("mcp_server_ready", float(self.ready))  # they may only be counted from here on

    async def _take_over(self, policy: ScopePolicy, actors: Actors | None) -> None:
        """Put policy and actors on the log, then have the guard enforce the one; nothing is left where either fails."""
        before, actors_before = self.pipeline.current.value.policy, self.pipeline.current.value.actors
        is_new = (policy.hash, actors and actors.hash) != (before.hash, actors_before and actors_before.hash)
        if is_new:
            await self._log_policy(policy, actors)
        try:
            await self.guard.reload(policy.hash)
        except NetworkToolsError:
            if is_new:
                await self._log_policy(before, actors_before)
            raise

    async def _log_policy(self, policy: ScopePolicy, actors: Actors | None) -> None:
        """Put on the log which policy and actors are in force from here on, and how the policy is enforced."""
        drawn = {} if actors is None else {"actors_hash": actors.hash}
        await self.pipeline.audit.append("policy", **self.pipeline.terms() | {"scope_hash": policy.hash}, **drawn)

    async def store(self) -> Store:
        """The open store; raises PlatformError ``store_unavailable`` where it cannot be opened."""
        async with self._opening:
            if self._store_closed:
                raise PlatformError("the server has stopped, and its store is closed", code="store_unavailable")
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
                await self._log_interrupted([await store.get_run(run_id) for run_id in interrupted])
            return self._store

    async def _log_interrupted(self, runs: Sequence[Run]) -> None:
        """Write the end that every accepted call has on the log: the process that had to write it is gone."""
        for run in runs:
            logger.warning("store.interrupted_run run_id=%s", run.id)
            try:
                await self.pipeline.audit.append("end", **run_facts(run), outcome=run.outcome.value)
            except NetworkToolsError as error:
                # What was remembered stays readable without a log; a run needs one, and will say so.
                logger.error("audit.end_not_logged run_id=%s: %s", run.id, error.message)  # noqa: TRY400 - no traceback: the failure is a disk

    async def serve(self, *, ready: Callable[[str], None] | None = None) -> None:
        """Serve the configured transport until its input ends or a signal asks to stop, then clean up.

        The process is this server's: it takes over SIGHUP, SIGTERM and SIGINT. Raises NetworkToolsError where the start
        is refused. docs/operations.md has the order of a start and of a stop.
        """
        loop = asyncio.get_running_loop()
        reloads: set[asyncio.Task[None]] = set()

        def on_hangup() -> None:
            task = asyncio.create_task(self.reloader.reload_quietly(Trigger.SIGNAL))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        def on_stop() -> None:
            self.lifecycle.stop_by_signal(self.config.server.shutdown_grace_period)

        loop.add_signal_handler(signal.SIGHUP, on_hangup)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_stop)
        try:
            await (self._serve_stdio() if self.config.server.transport == "stdio" else self._serve_http(ready))
        finally:
            await self.cleanup()

    async def _begin(self) -> None:
        """What comes before the first request: the store, the log, and what goes on beside the calls."""
        check_free_space(self.config.state_dir)
        if opens_store_later(self.config):
            check_schema(self.config)
        else:
            try:
                async with asyncio.timeout(OPEN_SEC):
                    await self.store()
            except SchemaError:
                raise
            except (NetworkToolsError, TimeoutError) as error:
                logger.error("store.not_open_yet: %s", str(error) or f"no answer within {OPEN_SEC:g} s")  # noqa: TRY400 - no traceback: the failure is a disk or a database
        # Nothing runs without a log, and a start that could not be logged is none.
        await self._log_policy(self.pipeline.current.value.policy, self.pipeline.current.value.actors)
        await self.pipeline.audit.start()
        await self.background.prepare()

    async def _serve_stdio(self) -> None:
        await self.lifecycle.unless_ended(self._begin())
        with uncollected():
            from mcp_server.api.mcp.handlers import build_mcp_server
            from mcp_server.api.mcp.stdio import serve_stdio

        self.lifecycle.began()
        await serve_stdio(build_mcp_server(self.pipeline, "stdio"), ended=self.lifecycle.ended)

    async def _serve_http(self, ready: Callable[[str], None] | None) -> None:
        with uncollected():
            from mcp_server.api.application import build_application
            from mcp_server.api.http.serve import adopt, listen, serve_http
            from mcp_server.api.http.tls import tls_context

        def answering(url: str) -> None:
            self.lifecycle.began()
            if ready is not None:
                ready(url)

        settings = self.config.server
        tls = tls_context(settings)
        inherited, self._listener = self._listener, None
        # Reads of the store are threads, which wait this long for a busy event loop, at each of many steps.
        sys.setswitchinterval(SWITCH_SEC)
        # First of all: a port in use is the commonest reason not to start, and leaves nothing behind.
        listener = adopt(inherited, settings.host) if inherited else listen(settings.host, settings.port)
        try:
            await self.lifecycle.unless_ended(self._begin())
            with uncollected():
                application = build_application(self)
        except BaseException:
            listener.close()
            raise
        if self.lifecycle.ended.is_set():
            listener.close()
            return
        await serve_http(application, listener, ready=answering, stop=self.lifecycle, tls=tls)

    def _notify(self, phase: Phase) -> None:
        """Hear of a new phase from the lifecycle."""
        metrics.gauge("mcp_server_ready", float(phase is Phase.READY))
        if phase is Phase.READY:
            self.background.start()
        if phase is Phase.STOPPING:
            running, grace = self.pipeline.calls.running, self.config.server.shutdown_grace_period
            if self.lifecycle.served:  # a start that was refused has its own words
                logger.info("server.stopping calls=%d grace=%d", running, grace)
            self.pipeline.admission.close()
            self.pipeline.events.publish("server.stopping", {"running": running, "grace_sec": grace})

    async def cleanup(self) -> None:
        """End the calls, without a grace period unless one is under way, and release everything.

        Safe to call twice, after a start that failed, and while it starts or serves: that ends then. A part that
        fails or hangs is logged and left behind.
        """
        if self.lifecycle.phase in {Phase.STARTING, Phase.READY}:
            self.lifecycle.stop(0)
        await self.lifecycle.ended.wait()
        self.pipeline.events.close()
        async with self._releasing:
            parts: dict[str, Callable[[], Awaitable[None]]] = {
                **self.background.parts(),
                "refusals": self.pipeline.close,
                "log": self.pipeline.audit.close,
                "rate limits": self.pipeline.limiter.close,
                "store": self._close_store,
                "guard": lambda: asyncio.to_thread(self.guard.close),
            }
            for name, release in parts.items():
                try:
                    async with asyncio.timeout(RELEASE_SEC):
                        await release()
                except Exception:
                    logger.exception("server.not_released part=%s", name)
            self.lifecycle.finished()

    async def _close_store(self) -> None:
        self._store_closed = True
        async with self._opening:
            store, self._store = self._store, None
            if store is not None:
                await store.close()


def main() -> int:
    """Run the server as the environment configures it; returns an exit code of `errors.ExitCode`."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is a configuration to read again
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
