"""The guard in the server process: the connection to its guard helper, or `ArgumentGuard` in the argument tier."""

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
from mcp_server.netguard import Enforcement, GuardReading, messages
from mcp_server.netguard.messages import HelperReply, HelperRequest, RequestKind

if TYPE_CHECKING:
    from mcp_server.model.target import Network, Targets
    from mcp_server.sandbox.executor import Executor

logger = get_logger(__name__)

REPLY_SEC: Final = 2.0
"""Time limit for a reply of the guard helper. A reading takes it about 1 ms."""
RELOAD_SEC: Final = 30.0
"""Time limit for the reply to a reload. Reading a policy of 100,000 networks takes seconds."""

_ENDED: Final = "The guard helper has ended."
_LOOPBACK: Final[dict[int, Any]] = {4: IPv4Network("127.0.0.0/8"), 6: IPv6Network("::1/128")}


class PacketGuard:
    """The guard of a server that a guard helper started, in the kernel and rootless tiers. Use it from one event loop.

    ``descriptor`` is the socket to the guard helper. Raises PlatformError ``guard_unavailable`` if the guard helper
    does not reply. ``policy_hash`` is the hash of the policy that the ruleset enforces. ``listener`` is the listening
    socket of the HTTP interfaces in the host's namespace, or None if the guard helper passed none.
    """

    def __init__(self, descriptor: int) -> None:
        self._channel = socket.socket(fileno=descriptor)
        self._channel.set_inheritable(False)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[HelperReply]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lost = False
        self._reloads = 0
        self._here: Executor | None = None
        self._loopback: Executor | None = None
        hello = self._greet()
        self._enforcement = Enforcement(hello.body["enforcement"])
        self.policy_hash: str = hello.body["policy"]
        self._versions = frozenset(hello.body["versions"])
        self._control = hello.descriptors.get(messages.LOOPBACK)
        listener = hello.descriptors.get(messages.LISTENER)
        self.listener = None if listener is None else socket.socket(fileno=listener)

    def _greet(self) -> HelperReply:
        self._channel.settimeout(REPLY_SEC)
        try:
            self._channel.send(HelperRequest(0, RequestKind.HELLO).encode())
            hello = messages.receive_reply(self._channel)
        except (OSError, EOFError) as error:
            raise _unavailable(f"The guard helper does not reply: {str(error) or 'it has ended'}.") from error
        self._channel.setblocking(False)
        hello.raise_for_error()
        return hello

    @property
    def enforcement(self) -> Enforcement:
        """The tier in force."""
        return self._enforcement

    @property
    def raw_sockets(self) -> bool:
        """Whether tools may open raw sockets. They may, because the ruleset filters every frame."""
        return True

    async def read(self) -> GuardReading:
        """Return the state of the guard. Raises PlatformError ``guard_unavailable`` if it is gone or was changed."""
        # The guard helper handles one request at a time, so a reply takes longer while it reads a policy.
        return (await self._request(RequestKind.READ, RELOAD_SEC if self._reloads else REPLY_SEC)).reading()

    async def reload(self, policy_hash: str) -> None:
        """Make the guard helper read the operator's files again.

        Raises the guard helper's error if a file is invalid; then nothing has changed. Raises PlatformError
        ``guard_unavailable`` if the policy that it read has a different hash; then that policy is in force.
        """
        if self._enforcement is Enforcement.ROOTLESS and policy_hash == self.policy_hash:
            return  # in this tier, the guard helper refuses every reload
        self._reloads += 1
        try:
            reply = await self._request(RequestKind.RELOAD, RELOAD_SEC)
        finally:
            self._reloads -= 1
        self.policy_hash = reply.body["policy"]
        if (control := reply.descriptors.get(messages.LOOPBACK)) is not None:
            self._replace_loopback(control)
        if self.policy_hash != policy_hash:
            raise PlatformError(
                f"The guard helper read the policy {self.policy_hash[:12]}, but the server read {policy_hash[:12]}.",
                code="guard_unavailable",
                hint="Reload once more. Either the policy changed during the reload, or the environments differ.",
            )

    def executor_for(self, targets: Targets) -> Executor:
        """Return the executor on the host's loopback for loopback targets, and the one in this namespace for others.

        Raises TargetError ``invalid_target`` if loopback targets are mixed with others or the guard has no address of a
        target's IP version. Raises PlatformError ``guard_unavailable`` if there is no runner for loopback targets.
        """
        if _all_loopback(network for target in targets.items for network in target.networks):
            executor = self._loopback_executor()
            if executor is None:
                raise PlatformError(
                    "Loopback targets are scanned from outside the guard, and no runner for them is active.",
                    code="guard_unavailable",
                    hint="Use the kernel tier. The rootless tier cannot reach loopback targets."
                    if self._enforcement is Enforcement.ROOTLESS
                    else "Reload the server. The runner is started if the policy allows loopback.",
                )
            return executor
        for target in targets.items:
            for version in sorted(target.versions - self._versions):
                raise TargetError(
                    f"The target {target.given!r} cannot be reached, because the guard has no IPv{version} address.",
                    hint="Add one to guard.addresses, with guard.mode macvlan. The mode nat and the rootless tier "
                    "support IPv4 only.",
                    parameter="target",
                )
        return self._own_executor()

    def executors(self) -> tuple[Executor, ...]:
        """Return the executor in this namespace and, if its runner is active, the one on the host's loopback."""
        loopback = self._loopback_executor()
        return (self._own_executor(),) if loopback is None else (self._own_executor(), loopback)

    def close(self) -> None:
        """Disconnect from the guard helper and end the runners. It is safe to call this twice."""
        self._stop_receiving()
        self._channel.close()
        if self._control is not None:
            os.close(self._control)
            self._control = None
        for executor in (self._here, self._loopback):
            if executor is not None:
                executor.close()
        self._here = self._loopback = None

    def _own_executor(self) -> Executor:
        from mcp_server.sandbox.executor import Executor

        if self._here is None:
            self._here = Executor.here(allow_raw=True)
        return self._here

    def _loopback_executor(self) -> Executor | None:
        from mcp_server.sandbox.executor import Executor

        if self._loopback is None and self._control is not None:
            self._loopback, self._control = Executor.adopt("loopback", self._control, allow_raw=False), None
        return self._loopback

    def _replace_loopback(self, control: int) -> None:
        if self._control is not None:
            os.close(self._control)
        if self._loopback is not None:
            self._loopback.close()
        self._control, self._loopback = control, None

    async def _request(self, kind: RequestKind, seconds: float) -> HelperReply:
        if self._lost:
            raise _unavailable(_ENDED)
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            loop.add_reader(self._channel.fileno(), self._receive)
        number = next(self._numbers)
        waiting: asyncio.Future[HelperReply] = loop.create_future()
        self._waiting[number] = waiting
        try:
            self._channel.send(HelperRequest(number, kind).encode())
            async with asyncio.timeout(seconds):
                reply = await waiting
        except TimeoutError:
            raise _unavailable(f"The guard helper did not reply within {seconds:g} seconds.") from None
        except OSError as error:
            raise _unavailable(f"The request to the guard helper cannot be sent: {error.strerror}.") from error
        finally:
            del self._waiting[number]
        reply.raise_for_error()
        return reply

    def _stop_receiving(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._channel.fileno())
        self._loop = None

    def _receive(self) -> None:
        try:
            reply = messages.receive_reply(self._channel)
        except (BlockingIOError, InterruptedError):
            return
        except PlatformError as error:
            logger.error("guard.invalid_reply", message=error.message)  # noqa: TRY400 - the traceback adds nothing
            return
        except (OSError, EOFError):
            self._on_helper_ended()
            return
        waiting = self._waiting.get(reply.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)
        else:  # the request timed out
            for descriptor in reply.descriptors.values():
                os.close(descriptor)

    def _on_helper_ended(self) -> None:
        """End this process with SIGTERM. Normally, the kernel has killed it already (PR_SET_PDEATHSIG)."""
        self._lost = True
        self._stop_receiving()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(_unavailable(_ENDED))
        logger.critical("guard.lost", message="The guard helper has ended, so the server ends too.")
        os.kill(os.getpid(), signal.SIGTERM)


