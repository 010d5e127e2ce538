"""The guard helper: the only privileged process, outside the server, in every tier that has a ruleset.

It starts the server in the guarded namespace, and then replies to the server's requests (`messages`). It reads the
operator's files and these short requests, and nothing from the network. The tiers differ in how they make the
namespace: `kernel` and `rootless`.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from mcp_server.errors import NetworkToolsError
from mcp_server.logger import get_logger
from mcp_server.netguard import messages
from mcp_server.netguard.children import ForwardedSignals, close_all_but, end, exit_code, fork, silence
from mcp_server.netguard.messages import HelperReply, HelperRequest, RequestKind
from mcp_server.netguard.ruleset import Link, update

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.netguard import Enforcement, GuardReading
    from mcp_server.netguard.nft import Nft
    from mcp_server.scope.policy import ScopePolicy

logger = get_logger(__name__)


class GuardHelper(ABC):
    """Sets up a guard, runs ``command`` inside it with ``--inside FD`` added, and takes the guard down at its end.

    ``load_config`` reads the operator's configuration again. ``bind`` makes the listening socket in the host's
    namespace that is passed to the server.

    A subclass sets ``policy``, ``link`` and ``listener`` in `prepare`, and ``nft`` in `build`. ``runner_control`` is
    the control socket of the loopback runner until it is passed to the server.
    """

    enforcement: ClassVar[Enforcement]
    policy: ScopePolicy
    nft: Nft
    link: Link

    def __init__(
        self,
        config: Config,
        command: Sequence[str],
        *,
        load_config: Callable[[], Config],
        bind: Callable[[], socket.socket] | None = None,
    ) -> None:
        self.config = config
        self.command = tuple(command)
        self.load_config = load_config
        self.bind = bind
        self.listener: socket.socket | None = None
        self.pid = os.getpid()
        self.server = 0
        self.runner_control: socket.socket | None = None
        self._at_start: GuardReading | None = None
        self._channel, self._server_end = messages.socket_pair()

    @abstractmethod
    def prepare(self) -> None:
        """Check everything that can be checked before a change is made, then bind the listener."""

    @abstractmethod
    def build(self) -> None:
        """Make the namespace, load the ruleset and test it, then connect the namespace to the network."""

    @abstractmethod
    def become_server(self) -> dict[str, str]:
        """Enter the namespace and give up privileges, in the forked child. Return the environment of the server."""

    @abstractmethod
    def take_down(self) -> None:
        """Undo the changes of `build`, even if it failed halfway. The server has already ended."""

    def check_reload(self, config: Config, policy: ScopePolicy) -> None:  # noqa: B027 - a tier may have no more to check
        """Check a new configuration and policy before they are applied."""

    def finish_reload(self) -> None:  # noqa: B027 - a tier may have nothing more to do
        """Apply the rest of a new policy, after the ruleset has it."""

    def watched(self) -> dict[int, Callable[[], None]]:
        """Return further descriptors to watch, each with the function to call when it is readable."""
        return {}

    def run(self) -> int:
        """Set up the guard, serve until the server ends, and take everything down.

        Return the exit code of the server, or 128 + N if signal N ended it.
        """
        self.prepare()
        with ForwardedSignals() as signals:
            try:
                self.build()
                self._start_server()
                return self._serve(signals)
            finally:
                if self.server:
                    end(self.server)
                self.close_runner_control()
                for each in (self._channel, self._server_end, self.listener):
                    if each is not None:
                        each.close()
                self.take_down()

    def _start_server(self) -> None:
        inside = self._server_end.fileno()

        def run() -> None:
            os.setsid()  # after a Ctrl-C, the guard helper forwards one signal, and the terminal sends no second one
            environment = self.become_server()
            close_all_but(inside)
            os.set_inheritable(inside, True)
            os.execve(self.command[0], (*self.command, "--inside", str(inside)), environment)  # noqa: S606 - argv, no shell

        self.server = fork(run)
        self._server_end.close()
        silence()
        if not self.policy.resolvers and any(entry.startswith(".") for entry in self.policy.entries):
            logger.warning(
                "guard.no_resolvers",
                message="The policy allows names but has no resolvers, so no name can be resolved.",
            )
        logger.info("guard.up", enforcement=self.enforcement.value, policy=self.policy.hash)

    def _serve(self, signals: ForwardedSignals) -> int:
        server = os.pidfd_open(self.server)
        try:
            others = self.watched()
            poll = select.poll()
            for descriptor in (server, self._channel.fileno(), signals.collect(), *others):
                poll.register(descriptor, select.POLLIN)
            while True:
                ready = {descriptor for descriptor, _ in poll.poll()}
                for number in signals.take():
                    signal.pidfd_send_signal(server, number)
                if server in ready:
                    _, status = os.waitpid(self.server, 0)
                    self.server = 0
                    return exit_code(status)
                if self._channel.fileno() in ready and not self._handle_request():
                    poll.unregister(self._channel.fileno())
                for descriptor in ready & others.keys():
                    others[descriptor]()
        finally:
            os.close(server)

    def _handle_request(self) -> bool:
        """Receive one request and reply. Return False if the server has closed the channel."""
        try:
            request = messages.receive_request(self._channel)
        except (EOFError, OSError):
            return False
        if request is not None:
            try:
                reply = self._reply_to(request)
            except NetworkToolsError as error:
                reply = HelperReply.of_error(request.number, error)
            sent = messages.send_reply(self._channel, reply)
            if sent and messages.LOOPBACK in reply.descriptors:
                self.close_runner_control()  # the server has it now, and the runner ends when the server closes it
        return True

    def _reply_to(self, request: HelperRequest) -> HelperReply:
        if request.kind is RequestKind.READ:
            return HelperReply.of_reading(request.number, self.reading())
        if request.kind is RequestKind.RELOAD:
            self.reload_policy()
        reply = HelperReply(request.number, self.description())
        if self.listener is not None and request.kind is RequestKind.HELLO:
            reply.descriptors[messages.LISTENER] = self.listener.fileno()
        if self.runner_control is not None:
            reply.descriptors[messages.LOOPBACK] = self.runner_control.fileno()
        return reply

    def start_counting(self) -> None:
        """Take the present counters as zero for all later readings. Until now, they count the self-test."""
        self._at_start = self.nft.read()

    def reading(self) -> GuardReading:
        """Return the state of the guard. Raises PlatformError ``guard_unavailable`` if it is gone or was changed."""
        now = self.nft.read()
        if self._at_start is None:
            return now
        drops = {name: count - self._at_start.drops.get(name, 0) for name, count in now.drops.items()}
        return replace(now, passed=now.passed - self._at_start.passed, drops=drops)

    def reload_policy(self) -> None:
        """Read the operator's files again and update the ruleset. Nothing changes if a file is invalid."""
        config = self.load_config()
        policy = config.scope_policy()
        self.check_reload(config, policy)
        self.nft.run(update(policy.guard_sets()))
        self.policy = policy
        self.finish_reload()
        logger.info("guard.reloaded", policy=policy.hash)

    def description(self) -> dict[str, Any]:
        """Return the facts that the server and ``guard status`` need besides a reading."""
        return {
            "enforcement": self.enforcement.value,
            "policy": self.policy.hash,
            "versions": sorted({own.version for own in self.link.own if not own.is_link_local}),
        }

    def close_runner_control(self) -> None:
        """Close the control socket of the loopback runner, if it was not passed to the server."""
        if self.runner_control is not None:
            self.runner_control.close()
            self.runner_control = None
