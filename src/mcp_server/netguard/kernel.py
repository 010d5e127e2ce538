"""The guard helper of the kernel tier: root sets up a network namespace, and the server inside is an unprivileged user.

What it changes on the host is undone however it ends (`state`).
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from mcp_server.config.keys import keys
from mcp_server.errors import ConfigError, NetworkToolsError, PlatformError
from mcp_server.logger import get_logger
from mcp_server.netguard import Enforcement, GuardReading, channel
from mcp_server.netguard.account import (
    Account,
    become,
    check_can_serve,
    check_out_of_reach,
    check_state_folder,
    find_account,
    give_state_folder,
    own_descriptors_by,
    unused_account,
)
from mcp_server.netguard.canary import prove
from mcp_server.netguard.children import become_silent, end, fork
from mcp_server.netguard.choice import DEFAULT_USER
from mcp_server.netguard.filter import confine
from mcp_server.netguard.helper import GuardHelper
from mcp_server.netguard.host import HostRules
from mcp_server.netguard.net import (
    Namespace,
    NetworkPlan,
    make_device,
    make_plan,
    nat_rules,
    open_way,
    user_rules,
)
from mcp_server.netguard.nft import Nft
from mcp_server.netguard.rules import ruleset
from mcp_server.netguard.state import (
    GuardState,
    Reaper,
    born,
    check_addresses,
    clear_dead_guards,
    dismantle,
    host_namespace,
    note_server,
    sweep,
)
from mcp_server.sandbox import syscalls

if TYPE_CHECKING:
    from mcp_server.config import Config
    from mcp_server.scope.policy import ScopePolicy

logger = get_logger(__name__)

DEFAULT_STATE_DIR: Final = Path("/var/lib/mcp-network-tools")

_NEEDED: Final = {
    6: "CAP_SETGID",
    7: "CAP_SETUID",
    8: "CAP_SETPCAP",
    12: "CAP_NET_ADMIN",
    13: "CAP_NET_RAW",
    21: "CAP_SYS_ADMIN",
}
"""Capabilities without which nothing can be set up, by their numbers (linux/capability.h)."""
_ROOTS_OWN: Final = ("HOME", "USER", "LOGNAME", "SHELL", "MAIL")


@dataclass(frozen=True, slots=True)
class Accounts:
    """Who the server becomes, and who looks at the host's own loopback (None: the policy names none of it)."""

    server: Account
    loopback: Account | None

    @classmethod
    def find(cls, config: Config, *, loopback: bool) -> Accounts:
        """Look both up; raises PlatformError or ConfigError with the remedy."""
        server = server_account(config)
        other = loopback_account(config) if loopback else None
        if other is not None and other.uid == server.uid:
            raise ConfigError("guard.loopback_user is the same user as guard.user", hint="Name two users.")
        return cls(server, other)


def server_account(config: Config) -> Account:
    """The user the server becomes; PlatformError or ConfigError where there is none that will do."""
    return find_account(config.guard.user or DEFAULT_USER, "guard.user")


def loopback_account(config: Config) -> Account:
    """The user that looks at the host's own loopback: the one that is named, or one that is nobody else."""
    name = config.guard.loopback_user
    return find_account(name, "guard.loopback_user") if name else unused_account()