class ArgumentGuard:
    """The argument tier: addresses are checked before a program is started, and there is no packet guard."""

    def __init__(self) -> None:
        self._here: Executor | None = None

    @property
    def enforcement(self) -> Enforcement:
        """The tier in force."""
        return Enforcement.ARGUMENT

    @property
    def raw_sockets(self) -> bool:
        """Whether tools may open raw sockets. They may not, because nothing would filter their frames."""
        return False

    async def read(self) -> None:
        """Return None, because there is no packet guard."""

    async def reload(self, policy_hash: str) -> None:
        """Do nothing, because there is no packet guard."""

    def executor_for(self, targets: Targets) -> Executor:  # noqa: ARG002 - the contract of `Guard`
        """Return the one executor."""
        return self._own_executor()

    def executors(self) -> tuple[Executor, ...]:
        """Return the one executor."""
        return (self._own_executor(),)

    def _own_executor(self) -> Executor:
        from mcp_server.sandbox.executor import Executor

        if self._here is None:
            self._here = Executor.here(allow_raw=False)
        return self._here

    def close(self) -> None:
        """End the runner. It is safe to call this twice."""
        executor, self._here = self._here, None
        if executor is not None:
            executor.close()


def _all_loopback(networks: Iterable[Network]) -> bool:
    """Return whether all networks are loopback. Raises TargetError if only some are."""
    kinds = {network.overlaps(_LOOPBACK[network.version]) for network in networks}
    if len(kinds) > 1:
        raise TargetError(
            "A run cannot have both loopback targets and others, because they are reached from different namespaces.",
            hint="Make one call for the loopback targets and one for the others.",
            parameter="target",
        )
    return kinds == {True}


def _unavailable(message: str) -> PlatformError:
    return PlatformError(message, code="guard_unavailable")
