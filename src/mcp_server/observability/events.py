"""What happens, told as it happens: runs, refusals, health, alarms. One `EventBus` per server, any number of readers.

An event is an account of something that has happened already, so telling it never fails and never waits: a reader that
is too slow loses its oldest events and is told how many. Events hold identifiers, counts and our own words; no text of
a target has a field here (docs/events.md).
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
        "a call was allowed, and will be run",
        ("run_id", "tool", "actor", "interface", "correlation_id", "risk", "addresses", "ports"),
    ),
    "run.queued": (
        "a call waits for its turn, or its position in the queue changed",
        ("run_id", "tool", "position", "wait_sec"),
    ),
    "run.started": ("the program of a run was started", ("run_id", "tool", "waited_sec")),
    "run.progress": ("how far a run is, about once a second", ("run_id", "tool", "done", "elapsed_sec", "hosts_up")),
    "run.ended": (
        "a run came to its end, whichever",
        ("run_id", "tool", "outcome", "code", "elapsed_sec", "addresses", "looked_at", "hosts_up", "open_ports"),
    ),
    "call.refused": (
        "a call was refused, and nothing was started",
        ("tool", "actor", "interface", "correlation_id", "code", "retry_after"),
    ),
    "health.changed": (
        "the server's health, or that of one of its checks, is another",
        ("status", "before", "checks"),
    ),
    "alarm": ("something that should never happen did", ("alarm", "run_id", "message", "count")),
    "config.reloaded": (
        "the configuration was read again",
        ("result", "code", "scope_hash", "changed", "restart_needed"),
    ),
    "tool.enabled": ("a tool can be called again", ("tool", "actor")),
    "tool.disabled": ("a tool can no longer be called", ("tool", "actor")),
    "server.stopping": ("the server takes no more calls and will end", ("running", "grace_sec")),
}
"""Each kind of event: what it says, and the fields it may have. `docs/events.md` has a line for each."""

STOPPING: Final = "server.stopping"
FOR_ALL: Final = frozenset({"health.changed", STOPPING})
"""Kinds of the server itself that every reader gets; the others are for readers of everything."""
LAGGED: Final = "lagged"
"""The kind of an event that only one reader gets: it has ``missed`` events, or null where nobody knows how many."""

KEPT: Final = 1024
"""Events that are kept for readers who come back."""
QUEUED: Final = 256
"""Events that wait for one reader who is slow."""
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
    """One event: its id, its kind, its UTC time, and JSON-ready fields.

    ``id`` is empty for an event of one reader only, which has no place in the order of all. ``about`` is whose run or
    call it is of (`Actor.over_http`), None where it is of the server.
    """

    id: str
    kind: str
    at: datetime
    data: Mapping[str, Any]
    about: str | None = None

    def is_for(self, reader: str | None) -> bool:
        """Whether a reader may have it: None, who reads everything, or an actor's name, who reads what is its own."""
        if reader is None or self.about == reader:
            return True
        return self.about is None and self.kind in FOR_ALL

    @cached_property
    def json(self) -> str:
        """One JSON object on one line: ``kind``, ``at`` (RFC 3339), and the fields. Made once for all readers."""
        at = self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return json.dumps({"kind": self.kind, "at": at, **self.data}, separators=(",", ":"), allow_nan=False)


class Subscription:
    """One reader's queue. `EventBus.subscribe` makes it; `take` belongs to the event loop it was made on.

    The methods `offer`, `miss` and `end` are the bus's own, which calls them holding ``lock``.
    """

    def __init__(
        self,
        kinds: frozenset[str] | None,
        *,
        room: int,
        position: str,
        lock: threading.Lock,
        leave: Callable[[Subscription], None],
        reader: str | None = None,
    ) -> None:
        self._kinds = kinds
        self._reader = reader
        self._room = room
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
        """Whether it is of a reader of everything."""
        return self._reader is None

    @property
    def reader(self) -> str | None:
        """Whose it is; None of one that reads everything."""
        return self._reader

    @property
    def position(self) -> str:
        """The id up to which this reader has had everything it wants; it may come back with it."""
        with self._lock:
            if not self._queue:
                self._taken = self._newest
            return self._taken

    async def take(self) -> list[Event]:
        """Everything that waits, as soon as there is something, oldest first; an empty list when the bus is closed.

        Where events were lost, one of kind `LAGGED` stands before the rest.
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
                self._filled.clear()  # set from another thread, after what it was set for had been taken
        if missed != 0:
            events.insert(0, Event("", LAGGED, events[0].at if events else _now(), {"missed": missed}))
        return events

    def close(self) -> None:
        """Stop reading and give the place to another; safe to call twice."""
        self._leave(self)

    def offer(self, event: Event, *, room: int | None = None) -> None:
        """Queue an event if this reader wants it, in place of the oldest where the queue is full."""
        self._newest = event.id
        if not event.is_for(self._reader):
            return
        # That the server stops concerns every reader: its stream is about to end.
        if self._kinds is not None and event.kind not in self._kinds and event.kind != STOPPING:
            return
        if len(self._queue) >= (room or self._room):
            self._queue.popleft()
            self.miss(1)
        self._queue.append(event)
        self._wake()

    def miss(self, count: int | None) -> None:
        """Note that ``count`` events are lost for this reader; None: some, perhaps."""
        self._missed = None if count is None or self._missed is None else self._missed + count
        self._wake()

    def end(self) -> None:
        """Let `take` return nothing, after what waits."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if threading.get_ident() == self._thread:
            self._filled.set()
        else:
            with suppress(RuntimeError):  # its loop has ended, and nobody reads there any more
                self._loop.call_soon_threadsafe(self._filled.set)