class KernelGuardHelper(GuardHelper):
    """The guard helper of the kernel tier."""

    enforcement: ClassVar[Enforcement] = Enforcement.KERNEL

    _accounts: Accounts
    _plan: NetworkPlan
    _state: GuardState
    _namespace: Namespace | None = None
    _reaper: Reaper | None = None
    _control: socket.socket | None = None
    _runner = 0
    _host: HostRules | None = None
    _nameless: Account | None = None  # its user id stays the same: a runner that is alive has it
    _fenced: set[int]  # also of runners that have ended: what they started may not have

    def prepare(self) -> None:
        """Check users, files and links; the state folder is made, or given to the server's user where it is empty."""
        if os.geteuid() != 0:
            raise PlatformError(
                "the kernel tier is set up by root, and this process is not",
                code="guard_unavailable",
                hint="sudo mcp-network-tools serve --guard kernel; the server itself gives root up before it starts.",
            )
        _check_capabilities()
        self.policy = self.config.scope_policy()
        self._accounts = Accounts.find(self.config, loopback=self.policy.guard_sets().loopback)
        if not self.config.guard.loopback_user:
            self._nameless = self._accounts.loopback
        self._fenced = set()
        files = _owners_files(self.config)
        check_can_serve(self._accounts.server, files)
        for path in files:
            check_out_of_reach(self._accounts.server, path)
        if self.config.source_of("state_dir") == "default":
            self.config.state_dir = DEFAULT_STATE_DIR  # root's own home is no place for another user's state
        give_state_folder(self._accounts.server, self.config.state_dir)
        Nft().close()  # says what to install
        clear_dead_guards()
        self._plan = make_plan(self.config.guard, self.pid)
        self.link = self._plan.link
        check_addresses(self.config.guard.addresses if self._plan.mode == "macvlan" else ())
        if self.bind is not None:
            self.listener = own_descriptors_by(self._accounts.server, self.bind)

    def build(self) -> None:
        """Make everything, in an order in which no frame can leave before the ruleset is proved."""
        self._state = self._planned_state()
        self._state.save()
        try:
            self._make()
        except OSError as error:
            raise PlatformError(
                f"the guard cannot be set up: {error}",
                code="guard_unavailable",
                hint="A read-only /proc/sys or a filter on system calls, as in a container, does not allow it.",
            ) from error

    def _make(self) -> None:
        self._reaper = Reaper(self._state)
        self._namespace = Namespace()
        self._reaper.hold(self._namespace.descriptor)
        make_device(self._plan, self._namespace)
        with self._namespace.inside():
            self.nft = Nft()
            self.nft.run(ruleset(self.policy.guard_sets(), self.link))
            self._prove()
            self.note_counters()
        self._host = HostRules()
        self._load_host_rules()
        open_way(self._plan, self._namespace)
        self._start_runner()

    def _prove(self) -> None:
        """Run the canary, a few times: what arrives from outside meanwhile is answered, and looks like a leak to it.

        The gate stays closed until it succeeds, and a ruleset that leaks fails every time.
        """
        for pause in (0.05, 0.2, 0.4, 0.0):
            try:
                prove(self.link, self.nft)
            except PlatformError:
                if not pause:
                    raise
                time.sleep(pause)
            else:
                return

    @property
    def _nat_table(self) -> str:
        return f"mcp_scope_nat_{self.pid}"

    @property
    def _user_table(self) -> str:
        return f"mcp_scope_host_{self.pid}"

    def _planned_state(self) -> GuardState:
        # The users' table also where the policy names no loopback yet: a reload may.
        tables = (("inet", self._user_table), *([("ip", self._nat_table)] if self._plan.device else []))
        return GuardState(
            helper=self.pid,
            born=born(self.pid),
            host=host_namespace(),
            enforcement=self.enforcement.value,
            user=self._accounts.server.name,
            mode=self._plan.mode,
            uplink=self._plan.uplink,
            device=self._plan.device,
            tables=tables,
            sysctls=dict(self._plan.sysctls),
            addresses=self.config.guard.addresses if self._plan.mode == "macvlan" else (),
        )

    def _load_host_rules(self) -> None:
        """Load the host's tables; each as one transaction, so that no packet meets none."""
        if self._host is None:
            return
        if self._plan.device:
            self._host.load("ip", self._nat_table, nat_rules(self._plan, self._nat_table))
        if self._accounts.loopback is not None:
            self._fenced.add(self._accounts.loopback.uid)
        server = self._accounts.server.uid if self.listener else None
        rules = user_rules(self._user_table, server=server, loopback=sorted(self._fenced))
        self._host.load("inet", self._user_table, rules)

    def reading(self) -> GuardReading:
        """As every guard helper's, of the host's tables too."""
        if self._host is not None:
            self._host.check()
        return super().reading()

    def _start_runner(self) -> None:
        """Start the runner of loopback targets where the policy names any and none is there."""
        account = self._accounts.loopback
        if account is None or self._runner:
            return
        from mcp_server.sandbox.executor import runner_argv

        ours, theirs = socket.socketpair()
        ours.setblocking(False)

        def run() -> None:
            become_silent(theirs.fileno())
            become(account, self.pid, raw_sockets=False)
            os.chdir("/")
            os.set_inheritable(theirs.fileno(), True)
            argv = runner_argv(theirs.fileno(), allow_raw=False)
            os.execve(argv[0], argv, {"PATH": os.defpath, "LC_ALL": "C"})  # noqa: S606 - argv, no shell

        self._runner = fork(run)
        theirs.close()
        self.runner_control = ours

    def go_inside(self) -> dict[str, str]:
        """Enter the namespace and give up everything but CAP_NET_RAW, and of that what the ruleset cannot see."""
        if self._namespace is not None:
            self._namespace.enter()
        become(self._accounts.server, self.pid, raw_sockets=True)
        confine()
        try:
            os.chdir(Path.cwd())
        except OSError:
            os.chdir("/")  # root's own folder, say
        return server_environment(os.environ, self._accounts.server, self.config)

    def before_swap(self, config: Config, policy: ScopePolicy) -> None:
        """The new files must be out of the server's reach as the first were, and the users be there."""
        for path in _owners_files(config):
            check_out_of_reach(self._accounts.server, path)
        self._wanted = self._accounts_for(config, loopback=policy.guard_sets().loopback)

    def _accounts_for(self, config: Config, *, loopback: bool) -> Accounts:
        """Whom the users are from here on: the server stays who it is, and a nameless loopback user too."""
        nameless = loopback and not config.guard.loopback_user
        if nameless and self._nameless is not None:
            return Accounts(self._accounts.server, self._nameless)
        found = Accounts.find(config, loopback=loopback)
        if nameless:
            self._nameless = found.loopback
        if found.loopback is not None and found.loopback.uid == self._accounts.server.uid:
            raise ConfigError("guard.loopback_user is the user the server runs as", hint="Name another user.")
        return Accounts(self._accounts.server, found.loopback)

    def after_swap(self) -> None:
        """Start or end the loopback runner, as the policy now names loopback or not."""
        before, self._accounts = self._accounts, self._wanted
        if self._runner and os.waitpid(self._runner, os.WNOHANG)[0]:
            self._runner = 0
        if self._accounts.loopback != before.loopback:
            self._end_runner()
        self._load_host_rules()
        self._start_runner()

    def watched(self) -> dict[int, Callable[[], None]]:
        """The socket of ``guard status``."""
        self._state = note_server(self._state, self.server)
        self._control = _listen(self._state.control)
        return {self._control.fileno(): self._report}

    def description(self) -> dict[str, Any]:
        """As every guard helper's, with the way out."""
        return {**super().description(), "mode": self._plan.mode, "uplink": self._plan.uplink}

    def _report(self) -> None:
        """Answer ``guard status``: the reading, or why there is none. Only root is answered."""
        if self._control is None:
            return
        with suppress(OSError):
            caller, _ = self._control.accept()
            with caller:
                credentials = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                if struct.unpack("3i", credentials)[1] != 0:
                    return
                try:
                    answer = channel.HelperReply(0, self.description() | channel.reading_body(self.reading()))
                except NetworkToolsError as error:
                    answer = channel.error_answer(0, error)
                channel.send_answer(caller, answer)

    def _end_runner(self) -> None:
        self.close_runner_control()
        if self._runner:
            end(self._runner)
            self._runner = 0

    def take_down(self) -> None:
        """End what is left inside, then have the host put back as it was."""
        self._end_runner()
        if self._control is not None:
            self._control.close()
        if self._host is not None:
            self._host.close()
        if self._namespace is not None:
            sweep(self._namespace.descriptor)
            self._namespace.close()
        if hasattr(self, "_state") and not (self._reaper and self._reaper.finish()):
            for problem in dismantle(self._state):
                logger.error("guard.left_behind", message=problem)


