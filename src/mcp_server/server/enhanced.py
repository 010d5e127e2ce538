"""EnhancedMCPServer: builds the services of a server, starts them, and stops them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from mcp_server import metrics
from mcp_server.config import Config, get_config, log_notices
from mcp_server.config.reload_result import Trigger
from mcp_server.errors import NetworkToolsError
from mcp_server.logger import get_logger
from mcp_server.netguard.choice import GuardChoice, require
from mcp_server.netguard.client import ArgumentGuard
from mcp_server.observability.logs import configure_logging
from mcp_server.server.applying import log_policy
from mcp_server.server.building import make_snapshot, without_garbage_collection
from mcp_server.server.lifecycle import Phase
from mcp_server.server.services import build_services, rest_services
from mcp_server.server.startup import check_free_space, check_schema, opens_store_later, prepare_state_dir
from mcp_server.store.revision import SchemaError

if TYPE_CHECKING:
    import socket

    from mcp_server.netguard import Guard
    from mcp_server.pipeline.pipeline import Pipeline

logger = get_logger(__name__)

OPEN_SEC: Final = 5.0
"""Seconds that a start waits for a database. A database that answers later is used from then on."""
SWITCH_SEC: Final = 0.001
"""Seconds that one thread of an HTTP server keeps the interpreter while a second waits for it (Python: 5 ms)."""
RELEASE_SEC: Final = 1.0
"""Seconds that each part may take to close when the server stops."""


class EnhancedMCPServer:
    """One server: its services, and the interface that ``server.transport`` names.

    Building it creates the state folder (mode 0700), and nothing else.
    """

    def __init__(
        self, config: Config | None = None, *, guard: Guard | None = None, listener: socket.socket | None = None
    ) -> None:
        """Build a server that runs inside ``guard`` (if set) and takes HTTP requests from ``listener`` (if set).

        Raises ConfigError for a file that cannot be used, PlatformError ``enforcement_too_weak``.
        """
        config, guard = config or get_config(), guard or ArgumentGuard()
        require(config, GuardChoice(guard.enforcement))
        snapshot = make_snapshot(config, guard)
        prepare_state_dir(config)
        self.services = build_services(snapshot, guard, self._on_phase)
        self._listener = listener
        self._releasing = asyncio.Lock()

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline of this server."""
        return self.services.pipeline

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.pipeline.current.value.config

    async def serve(self, *, ready: Callable[[str], None] | None = None) -> None:
        """Serve the configured transport until its input ends or a signal asks to stop, then clean up.

        ``ready`` is called with the base URL when HTTP requests are answered. The server takes over SIGHUP, SIGTERM and
        SIGINT of this process. docs/operations.md describes the order of a start and of a stop. Raises
        NetworkToolsError if the server cannot start.
        """
        loop = asyncio.get_running_loop()
        reloads: set[asyncio.Task[None]] = set()

        def on_hangup() -> None:
            task = asyncio.create_task(self.services.reloader.reload_quietly(Trigger.SIGNAL))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        def on_stop() -> None:
            self.services.lifecycle.stop_by_signal(self.config.server.shutdown_grace_period)

        loop.add_signal_handler(signal.SIGHUP, on_hangup)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_stop)
        try:
            await (self._serve_stdio() if self.config.server.transport == "stdio" else self._serve_http(ready))
        finally:
            await self.cleanup()

    async def cleanup(self) -> None:
        """End the calls and release everything. Calls get no grace period, unless it has begun already.

        Can be called twice, after a failed start, and while the server starts or serves. A running `serve` then ends. A
        part that fails or hangs is logged and skipped.
        """
        services, pipeline = self.services, self.pipeline
        if services.lifecycle.phase in {Phase.STARTING, Phase.READY}:
            services.lifecycle.stop(0)
        await services.lifecycle.ended.wait()
        pipeline.events.close()
        async with self._releasing:
            failed_authentications = services.failed_authentications.made
            parts: dict[str, Callable[[], Awaitable[None]]] = {
                **services.background.parts(),
                **({} if failed_authentications is None else {"failed authentications": failed_authentications.close}),
                "refusals": pipeline.close,
                "log": pipeline.audit.close,
                "rate limits": services.limiter.close,
                "store": services.store.close,
                "guard": lambda: asyncio.to_thread(pipeline.guard.close),
            }
            for name, release in parts.items():
                try:
                    async with asyncio.timeout(RELEASE_SEC):
                        await release()
                except Exception:
                    logger.exception("server.not_released", part=name)
            services.lifecycle.finished()

    async def _prepare(self) -> None:
        """Open the store and the audit log, and set up metrics and tracing, before the first request."""
        config = self.config
        check_free_space(config.state_dir)
        if opens_store_later(config):
            check_schema(config)
        else:
            await self._open_store_early()
        # No tool runs without an audit log, so a server that cannot write its start to the log does not start.
        await log_policy(self.pipeline, self.pipeline.current.value)
        await self.pipeline.audit.start()
        await self.services.background.prepare()

    async def _open_store_early(self) -> None:
        """Open the store. Raises SchemaError. Any other failure is logged, because the database may come back."""
        try:
            async with asyncio.timeout(OPEN_SEC):
                await self.services.store.open()
        except SchemaError:
            raise
        except (NetworkToolsError, TimeoutError) as error:
            message = str(error) or f"The store did not answer within {OPEN_SEC:g} s."
            logger.error("store.not_open_yet", message=message)  # noqa: TRY400 - a traceback says no more

    async def _serve_stdio(self) -> None:
        lifecycle = self.services.lifecycle
        await lifecycle.unless_ended(self._prepare())
        with without_garbage_collection():
            from mcp_server.api.mcp.handlers import build_mcp_server
            from mcp_server.api.mcp.stdio import serve_stdio

        lifecycle.began()
        await serve_stdio(build_mcp_server(self.pipeline, "stdio"), ended=lifecycle.ended)

    async def _serve_http(self, ready: Callable[[str], None] | None) -> None:
        with without_garbage_collection():
            from mcp_server.api.http.application import build_application
            from mcp_server.api.http.connections import adopt, listen
            from mcp_server.api.http.tls import tls_context
            from mcp_server.api.http.uvicorn_server import serve_http

        services, lifecycle, settings = self.services, self.services.lifecycle, self.config.server

        def answering(url: str) -> None:
            lifecycle.began()
            if ready is not None:
                ready(url)

        tls = tls_context(settings)
        inherited, self._listener = self._listener, None
        # The store is read in threads. Each of their many steps waits this long for a busy event loop.
        sys.setswitchinterval(SWITCH_SEC)
        # Bind before anything else: a port in use is the most common reason not to start, and leaves nothing behind.
        listener = adopt(inherited, settings.host) if inherited else listen(settings.host, settings.port)
        try:
            await lifecycle.unless_ended(self._prepare())
            with without_garbage_collection():
                application = build_application(
                    rest_services(services), services.authenticator, services.failed_authentications
                )
        except BaseException:
            listener.close()
            raise
        if lifecycle.ended.is_set():
            listener.close()
            return
        await serve_http(application, listener, ready=answering, stop=lifecycle, tls=tls)

    def _on_phase(self, phase: Phase) -> None:
        """Called by the lifecycle with each new phase."""
        metrics.gauge("mcp_server_ready", float(phase is Phase.READY))
        if phase is Phase.READY:
            self.services.background.start()
        if phase is Phase.STOPPING:
            running, grace = self.pipeline.calls.running, self.config.server.shutdown_grace_period
            if self.services.lifecycle.served:  # a start that failed is logged as an error
                logger.info("server.stopping", calls=running, grace=grace)
            self.pipeline.admission.close()
            self.pipeline.events.publish("server.stopping", {"running": running, "grace_sec": grace})


def main() -> int:
    """Run the server as the environment configures it. Returns an exit code of `errors.ExitCode`."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until a server is built, there is nothing to reload
    os.umask(0o077)  # every file that is created from here on is for this user only
    try:
        config = get_config(notify=False)
        configure_logging(config.logging)
        log_notices(config)
        asyncio.run(EnhancedMCPServer(config).serve(ready=lambda url: print(url, file=sys.stderr)))
    except NetworkToolsError as error:
        print(f"{error.code}: {error.message}\n{error.hint}", file=sys.stderr)
        return error.spec.exit
    return 0