class EventBus:
    """Takes events from any thread and gives them to readers on their event loops.

    Ids are ``LIFE-NUMBER``: the number rises by one with each event, and the life is another one after a restart, so
    that a reader who comes back with an id of an earlier life is told that it missed something. Not to be used inside a
    handler of `signal.signal`, which may interrupt `publish` itself.
    """

    def __init__(self, *, kept: int = KEPT, queued: int = QUEUED, now: Callable[[], datetime] = _now) -> None:
        self._life = secrets.token_hex(4)
        self._now = now
        self._queued = queued
        self._lock = threading.Lock()
        self._number = 0
        self._ring: deque[Event] = deque(maxlen=kept)
        self._subscriptions: set[Subscription] = set()
        self._stopping_told = False
        self._closed = False

    @property
    def subscribers(self) -> int:
        """How many readers there are now."""
        return len(self._subscriptions)

    def publish(self, kind: str, data: Mapping[str, Any], *, about: str | None = None) -> None:
        """Tell every reader that something of `KINDS` happened; returns at once and raises nothing.

        ``about`` is that of `Event`. Text is made visible and cut. What is not in the table is left out, with a line in
        the log: a mistake of ours must not end the run it is about.
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
            self._stopping_told |= kind == STOPPING
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
        """Begin to read, on the running event loop: events of ``kinds`` (see `read_kinds`; None is all) from now on.

        ``reader`` is the name of an actor that reads of its own runs and calls alone; None reads of all.
        With ``after``, the id of the last event this reader has had, those since then come first. Raises BusyError
        ``too_many_requests`` while there are ``limit`` readers, or three quarters of as many of one actor's own;
        ``shutting_down`` once the bus is closed.
        """
        with self._lock:
            if self._closed:
                raise BusyError("the server is stopping", code="shutting_down", retry_after=_RETRY_AFTER_SEC)
            if len(self._subscriptions) >= limit:
                raise BusyError(
                    f"{limit} readers follow the events already",
                    hint="Close one of the streams, or try again when another reader has gone.",
                    retry_after=_RETRY_AFTER_SEC,
                )
            share = max(1, limit * 3 // 4)
            if reader is not None and sum(each.reader == reader for each in self._subscriptions) >= share:
                raise BusyError(
                    f"{share} streams of this caller follow the events already, the share of one",
                    hint="Close one of them.",
                    retry_after=_RETRY_AFTER_SEC,
                )
            known = self._number if after is None else self._place_of(after)
            subscription = Subscription(
                frozenset(kinds) if kinds is not None else None,
                room=self._queued,
                position=self._id(known or 0),
                lock=self._lock,
                leave=self._leave,
                reader=reader,
            )
            self._subscriptions.add(subscription)
            self._replay(subscription, known)
        return subscription

    def close(self) -> None:
        """End every stream after what waits for it, of which ``server.stopping`` is the last; safe to call twice."""
        if not self._stopping_told:
            self.publish(STOPPING, {})
        with self._lock:
            self._closed = True
            for subscription in self._subscriptions:
                subscription.end()

    def _replay(self, subscription: Subscription, known: int | None) -> None:
        """Queue what is kept from after the place ``known``, or all where the reader's place is not known."""
        gone = self._number - len(self._ring)
        if known is None:
            subscription.miss(None)
        elif gone > known:
            # How many of those were this reader's is not known any more, and of the others it is not to be told.
            subscription.miss(gone - known if subscription.reads_all else None)
        for event in islice(self._ring, max(0, (known or 0) - gone), None):
            subscription.offer(event, room=len(self._ring))

    def _place_of(self, event_id: str) -> int | None:
        life, _, text = event_id.partition("-")
        if life != self._life or not (text.isascii() and text.isdecimal()) or len(text) > _DIGITS:
            return None
        return int(text) if int(text) <= self._number else None

    def _id(self, number: int) -> str:
        return f"{self._life}-{number}"

    def _leave(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions.discard(subscription)


def read_kinds(words: Collection[str]) -> frozenset[str] | None:
    """The kinds that ``words`` name: a kind as it is, or the part before the dot for all of a family (``run``).

    A word may hold several, with commas between; no words at all are None, which is every kind. Raises ArgumentError
    for a name that is none.
    """
    names = [name.strip() for word in words for name in word.split(",")]
    chosen: set[str] = set()
    for name in names:
        found = {kind for kind in KINDS if name in {kind, kind.partition(".")[0]}}
        if not found:
            families = ", ".join(dict.fromkeys(kind.partition(".")[0] for kind in KINDS))
            raise ArgumentError(
                f"{escape(name[:64])!r} is no kind of event",
                hint=f"Use one of {families}, or a whole kind such as run.ended, with commas between several.",
                parameter="kind",
            )
        chosen |= found
    return frozenset(chosen) if names else None


def _clean(value: Any, depth: int = 0) -> Any:
    """``value`` as JSON holds it, bounded in length and depth, with nothing hidden in its text."""
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
    # `visible` and not `sanitize`: what comes here has passed that where it was read, and would be escaped twice.
    return escape(text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "…")
