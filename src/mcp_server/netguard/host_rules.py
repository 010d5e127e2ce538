"""The guard's nftables tables in the host's namespace, and the check that they are still loaded.

Reloading the host's firewall often starts with "flush ruleset", which removes the tables of every program.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_interface
from typing import Final

from mcp_server.errors import PlatformError
from mcp_server.netguard.network import NetworkPlan
from mcp_server.netguard.nft import Nft

_FLUSHED: Final = (
    "Send SIGHUP to the guard helper, which loads the rules again. Configure the host's firewall to delete only its "
    "own tables instead of 'flush ruleset'."
)


def host_tables(plan: NetworkPlan, helper: int) -> dict[str, tuple[str, str]]:
    """Return the family and name of the guard's tables on the host, by purpose; ``helper`` is the guard helper's PID.

    The table ``users`` always exists, because a reload can start the loopback runner.
    """
    tables = {"users": ("inet", f"mcp_scope_host_{helper}")}
    return tables | ({"nat": ("ip", f"mcp_scope_nat_{helper}")} if plan.device else {})


class HostRules:
    """The guard's tables in the network namespace of the calling thread. Other tables may change.

    ``server`` is the user id of the server if it has a listening socket. Raises PlatformError ``guard_unavailable`` if
    nftables is missing or this process may not change it.
    """

    def __init__(self, plan: NetworkPlan, helper: int, *, server: int | None) -> None:
        self._plan, self._tables, self._server = plan, host_tables(plan, helper), server
        self._nft = Nft()
        self._loaded: dict[tuple[str, str], str] = {}
        self._generation = -1

    def load(self, loopback: Iterable[int]) -> None:
        """Load each table in one transaction, so that every packet meets the old or the new rules.

        ``loopback`` are the user ids of loopback runners. Raises PlatformError with the error of nft.
        """
        if "nat" in self._tables:
            self._replace(*self._tables["nat"], _nat_rules(self._plan))
        self._replace(*self._tables["users"], _user_rules(self._server, loopback))

    def _replace(self, family: str, name: str, chains: str) -> None:
        # Use a new `Nft` each time: if the host has a guard's table too, `Nft.run` fails after any other change.
        loading = Nft()
        try:
            table = f"table {family} {name}"
            loading.run(f"add {table}\ndelete {table}\n{table} {{\n{chains}}}\n")
        finally:
            loading.close()
        self._loaded[family, name] = self._nft.table(family, name)
        self._generation = -1

    def check(self) -> None:
        """Raise PlatformError ``guard_unavailable`` unless each table is as it was loaded.

        This makes one request to the kernel. The tables are listed only if something in the host's nftables changed.
        """
        generation = self._nft.generation()
        if generation == self._generation:
            return
        for (family, name), loaded in self._loaded.items():
            now = self._nft.table(family, name)
            if now != loaded:
                raise PlatformError(
                    f"The guard's table {family} {name} on the host {'was changed' if now else 'is gone'}.",
                    code="guard_unavailable",
                    hint=_FLUSHED,
                )
        self._generation = generation

    def close(self) -> None:
        """Close the sockets. The tables stay."""
        self._nft.close()


def _nat_rules(plan: NetworkPlan) -> str:
    """Return the chains for nat mode: which packets are forwarded between namespace and uplink, and masquerading.

    If the uplink did not forward packets before, it forwards only the packets of the namespace now.
    """
    inner = ip_interface(plan.own[0]).ip
    others = "" if plan.forwards_already else f'iifname "{plan.uplink}" oifname != "{plan.device}" counter drop'
    return f"""
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {inner} oifname "{plan.uplink}" counter masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{plan.device}" ip saddr != {inner} counter drop
    iifname "{plan.device}" oifname != "{plan.uplink}" counter reject with icmp type net-prohibited
    oifname "{plan.device}" ct state != {{ established, related }} counter drop
    {others}
  }}
"""


def _user_rules(server: int | None, loopback: Iterable[int]) -> str:
    """Return the chain of rules by user id.

    A socket that was created on the host stays in the host's namespace, even if a guarded process uses it. The
    server's sockets there may answer clients but not connect to anything. Without this rule, the server could reuse an
    accepted connection: ``connect`` to AF_UNSPEC, then to another address. Some kernels allow this with the listening
    socket too. Packets of the loopback runner may go to the host's own loopback only.
    """
    rules = []
    if server is not None:
        rules.append(f"meta skuid {server} tcp flags & (syn | ack) == syn counter drop")
    for uid in loopback:
        rules += [
            f'meta skuid {uid} oifname "lo" ip daddr 127.0.0.0/8 counter accept',
            f'meta skuid {uid} oifname "lo" ip6 daddr ::1 counter accept',
            f"meta skuid {uid} counter drop",
        ]
    body = "\n    ".join(rules)
    return f"""
  chain output {{
    type filter hook output priority filter; policy accept;
    {body}
  }}
"""
