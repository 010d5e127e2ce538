"""Live events of a server: runs, refusals, health, alarms. One `EventBus` per server has any number of readers.

Publishing never fails and never waits. A reader that is too slow loses its oldest events and gets their number. Events
hold identifiers, counts and fixed words. No field holds text of a target (docs/events.md).
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from typing import Any, Final

from mcp_server.errors import ArgumentError, BusyError
from mcp_server.logger import get_logger
from mcp_server.model.untrusted import escape

logger = get_logger(__name__)

KINDS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "run.accepted": (
        "a call was allowed and will run",
        ("run_id", "tool", "actor", "interface", "correlation_id", "risk", "addresses", "ports"),
    ),
    "run.queued": (
        "a call waits in the queue, or its position changed",
        ("run_id", "tool", "position", "wait_sec"),
    ),
    "run.started": ("the program of a run was started", ("run_id", "tool", "waited_sec")),
    "run.progress": (
        "progress of a run, about once a second",
        ("run_id", "tool", "done", "elapsed_sec", "hosts_up"),
    ),
    "run.ended": (
        "a run ended, with any outcome",
        ("run_id", "tool", "outcome", "code", "elapsed_sec", "addresses", "looked_at", "hosts_up", "open_ports"),
    ),
    "call.refused": (
        "a call was refused and nothing was started",
        ("tool", "actor", "interface", "correlation_id", "code", "retry_after"),
    ),
    "health.changed": (
        "the health of the server, or of one check, changed",
        ("status", "before", "checks"),
    ),
    "alarm": (
        "the guard dropped packets of a tool, or was missing or changed",
        ("alarm", "run_id", "message", "count"),
    ),
    "config.reloaded": (
        "the configuration was read again",
        ("result", "code", "scope_hash", "changed", "restart_needed"),
    ),
    "tool.enabled": ("a tool can be called again", ("tool", "actor")),
    "tool.disabled": ("a tool can no longer be called", ("tool", "actor")),
    "server.stopping": ("the server accepts no more calls and will exit", ("running", "grace_sec")),
}
"""Maps each kind of event to its meaning and to the fields it may have. `docs/events.md` has a line for each."""

STOPPING: Final = "server.stopping"
FOR_ALL: Final = frozenset({"health.changed", STOPPING})
"""Kinds about the server that every reader gets. Other events about the server need a reader of all events."""
LAGGED: Final = "lagged"
"""The kind of an event that a single reader gets. Its field ``missed`` is a number, or null if that is unknown."""

KEPT: Final = 1024
"""Events that are kept for readers that reconnect."""
QUEUED: Final = 256
"""Events that may wait for one slow reader."""
MAX_SUBSCRIBERS: Final = 32

_TEXT_LIMIT: Final = 512
_ITEM_LIMIT: Final = 64
_DEPTH_LIMIT: Final = 2
_RETRY_AFTER_SEC: Final = 5
_DIGITS: Final = 15


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Event:
    """One event: its id, its kind, its time in UTC, and its fields, ready for JSON.

    ``id`` is empty for an event that only one reader gets, because it is not part of the common order. ``about`` is the
    actor whose run or call it is about (`Actor.over_http`), or None if it is about the server.
    """

    id: str
    kind: str
    at: datetime
    data: Mapping[str, Any]
    about: str | None = None

    def is_for(self, reader: str | None) -> bool:
        """Return whether ``reader`` may get this event: the name of an actor, or None for a reader of all events."""
        if reader is None or self.about == reader:
            return True
        return self.about is None and self.kind in FOR_ALL

    @cached_property
    def json(self) -> str:
        """One JSON object on one line: ``kind``, ``at`` (RFC 3339) and the fields. Made once for all readers."""
        at = self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return json.dumps({"kind": self.kind, "at": at, **self.data}, separators=(",", ":"), allow_nan=False)


class Subscription:
    """The queue of one reader, made by `EventBus.subscribe`. Call `take` on the event loop it was made on.

    Only the bus calls `offer`, `miss` and `end`. It holds ``lock`` while it does.
    """

    def __init__(
        self,
        kinds: frozenset[str] | None,
        *,
        capacity: int,
        position: str,
        lock: threading.Lock,
        leave: Callable[[Subscription], None],
        reader: str | None = None,
    ) -> None:
        self._kinds = kinds
        self._reader = reader
        self._capacity = capacity
        self._lock = lock
        self._leave = leave
        self._queue: deque[Event] = deque()
        self._missed: int | None = 0
        self._newest = self._taken = position
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._filled = asyncio.Event()

    @property
    def reads_all(self) -> bool:
        """Whether this reader gets the events of all actors."""
        return self._reader is None

    @property
    def reader(self) -> str | None:
        """The actor that reads, or None for a reader of all events."""
        return self._reader

    @property
    def position(self) -> str:
        """The id up to which this reader has all its events. It can reconnect with it."""
        with self._lock:
            if not self._queue:
                self._taken = self._newest
            return self._taken

    async def take(self) -> list[Event]:
        """Wait for events, and return all that are queued, oldest first. Returns an empty list if the bus is closed.

        If events were lost, the first item is an event of kind `LAGGED`.
        """
        while True:
            await self._filled.wait()
            with self._lock:
                events, missed = list(self._queue), self._missed
                self._queue.clear()
                self._missed = 0
                self._taken = self._newest
                if self._ended or events or missed != 0:
                    break
                self._filled.clear()  # set by another thread after its event had been taken already
        if missed != 0:
            events.insert(0, Event("", LAGGED, events[0].at if events else _now(), {"missed": missed}))
        return events

    def close(self) -> None:
        """Stop reading, so that another reader may subscribe. Safe to call twice."""
        self._leave(self)

    def offer(self, event: Event, *, capacity: int | None = None) -> None:
        """Queue an event if this reader wants it. If the queue is full, the oldest event is dropped."""
        self._newest = event.id
        if not event.is_for(self._reader):
            return
        # Every reader is notified that the server stops, because its stream is about to end.
        if self._kinds is not None and event.kind not in self._kinds and event.kind != STOPPING:
            return
        if len(self._queue) >= (capacity or self._capacity):
            self._queue.popleft()
            self.miss(1)
        self._queue.append(event)
        self._wake()

    def miss(self, count: int | None) -> None:
        """Record that ``count`` events are lost for this reader, or an unknown number if it is None."""
        self._missed = None if count is None or self._missed is None else self._missed + count
        self._wake()

    def end(self) -> None:
        """Let `take` return an empty list after the queued events."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if threading.get_ident() == self._thread:
            self._filled.set()
        else:
            with suppress(RuntimeError):  # its event loop is closed, so there is no reader any more
                self._loop.call_soon_threadsafe(self._filled.set)


