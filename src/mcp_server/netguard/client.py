"""The guard as the server sees it: a socket to its guard helper, or nothing in the argument tier."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any, Final

from mcp_server.errors import PlatformError, TargetError
from mcp_server.logger import get_logger
from mcp_server.netguard import Enforcement, GuardReading, channel

if TYPE_CHECKING:
    from mcp_server.model.target import Network, Targets
    from mcp_server.sandbox.executor import Executor

logger = get_logger(__name__)

ANSWER_SEC: Final = 2.0
"""Seconds a guard helper has to answer; a reading takes it about a millisecond."""
RELOAD_SEC: Final = 30.0
"""As `ANSWER_SEC`, for reading a policy of 100,000 networks again."""

_LOOPBACK: Final[dict[int, Any]] = {4: IPv4Network("127.0.0.0/8"), 6: IPv6Network("::1/128")}


class KernelGuard:
    """The guard of a server that a guard helper started; used from one event loop.

    Made of the channel's descriptor, it asks for what the guard helper hands over. PlatformError ``guard_unavailable``
    where that does not answer.
    """

    def __init__(self, descriptor: int) -> None:
        self._channel = socket.socket(fileno=descriptor)
        self._channel.set_inheritable(False)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[channel.HelperReply]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lost = False
        self._reloads = 0
        self._here: Executor | None = None
        self._loopback: Executor | None = None
        hello = self._greet()
        self._enforcement = Enforcement(hello.body["enforcement"])
        self.policy_hash: str = hello.body["policy"]
        """Hash of the policy that is enforced on packets."""
        self._versions = frozenset(hello.body["versions"])
        self._control = hello.descriptors.get(channel.LOOPBACK)
        listener = hello.descriptors.get(channel.LISTENER)
        self.listener = None if listener is None else socket.socket(fileno=listener)
        """The HTTP interfaces' listening socket, in the host's namespace; None where none was handed over."""

    def _greet(self) -> channel.HelperReply:
        self._channel.settimeout(ANSWER_SEC)
        try:
            self._channel.send(channel.HelperRequest(0, channel.Ask.HELLO).encode())
            hello = channel.receive_answer(self._channel)
        except (OSError, EOFError) as error:
            raise _gone(f"the guard helper does not answer: {error}") from error
        self._channel.setblocking(False)
        channel.raise_error(hello)
        return hello

    @property
    def enforcement(self) -> Enforcement:
        """The tier in force."""
        return self._enforcement

    @property
    def raw_sockets(self) -> bool:
        """Whether tools may open raw sockets: every frame of theirs passes the ruleset."""
        return True

    async def read(self) -> GuardReading:
        """The guard's state; PlatformError ``guard_unavailable`` where it is gone or is not the one that was set up."""
        # The guard helper does one thing after the other: while it reads a policy, an answer takes longer.
        return (await self._ask(channel.Ask.READ, RELOAD_SEC if self._reloads else ANSWER_SEC)).reading()

    async def reload(self, policy_hash: str) -> None:
        """Have the guard helper read the owner's files again.

        PlatformError ``guard_unavailable`` where it read another policy than ``policy_hash``, which is in force then;
        its own error where a file is bad, and nothing has changed then.
        """
        if self._enforcement is Enforcement.ROOTLESS and policy_hash == self.policy_hash:
            return  # nothing to swap, which the guard helper of this tier does not do
        self._reloads += 1
        try:
            answer = await self._ask(channel.Ask.RELOAD, RELOAD_SEC)
        finally:
            self._reloads -= 1
        self.policy_hash = answer.body["policy"]
        if (control := answer.descriptors.get(channel.LOOPBACK)) is not None:
            self._replace_loopback(control)
        if self.policy_hash != policy_hash:
            raise PlatformError(
                f"the guard helper read policy {self.policy_hash[:12]} where the server read {policy_hash[:12]}",
                code="guard_unavailable",
                hint="The policy changed while it was read, or its environment differs; reload once more.",
            )

    def executor_for(self, targets: Targets) -> Executor:
        """Where a run on these targets is started: on the host's loopback, or here.

        TargetError ``invalid_target`` for loopback targets mixed with others, and for an IP version of which the guard
        has no address; PlatformError ``guard_unavailable`` where no runner looks at loopback.
        """
        if _all_loopback(network for target in targets.items for network in target.networks):
            executor = self._at_loopback()
            if executor is None:
                raise PlatformError(
                    "loopback targets are looked at from outside of the guard, and no runner is there for them",
                    code="guard_unavailable",
                    hint="The rootless tier has no loopback; the kernel tier has."
                    if self._enforcement is Enforcement.ROOTLESS
                    else "Reload the server: the runner is started where the policy names loopback.",
                )
            return executor
        for target in targets.items:
            for version in sorted(target.versions - self._versions):
                raise TargetError(
                    f"the guard has no IPv{version} address, and {target.given!r} is not reached without one",
                    hint="guard.addresses (guard.mode macvlan) gives it one; nat and the rootless tier are IPv4 only.",
                    parameter="target",
                )
        return self._own()

    def executors(self) -> tuple[Executor, ...]:
        """Here, and the host's loopback where a runner is there for it."""
        loopback = self._at_loopback()
        return (self._own(),) if loopback is None else (self._own(), loopback)

    def close(self) -> None:
        """Let go of the guard helper, and end the runners; safe to call twice."""
        self._forget()
        self._channel.close()
        if self._control is not None:
            os.close(self._control)
            self._control = None
        for executor in (self._here, self._loopback):
            if executor is not None:
                executor.close()
        self._here = self._loopback = None

    def _own(self) -> Executor:
        from mcp_server.sandbox.executor import Executor

        if self._here is None:
            self._here = Executor.here(allow_raw=True)
        return self._here

    def _at_loopback(self) -> Executor | None:
        from mcp_server.sandbox.executor import Executor

        if self._loopback is None and self._control is not None:
            self._loopback, self._control = Executor.at("loopback", self._control, allow_raw=False), None
        return self._loopback

    def _replace_loopback(self, control: int) -> None:
        if self._control is not None:
            os.close(self._control)
        if self._loopback is not None:
            self._loopback.close()
        self._control, self._loopback = control, None

    async def _ask(self, ask: channel.Ask, seconds: float) -> channel.HelperReply:
        if self._lost:
            raise _gone("the guard helper has gone")
        self._watch(asyncio.get_running_loop())
        number = next(self._numbers)
        waiting: asyncio.Future[channel.HelperReply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            self._channel.send(channel.HelperRequest(number, ask).encode())
            async with asyncio.timeout(seconds):
                answer = await waiting
        except TimeoutError:
            raise _gone(f"the guard helper did not answer within {seconds:g} seconds") from None
        except OSError as error:
            raise _gone(f"the guard helper cannot be asked: {error.strerror}") from error
        finally:
            del self._waiting[number]
        channel.raise_error(answer)
        return answer

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            self._loop = loop
            loop.add_reader(self._channel.fileno(), self._receive)

    def _forget(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._channel.fileno())
        self._loop = None

    def _receive(self) -> None:
        try:
            answer = channel.receive_answer(self._channel)
        except (BlockingIOError, InterruptedError):
            return
        except PlatformError as error:
            logger.error("guard.nonsense", message=error.message)  # noqa: TRY400 - the traceback says no more
            return
        except (OSError, EOFError):
            self._lose()
            return
        waiting = self._waiting.get(answer.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
        else:  # nobody waits any more
            for descriptor in answer.descriptors.values():
                os.close(descriptor)

    def _lose(self) -> None:
        """The guard helper has gone. The kernel kills this process then; where it does not, it ends by itself."""
        self._lost = True
        self._forget()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(_gone("the guard helper has gone"))
        logger.critical("guard.lost", message="the guard helper has gone: the server ends")
        os.kill(os.getpid(), signal.SIGTERM)


class ArgumentGuard:
    """No guard: addresses are checked before a spawn and nothing more, so raw sockets are off."""

    def __init__(self) -> None:
        self._here: Executor | None = None

    @property
    def enforcement(self) -> Enforcement:
        """The tier in force."""
        return Enforcement.ARGUMENT

    @property
    def raw_sockets(self) -> bool:
        """Whether tools may open raw sockets: never, because nothing would look at what they send."""
        return False

    async def read(self) -> None:
        """There is nothing to read."""

    async def reload(self, policy_hash: str) -> None:
        """There is nothing to swap."""

    def executor_for(self, targets: Targets) -> Executor:  # noqa: ARG002 - the contract of `Guard`
        """Here, whatever the targets are."""
        return self._own()

    def executors(self) -> tuple[Executor, ...]:
        """Here alone."""
        return (self._own(),)

    def _own(self) -> Executor:
        from mcp_server.sandbox.executor import Executor

        if self._here is None:
            self._here = Executor.here(allow_raw=False)
        return self._here

    def close(self) -> None:
        """End the runner; safe to call twice."""
        executor, self._here = self._here, None
        if executor is not None:
            executor.close()


def _all_loopback(networks: Iterable[Network]) -> bool:
    """Whether all networks are loopback; TargetError where only some are."""
    kinds = {network.overlaps(_LOOPBACK[network.version]) for network in networks}
    if len(kinds) > 1:
        raise TargetError(
            "loopback targets and others cannot be looked at in one run: they are reached from different places",
            hint="Make two calls, one of them for the loopback targets alone.",
            parameter="target",
        )
    return kinds == {True}


def _gone(message: str) -> PlatformError:
    return PlatformError(message, code="guard_unavailable")
