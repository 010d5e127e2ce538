"""Reloading: the operator's files are read again and checked, and used completely or not at all.

A changed file, SIGHUP to the server, or ``POST /admin/reload`` asks for a reload. One reload runs at a time. Each one
is written to the audit log and to the server's log, and is counted and published, even if its configuration was not
used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_server import metrics
from mcp_server.config import READ_SINCE, Config, read_again, replace_config
from mcp_server.config.pending import Pending, apply_live_keys, changed_keys
from mcp_server.config.reload_result import ReloadResult, Trigger
from mcp_server.config.watching import changed_since, file_states, watch
from mcp_server.errors import ConfigError, NetworkToolsError
from mcp_server.logger import get_logger
from mcp_server.model.access import FULL_ACCESS
from mcp_server.model.run import Actor
from mcp_server.netguard import Enforcement
from mcp_server.pipeline.log_fields import who
from mcp_server.pipeline.validate import user_name
from mcp_server.server.applying import apply

if TYPE_CHECKING:
    from mcp_server.pipeline.pipeline import Pipeline

logger = get_logger(__name__)

WATCH_AFTER_SEC: Final = 1.0
"""Seconds after the start until files are watched, because importing the watcher would delay the first answers."""


class Reloader:
    """Reloads the configuration of one pipeline, from its event loop.

    ``read`` returns the present configuration from the operator's files and the environment. It runs in a thread.
    """

    def __init__(self, pipeline: Pipeline, *, read: Callable[[], Config] = read_again) -> None:
        self.last: ReloadResult | None = None
        """The result of the last reload, if there was one."""
        self._pipeline = pipeline
        self._read = read
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._files = files_of(self._config)
        self._seen = file_states(self._files)
        # A file may have changed between the reading of the configuration and now.
        self._missed = changed_since(self._files, READ_SINCE)
        self._again = asyncio.Event()

    async def reload(self, by: Trigger, actor: Actor) -> ReloadResult:
        """Read the configuration again and use it. Raises NetworkToolsError if the old one stays in force."""
        async with self._lock:
            done = await self._attempt(by, actor)
        if done.error is not None:
            raise done.error
        return done

    async def reload_for(self, actor: Actor) -> ReloadResult:
        """Reload as `reload` does, at the request of ``actor``."""
        return await self.reload(Trigger.REQUEST, actor)

    async def reload_quietly(self, by: Trigger) -> None:
        """Reload as `reload` does, as the user of this process. A failure is logged, not raised."""
        async with self._lock:
            await self._attempt(by, Actor(user_name(), by.value, access=FULL_ACCESS))

    def start(self) -> None:
        """Begin to watch the files if ``server.watch_config`` is true. Can be called twice."""
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name="config-watch")

    async def stop(self) -> None:
        """Stop watching. Can be called twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @property
    def _config(self) -> Config:
        return self._pipeline.current.value.config

    async def _attempt(self, by: Trigger, actor: Actor) -> ReloadResult:
        old = self._config
        keys: tuple[str, ...] = ()
        # If the files cannot be read, the keys that waited for a restart still wait.
        pending = self.last.restart_needed if self.last is not None else ()
        error: NetworkToolsError | None = None
        try:
            new, pending = await asyncio.to_thread(self._read_all, old, by)
            keys = changed_keys(old, new)
            # Write the record before the change, because without an audit log the configuration must not change.
            facts = {"changed": list(keys), "restart_needed": [item.key for item in pending]}
            await self._log_decision(actor, "accepted", arguments=facts)
            await self._use(old, new, accept_programs=by is not Trigger.FILE)
        except Exception as problem:  # noqa: BLE001 - any failure keeps the old configuration, and is reported
            error, keys = _known(problem), ()
            with suppress(NetworkToolsError):  # the server's own log has the failure too
                await self._log_decision(actor, "kept", code=error.code, reason=error.message)
        self._again.set()
        scope_hash = self._pipeline.current.value.policy.hash
        self.last = ReloadResult(by, datetime.now(UTC), scope_hash, keys, pending, error)
        self._publish(self.last)
        return self.last

    def _read_all(self, running: Config, by: Trigger) -> tuple[Config, tuple[Pending, ...]]:
        # Note the identity of each file before the file is read, so that a change in between is noticed.
        self._missed, self._seen = False, file_states(self._files)
        if by is Trigger.FILE and running.file is not None:
            _refuse_empty(running.file)
        read = self._read()
        # Watch the files of the new configuration too, even if it cannot be used yet.
        self._files = files_of(running) | files_of(read)
        self._seen = {path: self._seen.get(path, now) for path, now in file_states(self._files).items()}
        return apply_live_keys(running, read)

    async def _use(self, old: Config, new: Config, *, accept_programs: bool) -> None:
        inside = self._pipeline.guard.enforcement is not Enforcement.ARGUMENT
        await asyncio.to_thread(reconfigure, old, new, inside=inside)
        try:
            await apply(self._pipeline, new, accept_programs=accept_programs)
        except BaseException:
            await asyncio.to_thread(reconfigure, new, old, inside=inside)
            raise
        replace_config(old, new)

    async def _log_decision(self, actor: Actor, result: str, **facts: Any) -> None:
        known = who(actor) | self._pipeline.terms()
        await self._pipeline.audit.append("admin", action="reload", result=result, **known, **facts)

    def _publish(self, done: ReloadResult) -> None:
        waiting, error = [item.key for item in done.restart_needed], done.error
        metrics.count("mcp_config_reloads_total", result=done.result)
        event: dict[str, Any] = {"result": done.result, "code": error and error.code, "scope_hash": done.scope_hash}
        event |= {"changed": list(done.changed), "restart_needed": waiting}
        self._pipeline.events.publish("config.reloaded", event)
        if error is not None:
            message = f"{error.message} {error.hint}"
            logger.error("config.not_reloaded", by=done.by.value, code=error.code, message=message)
            return
        logger.info("config.reloaded", by=done.by.value, changed=",".join(done.changed))
        if waiting:
            logger.warning("config.restart_needed", keys=",".join(waiting))

    def _watched(self) -> frozenset[Path]:
        return self._files if self._config.server.watch_config else frozenset()

    async def _watch(self) -> None:
        await asyncio.sleep(WATCH_AFTER_SEC)
        while True:
            if not self._watched():
                self._again.clear()
                await self._again.wait()
                continue
            await asyncio.to_thread(__import__, "watchfiles")
            await self._reload_if_changed()
            async with aclosing(watch(self._watched, self._again)) as signs:
                async for _ in signs:
                    if not self._watched():
                        break
                    await self._reload_if_changed()

    async def _reload_if_changed(self) -> None:
        if self._missed or await asyncio.to_thread(file_states, self._files) != self._seen:
            await self.reload_quietly(Trigger.FILE)


