"""The guard helper: the one privileged process, outside of the server it guards, in every tier that has a ruleset.

It starts the server inside the guarded namespace, and stays to answer the server's two questions (`channel`).
It reads the owner's files and those small messages, and nothing that comes from a network. How the namespace comes
to be is a matter of the tier: `kernel` and `rootless`.
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
from mcp_server.netguard import channel
from mcp_server.netguard.children import ChildSignals, close_all_but, end, exit_code, fork, silence
from mcp_server.netguard.rules import Link, update

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.netguard import Enforcement, GuardReading
    from mcp_server.netguard.nft import Nft
    from mcp_server.scope.policy import ScopePolicy

logger = get_logger(__name__)


class GuardHelper(ABC):
    """Sets a guard up around ``command``, which is started with ``--inside FD`` at its end, and ends with it.

    ``reload`` reads the owner's configuration again; ``bind`` makes the listening socket of the host's namespace that
    is handed to the server. A tier sets ``policy`` and binds ``listener`` in `prepare`, sets ``nft`` and ``link`` in
    `build`, and says in `go_inside` how a fresh child becomes the server; ``runner_control`` is the control of the
    loopback runner, while there is one to be handed over.
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
        reload: Callable[[], Config],
        bind: Callable[[], socket.socket] | None = None,
    ) -> None:
        self.config = config
        self.command = tuple(command)
        self.reload = reload
        self.bind = bind
        self.listener: socket.socket | None = None
        self.pid = os.getpid()
        self.server = 0
        self.runner_control: socket.socket | None = None
        self._proof: GuardReading | None = None
        self._channel, self._theirs = channel.pair()

    @abstractmethod
    def build(self) -> None:
        """Make the namespace, load the ruleset and prove it, open the way out."""

    @abstractmethod
    def go_inside(self) -> dict[str, str]:
        """Turn the calling process, a fresh child, into what the server is to be; the environment for it."""

    @abstractmethod
    def take_down(self) -> None:
        """Undo what `build` made, also where it failed half way; the server has ended."""

    @abstractmethod
    def prepare(self) -> None:
        """Check what can be checked before anything is made, then bind the listener."""

    def before_swap(self, config: Config, policy: ScopePolicy) -> None:  # noqa: B027 - not every tier has more to check
        """Check a new policy, before it is in force."""

    def after_swap(self) -> None:  # noqa: B027 - not every tier has more to do
        """Follow a new policy, which is in force now."""

    def watched(self) -> dict[int, Callable[[], None]]:
        """Further descriptors of this tier, and what to call when one is readable."""
        return {}

    def run(self) -> int:
        """Set up, serve until the server ends, take everything down; the server's exit code, 128 + N for signal N."""
        self.prepare()
        with ChildSignals() as signals:
            try:
                self.build()
                self._start_server()
                return self._attend(signals)
            finally:
                if self.server:
                    end(self.server)
                self.close_runner_control()
                for each in (self._channel, self._theirs, self.listener):
                    if each is not None:
                        each.close()
                self.take_down()

    def _start_server(self) -> None:
        inside = self._theirs.fileno()

        def run() -> None:
            os.setsid()  # a Ctrl-C reaches it once, by way of the guard helper
            environment = self.go_inside()
            close_all_but(inside)
            os.set_inheritable(inside, True)
            os.execve(self.command[0], (*self.command, "--inside", str(inside)), environment)  # noqa: S606 - argv, no shell

        self.server = fork(run)
        self._theirs.close()
        silence()
        if not self.policy.resolvers and any(entry.startswith(".") for entry in self.policy.entries):
            logger.warning(
                "guard.no_resolvers", message="the policy allows names and has no resolvers: none can be looked up"
            )
        logger.info("guard.up", enforcement=self.enforcement.value, policy=self.policy.hash)

    def _attend(self, signals: ChildSignals) -> int:
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
                if self._channel.fileno() in ready and not self._answer():
                    poll.unregister(self._channel.fileno())
                for descriptor in ready & others.keys():
                    others[descriptor]()
        finally:
            os.close(server)

    def _answer(self) -> bool:
        """Answer one request; False when the server has closed the channel."""
        try:
            request = channel.read_request(self._channel)
        except (EOFError, OSError):
            return False
        if request is not None:
            try:
                answer = self._carry_out(request)
            except NetworkToolsError as error:
                answer = channel.error_answer(request.number, error)
            sent = channel.send_answer(self._channel, answer)
            if sent and channel.LOOPBACK in answer.descriptors:
                self.close_runner_control()  # it is the server's now, whose end is the runner's end
        return True

    def _carry_out(self, request: channel.HelperRequest) -> channel.HelperReply:
        if request.ask is channel.Ask.READ:
            return channel.HelperReply(request.number, channel.reading_body(self.reading()))
        if request.ask is channel.Ask.RELOAD:
            self.swap()
        answer = channel.HelperReply(request.number, self.description())
        if self.listener is not None and request.ask is channel.Ask.HELLO:
            answer.descriptors[channel.LISTENER] = self.listener.fileno()
        if self.runner_control is not None:
            answer.descriptors[channel.LOOPBACK] = self.runner_control.fileno()
        return answer

    def note_counters(self) -> None:
        """What the counters say now is the canary's, and in no reading from here on."""
        self._proof = self.nft.read()

    def reading(self) -> GuardReading:
        """The guard's state; PlatformError ``guard_unavailable`` where anything of it is gone or differs."""
        now = self.nft.read()
        if self._proof is None:
            return now
        drops = {name: count - self._proof.drops.get(name, 0) for name, count in now.drops.items()}
        return replace(now, passed=now.passed - self._proof.passed, drops=drops)

    def swap(self) -> None:
        """Read the owner's files again and swap the sets; nothing changes where a file is bad."""
        config = self.reload()
        policy = config.scope_policy()
        self.before_swap(config, policy)
        self.nft.run(update(policy.guard_sets(), self.link))
        self.policy = policy
        self.after_swap()
        logger.info("guard.reloaded", policy=policy.hash)

    def description(self) -> dict[str, Any]:
        """What a server, and the owner, is told besides a reading."""
        return {
            "enforcement": self.enforcement.value,
            "policy": self.policy.hash,
            "versions": sorted({own.version for own in self.link.own if not own.is_link_local}),
        }

    def close_runner_control(self) -> None:
        """Let go of the loopback runner's control, where it was not handed over."""
        if self.runner_control is not None:
            self.runner_control.close()
            self.runner_control = None