class EventBus:
    """Takes events from any thread and passes them to readers on their event loops.

    Ids are ``INSTANCE-NUMBER``. The number increases by one with each event. The instance is random and changes with a
    restart, so a reader that reconnects with an id of an earlier process learns that it missed events. Do not publish
    from a handler of `signal.signal`, because it may interrupt `publish` itself.
    """

    def __init__(self, *, kept: int = KEPT, queued: int = QUEUED, now: Callable[[], datetime] = _now) -> None:
        self._instance = secrets.token_hex(4)
        self._now = now
        self._queued = queued
        self._lock = threading.Lock()
        self._number = 0
        self._ring: deque[Event] = deque(maxlen=kept)
        self._subscriptions: set[Subscription] = set()
        self._stopping_published = False
        self._closed = False

    @property
    def subscribers(self) -> int:
        """The number of readers."""
        return len(self._subscriptions)

    def publish(self, kind: str, data: Mapping[str, Any], *, about: str | None = None) -> None:
        """Publish an event of `KINDS` to every reader. Returns at once and raises nothing.

        ``about`` is that of `Event`. Text is escaped and cut. Unknown kinds and fields are left out and logged, because
        a programming error here must not end the run that the event is about.
        """
        if kind not in KINDS:
            logger.error("events.unknown_kind", kind=repr(kind))
            return
        _, fields = KINDS[kind]
        if unknown := data.keys() - set(fields):
            logger.error("events.unknown_fields", kind=kind, fields=sorted(unknown))
        clean = {field: _clean(data[field]) for field in fields if field in data}
        with self._lock:
            self._number += 1
            event = Event(self._id(self._number), kind, self._now(), clean, about)
            self._ring.append(event)
            self._stopping_published |= kind == STOPPING
            if not self._closed:
                for subscription in self._subscriptions:
                    subscription.offer(event)

    def subscribe(
        self,
        kinds: Collection[str] | None = None,
        *,
        after: str | None = None,
        limit: int = MAX_SUBSCRIBERS,
        reader: str | None = None,
    ) -> Subscription:
        """Start to read on the running event loop: events of ``kinds`` (see `read_kinds`; None is all) from now on.

        If ``reader`` is set, it is the name of an actor, which gets only the events of its own runs and calls. With
        ``after``, the id of the last event that this reader has, later events are replayed first.

        Raises BusyError ``too_many_requests`` if there are ``limit`` readers already, or if this actor has three
        quarters of them, and ``shutting_down`` if the bus is closed.
        """
        with self._lock:
            if self._closed:
                raise BusyError("The server is stopping.", code="shutting_down", retry_after=_RETRY_AFTER_SEC)
            if len(self._subscriptions) >= limit:
                raise BusyError(
                    f"There are already {limit} readers of events.",
                    hint="Close one of the streams, or try again later.",
                    retry_after=_RETRY_AFTER_SEC,
                )
            share = max(1, limit * 3 // 4)
            if reader is not None and sum(each.reader == reader for each in self._subscriptions) >= share:
                raise BusyError(
                    f"This caller already has {share} event streams, which is the limit for one caller.",
                    hint="Close one of them.",
                    retry_after=_RETRY_AFTER_SEC,
                )
            known = self._number if after is None else self._number_of(after)
            subscription = Subscription(
                frozenset(kinds) if kinds is not None else None,
                capacity=self._queued,
                position=self._id(known or 0),
                lock=self._lock,
                leave=self._leave,
                reader=reader,
            )
            self._subscriptions.add(subscription)
            self._replay(subscription, known)
        return subscription

    def close(self) -> None:
        """Publish ``server.stopping`` and end every stream after its queued events. Safe to call twice."""
        if not self._stopping_published:
            self.publish(STOPPING, {})
        with self._lock:
            self._closed = True
            for subscription in self._subscriptions:
                subscription.end()

    def _replay(self, subscription: Subscription, known: int | None) -> None:
        """Queue the kept events after number ``known``, or all of them if it is None."""
        dropped = self._number - len(self._ring)
        if known is None:
            subscription.miss(None)
        elif dropped > known:
            # The server no longer knows how many of the lost events were for this actor. The actor must not learn how
            # many events there were for others.
            subscription.miss(dropped - known if subscription.reads_all else None)
        for event in islice(self._ring, max(0, (known or 0) - dropped), None):
            subscription.offer(event, capacity=len(self._ring))

    def _number_of(self, event_id: str) -> int | None:
        instance, _, text = event_id.partition("-")
        if instance != self._instance or not (text.isascii() and text.isdecimal()) or len(text) > _DIGITS:
            return None
        return int(text) if int(text) <= self._number else None

    def _id(self, number: int) -> str:
        return f"{self._instance}-{number}"

    def _leave(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions.discard(subscription)


def read_kinds(words: Collection[str]) -> frozenset[str] | None:
    """Return the kinds that ``words`` select: a kind such as ``run.ended``, or ``run`` for all kinds of that family.

    A word may hold several names, separated by commas. Without words the result is None, which means every kind. Raises
    ArgumentError for an unknown name.
    """
    names = [name.strip() for word in words for name in word.split(",")]
    chosen: set[str] = set()
    for name in names:
        found = {kind for kind in KINDS if name in {kind, kind.partition(".")[0]}}
        if not found:
            families = ", ".join(dict.fromkeys(kind.partition(".")[0] for kind in KINDS))
            raise ArgumentError(
                f"{escape(name[:64])!r} is not a kind of event.",
                hint=f"Use one of {families}, or a full kind such as run.ended. Separate several with commas.",
                parameter="kind",
            )
        chosen |= found
    return frozenset(chosen) if names else None


def _clean(value: Any, depth: int = 0) -> Any:
    """Return ``value`` for JSON, limited in length and depth, with its text escaped."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping) and depth < _DEPTH_LIMIT:
        pairs = list(value.items())[:_ITEM_LIMIT]
        return {_text(str(key)): _clean(each, depth + 1) for key, each in pairs}
    if isinstance(value, list | tuple | set | frozenset) and depth < _DEPTH_LIMIT:
        return [_clean(each, depth + 1) for each in list(value)[:_ITEM_LIMIT]]
    return _text(str(value))


def _text(text: str) -> str:
    # Not `sanitize`: text of a target was sanitized when it was parsed, and would be escaped twice.
    return escape(text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "…")
