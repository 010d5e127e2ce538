"""The guard helper of the kernel tier: root makes the network namespace, and the server in it is an unprivileged user.

Its changes to the host are undone however it ends (`cleanup`).
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mcp_server.errors import ConfigError, NetworkToolsError, PlatformError
from mcp_server.logger import get_logger
from mcp_server.netguard import Enforcement, GuardReading, messages
from mcp_server.netguard.account import (
    Account,
    Accounts,
    become,
    own_descriptors_by,
    server_account,
    server_environment,
)
from mcp_server.netguard.children import become_silent, end, fork
from mcp_server.netguard.cleanup import Reaper, kill_processes, undo, undo_dead_guards
from mcp_server.netguard.file_access import (
    check_can_serve,
    check_cannot_change,
    check_state_folder,
    give_state_folder,
)
from mcp_server.netguard.helper import GuardHelper
from mcp_server.netguard.host_rules import HostRules, host_tables
from mcp_server.netguard.messages import HelperReply
from mcp_server.netguard.network import Namespace, NetworkPlan, connect_device, make_device, make_plan
from mcp_server.netguard.nft import Nft
from mcp_server.netguard.ruleset import ruleset
from mcp_server.netguard.self_test import run_self_test
from mcp_server.netguard.state import GuardState, check_addresses, host_namespace, record_server, start_time
from mcp_server.netguard.syscall_filter import restrict_raw_sockets
from mcp_server.sandbox import syscalls

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.scope.policy import ScopePolicy

logger = get_logger(__name__)

DEFAULT_STATE_DIR: Final = Path("/var/lib/mcp-network-tools")
"""The state folder of the server if none is configured. Root's own home folder is private."""

_NEEDED: Final = {
    6: "CAP_SETGID",
    7: "CAP_SETUID",
    8: "CAP_SETPCAP",
    12: "CAP_NET_ADMIN",
    13: "CAP_NET_RAW",
    21: "CAP_SYS_ADMIN",
}
"""The capabilities that the kernel tier needs, by their numbers (linux/capability.h)."""


