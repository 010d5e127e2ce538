"""Reloading: the owner's files are read again, checked whole, and used whole or not at all.

What asks for it: a changed file, SIGHUP to the server, or ``POST /admin/reload``. One reload goes on at a time. Every
one is on the audit log, in the server's log, an event and a figure, whether it was used or the old was kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from mcp_server import metrics
from mcp_server.config import READ_SINCE, Config, read_again, replace_config
from mcp_server.config.pending import Pending, changed, under
from mcp_server.config.watching import changed_since, identities, ticks
from mcp_server.errors import ConfigError, NetworkToolsError
from mcp_server.model.access import FULL_ACCESS
from mcp_server.model.run import Actor
from mcp_server.netguard import Enforcement
from mcp_server.pipeline.log_fields import who
from mcp_server.pipeline.validate import user_name

if TYPE_CHECKING:
    from mcp_server.netguard import Guard
    from mcp_server.pipeline.pipeline import Pipeline

logger = logging.getLogger(__name__)

WATCH_AFTER_SEC: Final = 1.0
"""Seconds after the start until files are watched: what is imported for it must not hold up the first answers."""


class Trigger(StrEnum):
    """What asked for a reload."""

    FILE = "file"
    SIGNAL = "signal"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Reloaded:
    """How a reload ended. ``error`` says why the old configuration was kept; None where the new one is used.

    ``changed`` are the keys whose values are others now, ``restart_needed`` those that wait for a restart.
    """

    by: Trigger
    at: datetime
    scope_hash: str
    changed: tuple[str, ...] = ()
    restart_needed: tuple[Pending, ...] = ()
    error: NetworkToolsError | None = None

    @property
    def result(self) -> str:
        """``applied`` or ``kept``."""
        return "applied" if self.error is None else "kept"

    def as_dict(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        body = {
            "result": self.result,
            "by": self.by.value,
            "at": self.at.isoformat(),
            "scope_hash": self.scope_hash,
            "changed": list(self.changed),
            "restart_needed": [asdict(item) for item in self.restart_needed],
        }
        return body if self.error is None else body | {"error": self.error.as_dict()}


class Reloadable(Protocol):
    """What a reload needs of a server."""

    guard: Guard
    pipeline: Pipeline

    @property
    def config(self) -> Config:
        """The configuration in force."""
        ...

    async def reload(self, config: Config, *, accept_programs: bool) -> None:
        """Use ``config`` for all that comes after, or raise NetworkToolsError and use nothing of it.

        With ``accept_programs`` the programs and files that are pinned are taken as they are now.
        """
        ...


class Reloader:
    """Reloads one server, from its event loop.

    ``read`` gives what the owner's files and the environment say now, and is called in a thread; ``publish`` is that of
    the event bus.
    """

    def __init__(
        self,
        server: Reloadable,
        *,
        publish: Callable[[str, Mapping[str, Any]], None],
        read: Callable[[], Config] = read_again,
    ) -> None:
        self.last: Reloaded | None = None
        """How the last reload ended, if there was one."""
        self._server = server
        self._publish = publish
        self._read = read
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._files = files_of(server.config)
        self._seen = identities(self._files)
        # Between the reading of the configuration and this moment, one of its files may have changed.
        self._missed = changed_since(self._files, READ_SINCE)
        self._again = asyncio.Event()

    async def reload(self, by: Trigger, actor: Actor) -> Reloaded:
        """Read the configuration again and use it; raises NetworkToolsError where the old one is kept."""
        async with self._lock:
            done = await self._attempt(by, actor)
        if done.error is not None:
            raise done.error
        return done

    async def reload_for(self, actor: Actor) -> Reloaded:
        """As `reload`, where an operator asks for it."""
        return await self.reload(Trigger.REQUEST, actor)

    async def reload_quietly(self, by: Trigger) -> None:
        """As `reload`, for the server's own user, with nobody to answer to: the log has what was wrong."""
        async with self._lock:
            await self._attempt(by, Actor(user_name(), by.value, access=FULL_ACCESS))

    def start(self) -> None:
        """Begin to watch the files, while there are any and ``server.watch_config`` says so; safe to call twice."""
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name="config-watch")

    async def stop(self) -> None:
        """Stop watching; safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _attempt(self, by: Trigger, actor: Actor) -> Reloaded:
        old = self._server.config
        keys: tuple[str, ...] = ()
        # What waited for a restart goes on waiting where the files cannot be read.
        pending = self.last.restart_needed if self.last is not None else ()
        error: NetworkToolsError | None = None
        try:
            new, pending = await asyncio.to_thread(self._read_whole, old, by)
            keys = changed(old, new)
            # Before anything changes, as with a call: without a log nothing is done.
            facts = {"changed": list(keys), "restart_needed": [item.key for item in pending]}
            await self._note(actor, "accepted", arguments=facts)
            await self._use(old, new, accept_programs=by is not Trigger.FILE)
        except Exception as problem:  # noqa: BLE001 - whatever it is, the old configuration goes on, and it is told
            error, keys = _known(problem), ()
            with suppress(NetworkToolsError):  # the server's own log has it all the same
                await self._note(actor, "kept", code=error.code, reason=error.message)
        self._again.set()
        self.last = Reloaded(
            by, datetime.now(UTC), self._server.pipeline.current.value.policy.hash, keys, pending, error
        )
        self._notify(self.last)
        return self.last

    def _read_whole(self, running: Config, by: Trigger) -> tuple[Config, tuple[Pending, ...]]:
        # What the files are is noted before they are read: a change in between is then seen as one.
        self._missed, self._seen = False, identities(self._files)
        if by is Trigger.FILE and running.file is not None:
            _refuse_empty(running.file)
        read = self._read()
        # Also those that come into use only now, or will once they are mended.
        self._files = files_of(running) | files_of(read)
        self._seen = {path: self._seen.get(path, now) for path, now in identities(self._files).items()}
        return under(running, read)

    async def _use(self, old: Config, new: Config, *, accept_programs: bool) -> None:
        inside = self._server.guard.enforcement is not Enforcement.ARGUMENT
        await asyncio.to_thread(reconfigure, old, new, inside=inside)
        try:
            await self._server.reload(new, accept_programs=accept_programs)
        except BaseException:
            await asyncio.to_thread(reconfigure, new, old, inside=inside)
            raise
        replace_config(old, new)

    async def _note(self, actor: Actor, result: str, **facts: Any) -> None:
        pipeline = self._server.pipeline
        known = who(actor) | pipeline.terms()
        await pipeline.audit.append("admin", action="reload", result=result, **known, **facts)

    def _notify(self, done: Reloaded) -> None:
        waiting, error = [item.key for item in done.restart_needed], done.error
        metrics.count("mcp_config_reloads_total", result=done.result)
        event = {"result": done.result, "code": error and error.code, "scope_hash": done.scope_hash}
        self._publish("config.reloaded", {**event, "changed": list(done.changed), "restart_needed": waiting})
        if error is not None:
            logger.error("config.not_reloaded by=%s code=%s: %s %s", done.by, error.code, error.message, error.hint)
            return
        logger.info("config.reloaded by=%s changed=%s", done.by, ",".join(done.changed))
        if waiting:
            logger.warning("config.restart_needed keys=%s", ",".join(waiting))

    def _watched(self) -> frozenset[Path]:
        return self._files if self._server.config.server.watch_config else frozenset()

    async def _watch(self) -> None:
        await asyncio.sleep(WATCH_AFTER_SEC)
        while True:
            if not self._watched():
                self._again.clear()
                await self._again.wait()
                continue
            await asyncio.to_thread(__import__, "watchfiles")
            await self._look()
            async with aclosing(ticks(self._watched, self._again)) as signs:
                async for _ in signs:
                    if not self._watched():
                        break
                    await self._look()

    async def _look(self) -> None:
        if self._missed or await asyncio.to_thread(identities, self._files) != self._seen:
            await self.reload_quietly(Trigger.FILE)


def reconfigure(old: Config, new: Config, *, inside: bool) -> None:
    """Make logging and tracing what ``new`` says, where ``old`` said something else; blocks for seconds.

    ``inside`` says that the server lives in a guard's network namespace. Raises NetworkToolsError, and leaves
    everything as it was, for a log file that cannot be opened or a tracing that is not installed.
    """
    from mcp_server.observability import tracing
    from mcp_server.observability.logs import configure_logging

    sections = {key.partition(".")[0] for key in changed(old, new)}
    if "logging" in sections:
        configure_logging(new.logging)
    # Inside a guard the scope says whether the collector can be reached.
    if "tracing" in sections or (inside and new.tracing.endpoint and "security" in sections):
        try:
            tracing.configure(new.tracing, inside=new.scope_policy() if inside else None)
        except NetworkToolsError:
            if "logging" in sections:
                configure_logging(old.logging)
            raise


def files_of(config: Config) -> frozenset[Path]:
    """The owner's files that a configuration is made of."""
    security = config.security
    named = (config.file, security.policy_file, security.allowed_checksums, config.auth.actors_file)
    return frozenset(path for path in named if path is not None)


def _refuse_empty(path: Path) -> None:
    # An editor that writes in place empties the file first, and an empty one is a valid configuration of defaults.
    if path.exists() and not path.stat().st_size:
        raise ConfigError(
            f"{path} is empty, and was taken for one that is being written",
            hint="Send SIGHUP or POST /admin/reload where an empty file is meant.",
        )


def _known(problem: Exception) -> NetworkToolsError:
    if isinstance(problem, NetworkToolsError):
        return problem
    logger.error("server.reload_failed", exc_info=problem)
    return NetworkToolsError("the server failed while it read its configuration again")
