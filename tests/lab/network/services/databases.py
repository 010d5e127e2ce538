"""PostgreSQL and MariaDB, each with a new data folder in memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.lab.network.daemons import Daemon, folder, write
from tests.lab.network.programs import find, find_postgres, run
from tests.lab.network.truth import Truth


def postgres_daemons(truth: Truth) -> Iterable[Daemon]:
    """Yield one PostgreSQL, unless the lab is built without databases."""
    if "pg1" not in truth.hosts:
        return
    data = folder("postgres", owner="postgres")
    as_postgres = [find("setpriv"), "--reuid=postgres", "--regid=postgres", "--init-groups", "--"]
    run([*as_postgres, find_postgres("initdb"), "-D", str(data), "-A", "trust", "--no-sync", "--no-instructions"])
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n")
    settings = {
        "listen_addresses": "*",
        "unix_socket_directories": str(data),
        "fsync": "off",
        "dynamic_shared_memory_type": "mmap",  # /dev/shm is that of the machine, and would keep files after a kill
    }
    options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    argv = [find_postgres("postgres"), "-D", str(data), *options]
    yield Daemon("postgres", "pg1", argv, [("tcp", 5432)], user="postgres", ready=lambda: _accepts(data))


def _accepts(data: Path) -> bool:
    """Return whether PostgreSQL accepts connections.

    It listens earlier; the last line of its pid file says when it is ready.
    """
    try:
        return (data / "postmaster.pid").read_text().rstrip().endswith("ready")
    except FileNotFoundError:
        return False


def mariadb_daemons(truth: Truth) -> Iterable[Daemon]:
    """Yield one MariaDB, unless the lab is built without databases."""
    if "maria1" not in truth.hosts:
        return
    data = folder("mariadb", owner="mysql")
    run([find("mariadb-install-db"), "--no-defaults", "--user=mysql", f"--datadir={data}", "--skip-test-db"])
    # Without an account for remote addresses, the server refuses them and sends no greeting.
    statements = write("mariadb.sql", "CREATE USER 'probe'@'%' IDENTIFIED BY 'not-a-secret';\n")
    argv = [
        find("mariadbd"),
        "--no-defaults",
        f"--datadir={data}",
        f"--tmpdir={data}",
        "--user=mysql",
        "--bind-address=*",
        "--skip-name-resolve",
        f"--init-file={statements}",
        f"--socket={data}/socket",
        f"--pid-file={data}/pid",
        "--innodb-flush-method=nosync",
    ]
    yield Daemon("mariadb", "maria1", argv, [("tcp", 3306)])