def reconfigure(old: Config, new: Config, *, inside: bool) -> None:
    """Set up logging and tracing by ``new``, as far as it differs from ``old``. Blocks for up to some seconds.

    ``inside`` says that the server runs in the network namespace of a guard. Raises NetworkToolsError, and changes
    nothing, if a log file cannot be opened or tracing is not installed.
    """
    from mcp_server.observability import tracing
    from mcp_server.observability.logs import configure_logging

    sections = {key.partition(".")[0] for key in changed_keys(old, new)}
    if "logging" in sections:
        configure_logging(new.logging)
    # Inside a guard, the scope decides whether the collector can be reached.
    if "tracing" in sections or (inside and new.tracing.endpoint and "security" in sections):
        try:
            tracing.configure(new.tracing, inside=new.scope_policy() if inside else None)
        except NetworkToolsError:
            if "logging" in sections:
                configure_logging(old.logging)
            raise


def files_of(config: Config) -> frozenset[Path]:
    """The files that a configuration names, and its own."""
    security = config.security
    named = (config.file, security.policy_file, security.allowed_checksums, config.auth.actors_file)
    return frozenset(path for path in named if path is not None)


def _refuse_empty(path: Path) -> None:
    # An editor that writes in place empties the file first. An empty file would be valid and mean all defaults.
    if path.exists() and not path.stat().st_size:
        raise ConfigError(
            f"{path} is empty. An editor may still be writing it.",
            hint="If the file is meant to be empty, send SIGHUP or POST /admin/reload.",
        )


def _known(problem: Exception) -> NetworkToolsError:
    if isinstance(problem, NetworkToolsError):
        return problem
    logger.error("server.reload_failed", exc_info=problem)
    return NetworkToolsError("The server failed while it read its configuration again.")
