"""The daemons of the lab: real programs of the distribution with their own configurations, one file for each kind.

A function takes the truth, writes the files of its daemons and yields the daemons. Slow preparations are part of it, so
`build` runs these functions in parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from tests.lab.network.daemons import Daemon
from tests.lab.network.services.databases import mariadb_daemons, postgres_daemons
from tests.lab.network.services.files import file_daemons
from tests.lab.network.services.names import name_daemons
from tests.lab.network.services.pretenders import pretender_daemons
from tests.lab.network.services.shell import ssh_daemons
from tests.lab.network.services.system import system_daemons
from tests.lab.network.services.web import web_daemons
from tests.lab.network.truth import Truth

SERVICES: Final[tuple[Callable[[Truth], Iterable[Daemon]], ...]] = (
    mariadb_daemons,  # the slowest first
    postgres_daemons,
    pretender_daemons,
    system_daemons,
    name_daemons,
    file_daemons,
    ssh_daemons,
    web_daemons,
)