class KernelGuardHelper(GuardHelper):
    """The guard helper of the kernel tier."""

    enforcement: ClassVar[Enforcement] = Enforcement.KERNEL

    _accounts: Accounts
    _accounts_after_reload: Accounts
    _state_dir: Path
    _plan: NetworkPlan
    _state: GuardState | None = None
    _namespace: Namespace | None = None
    _reaper: Reaper | None = None
    _status_socket: socket.socket | None = None
    _runner = 0
    _host: HostRules | None = None
    _unnamed: Account | None = None
    """The loopback user without an account. It stays the same, because a runner may be alive with its user id."""
    _loopback_uids: set[int]
    """All user ids that loopback runners had. Processes that an ended runner started may still be alive."""

    def prepare(self) -> None:
        """Check users, files and devices, and create the state folder or give it to the server's user."""
        if os.geteuid() != 0:
            raise PlatformError(
                "Only root can set up the kernel tier.",
                code="guard_unavailable",
                hint="Run 'sudo mcp-network-tools serve --guard kernel'. The server itself does not run as root.",
            )
        _check_capabilities()
        self.policy = self.config.scope_policy()
        self._accounts = Accounts.find(self.config, loopback=self.policy.guard_sets().loopback)
        if not self.config.guard.loopback_user:
            self._unnamed = self._accounts.loopback
        self._loopback_uids = set()
        files = _operators_files(self.config)
        check_can_serve(self._accounts.server, files)
        for path in files:
            check_cannot_change(self._accounts.server, path)
        is_default = self.config.source_of("state_dir") == "default"
        self._state_dir = DEFAULT_STATE_DIR if is_default else self.config.state_dir
        give_state_folder(self._accounts.server, self._state_dir)
        Nft().close()  # raises an error if nftables is not installed
        undo_dead_guards()
        self._plan = make_plan(self.config.guard, self.pid)
        self.link = self._plan.link
        check_addresses(self.config.guard.addresses if self._plan.mode == "macvlan" else ())
        if self.bind is not None:
            self.listener = own_descriptors_by(self._accounts.server, self.bind)

    def build(self) -> None:
        """Make everything, in an order in which no frame can leave before the self-test of the ruleset."""
        self._state = self._planned_state()
        self._state.save()
        try:
            self._make(self._state)
        except OSError as error:
            raise PlatformError(
                f"The guard cannot be set up: {error}.",
                code="guard_unavailable",
                hint="Make /proc/sys writable and allow the system calls for namespaces, unlike many containers.",
            ) from error

    def _make(self, state: GuardState) -> None:
        self._reaper = Reaper(state)
        self._namespace = Namespace()
        self._reaper.hold(self._namespace.descriptor)
        make_device(self._plan, self._namespace)
        with self._namespace.inside():
            self.nft = Nft()
            self.nft.run(ruleset(self.policy.guard_sets(), self.link))
            self._run_self_test()
            self.start_counting()
        server = self._accounts.server.uid if self.listener else None
        self._host = HostRules(self._plan, self.pid, server=server)
        self._load_host_rules()
        connect_device(self._plan, self._namespace)
        self._start_runner()

    def _run_self_test(self) -> None:
        """Run the self-test up to four times. The kernel's replies to received packets can disturb it.

        A faulty ruleset fails every time, and until the test succeeds, no frame can leave.
        """
        for pause in (0.05, 0.2, 0.4, 0.0):
            try:
                run_self_test(self.link, self.nft)
            except PlatformError:
                if not pause:
                    raise
                time.sleep(pause)
            else:
                return

    def _planned_state(self) -> GuardState:
        return GuardState(
            helper=self.pid,
            born=start_time(self.pid),
            host=host_namespace(),
            enforcement=self.enforcement.value,
            user=self._accounts.server.name,
            mode=self._plan.mode,
            uplink=self._plan.uplink,
            device=self._plan.device,
            tables=tuple(host_tables(self._plan, self.pid).values()),
            sysctls=dict(self._plan.sysctls),
            addresses=self.config.guard.addresses if self._plan.mode == "macvlan" else (),
        )

    def _load_host_rules(self) -> None:
        if self._host is None:
            return
        if self._accounts.loopback is not None:
            self._loopback_uids.add(self._accounts.loopback.uid)
        self._host.load(sorted(self._loopback_uids))

    def reading(self) -> GuardReading:
        """Return the state of the guard, after a check of its tables on the host."""
        if self._host is not None:
            self._host.check()
        return super().reading()

    def _start_runner(self) -> None:
        """Start the loopback runner if the policy has loopback addresses and no runner is active."""
        account = self._accounts.loopback
        if account is None or self._runner:
            return
        from mcp_server.sandbox.executor import runner_argv

        ours, runner_end = socket.socketpair()
        ours.setblocking(False)

        def run() -> None:
            become_silent(runner_end.fileno())
            become(account, self.pid, raw_sockets=False)
            os.chdir("/")
            os.set_inheritable(runner_end.fileno(), True)
            argv = runner_argv(runner_end.fileno(), allow_raw=False)
            os.execve(argv[0], argv, {"PATH": os.defpath, "LC_ALL": "C"})  # noqa: S606 - argv, no shell

        self._runner = fork(run)
        runner_end.close()
        self.runner_control = ours

    def become_server(self) -> dict[str, str]:
        """Enter the namespace, keep only CAP_NET_RAW, and give up the sockets that bypass the ruleset."""
        if self._namespace is not None:
            self._namespace.enter()
        become(self._accounts.server, self.pid, raw_sockets=True)
        restrict_raw_sockets()
        try:
            os.chdir(Path.cwd())
        except OSError:
            os.chdir("/")  # the server's user cannot reach a folder such as root's home
        return server_environment(os.environ, self._accounts.server, self.config, self._state_dir)

    def check_reload(self, config: Config, policy: ScopePolicy) -> None:
        """Check that the server's user cannot change the new files, and that the configured users exist."""
        for path in _operators_files(config):
            check_cannot_change(self._accounts.server, path)
        self._accounts_after_reload = self._find_accounts(config, loopback=policy.guard_sets().loopback)

    def _find_accounts(self, config: Config, *, loopback: bool) -> Accounts:
        """Return the users after a reload. The server's user and a loopback user without an account stay the same."""
        unnamed = loopback and not config.guard.loopback_user
        if unnamed and self._unnamed is not None:
            return Accounts(self._accounts.server, self._unnamed)
        found = Accounts.find(config, loopback=loopback)
        if unnamed:
            self._unnamed = found.loopback
        if found.loopback is not None and found.loopback.uid == self._accounts.server.uid:
            raise ConfigError("guard.loopback_user is the user that the server runs as.", hint="Set a different user.")
        return Accounts(self._accounts.server, found.loopback)

    def finish_reload(self) -> None:
        """Start or end the loopback runner, and load the rules for its user."""
        before, self._accounts = self._accounts, self._accounts_after_reload
        if self._runner and os.waitpid(self._runner, os.WNOHANG)[0]:
            self._runner = 0
        if self._accounts.loopback != before.loopback:
            self._end_runner()
        self._load_host_rules()
        self._start_runner()

    def watched(self) -> dict[int, Callable[[], None]]:
        """Return the socket of ``guard status``."""
        if self._state is None:
            return {}
        self._state = record_server(self._state, self.server)
        self._status_socket = _listen(self._state.control)
        return {self._status_socket.fileno(): self._report_status}

    def description(self) -> dict[str, Any]:
        """Return the description of every guard helper, and how this one is connected to the network."""
        return {**super().description(), "mode": self._plan.mode, "uplink": self._plan.uplink}

    def _report_status(self) -> None:
        """Reply to ``guard status`` with a reading, or with the error if reading fails. Only root gets a reply."""
        if self._status_socket is None:
            return
        with suppress(OSError):
            caller, _ = self._status_socket.accept()
            with caller:
                credentials = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                if struct.unpack("3i", credentials)[1] != 0:
                    return
                try:
                    reply = HelperReply.of_reading(0, self.reading(), self.description())
                except NetworkToolsError as error:
                    reply = HelperReply.of_error(0, error)
                messages.send_reply(caller, reply)

    def _end_runner(self) -> None:
        self.close_runner_control()
        if self._runner:
            end(self._runner)
            self._runner = 0

    def take_down(self) -> None:
        """End the processes in the namespace, then undo the changes to the host."""
        self._end_runner()
        if self._status_socket is not None:
            self._status_socket.close()
        if self._host is not None:
            self._host.close()
        if self._namespace is not None:
            kill_processes(self._namespace.descriptor)
            self._namespace.close()
        if self._state is not None and not (self._reaper and self._reaper.finish()):
            for problem in undo(self._state):
                logger.error("guard.not_undone", message=problem)


def kernel_unavailable(config: Config) -> str:
    """Return why root cannot set up the kernel tier here, in full sentences, or an empty string if it can.

    If ``guard.user`` is not set, the operator did not ask for this tier. In that case, every other problem that would
    make the start fail is a reason too.
    """
    try:
        _check_capabilities()
        Nft().close()
        if not config.guard.user:
            account = server_account(config)
            check_can_serve(account, _operators_files(config))
            if config.source_of("state_dir") != "default":
                check_state_folder(account, config.state_dir)
    except NetworkToolsError as error:
        return f"{error.message} {error.hint}"
    return ""


def _check_capabilities() -> None:
    held = syscalls.effective_capabilities()
    missing = [name for number, name in _NEEDED.items() if not held >> number & 1]
    if missing:
        raise PlatformError(
            f"Root lacks {', '.join(missing)} here, as in an ordinary container, and cannot set up the kernel tier.",
            code="guard_unavailable",
            hint="Start it on the host or in a privileged container, or use --guard rootless or --guard argument.",
        )


def _operators_files(config: Config) -> list[Path]:
    return [path for path in (config.file, config.security.policy_file) if path is not None]


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(path))
    path.chmod(0o600)
    listening.listen(4)
    listening.setblocking(False)
    return listening