def kernel_missing(config: Config) -> str | None:
    """Why root cannot set the kernel tier up here, with the remedy; None where it has what that needs.

    Where ``guard.user`` names nobody, nobody asked for this tier: what else is in the way is a reason too, and no
    error at the start.
    """
    try:
        _check_capabilities()
        Nft().close()
        if not config.guard.user:
            account = server_account(config)
            check_can_serve(account, _owners_files(config))
            if config.source_of("state_dir") != "default":
                check_state_folder(account, config.state_dir)
    except NetworkToolsError as error:
        return f"{error.message} ({error.hint})"
    return None


def _check_capabilities() -> None:
    held = syscalls.effective_capabilities()
    missing = [name for number, name in _NEEDED.items() if not held >> number & 1]
    if missing:
        raise PlatformError(
            f"root lacks {', '.join(missing)} here, as in an ordinary container, and cannot set the kernel tier up",
            code="guard_unavailable",
            hint="Start it on the host or in a privileged container, or use --guard rootless or argument.",
        )


def _owners_files(config: Config) -> list[Path]:
    return [path for path in (config.file, config.security.policy_file) if path is not None]


def server_environment(given: Mapping[str, str], account: Account, config: Config) -> dict[str, str]:
    """The server's environment: the owner's settings, with absolute paths, without what is root's own."""
    kept = {
        name: value
        for name, value in given.items()
        if name not in _ROOTS_OWN and not name.startswith(("XDG_", "SUDO_", "LD_"))
    }
    own = {"HOME": account.home, "USER": account.name, "LOGNAME": account.name, "MCP_STATE_DIR": str(config.state_dir)}
    if config.file is not None:
        own["MCP_CONFIG_FILE"] = str(config.file)
    for key in keys().values():
        value = key.of(config)
        if isinstance(value, Path) and key.holder(config).source_of(key.name) == "env":
            own |= {name: str(value) for name in key.env if name in kept}
    return kept | own


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.bind(str(path))
    path.chmod(0o600)
    control.listen(4)
    control.setblocking(False)
    return control
