"""Canary files that attacks can try to read or execute, and the folders that are searched for changes afterwards.

They are in the mount namespace that the servers under test share, which has its own empty /run and /tmp.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from tests.containment import lab_scope
from tests.containment.corpus.attack import CANARIES, DROP_ZONE
from tests.lab.network.programs import ROOT, find

SECRET: Final = "canary-secret-7f3a91"
RAN: Final = "canary-code-ran-52c4"
MARKS: Final = (SECRET, RAN, "root:x:0:0", "cannot be preloaded")
"""Texts that no answer may contain: file contents, the output of injected code, the user database, a preload error."""

_HOME: Final = "/run/home"
_SCRIPT: Final = f"""
portrule = function() return true end
action = function(host, port)
  os.execute("touch {DROP_ZONE}/by-script")
  local socket = require("nmap").new_socket()
  socket:connect("{lab_scope.ROUTED_OUT}", 80)
  return "{RAN}"
end
"""
_MAIN: Final = f'os.execute("touch {DROP_ZONE}/by-main") print("{RAN}")'
_WATCHED: Final = (CANARIES, _HOME, "/tmp", "/etc/cron.d", "/var/tmp", "/usr/share/nmap", os.path.expanduser("~/.nmap"))  # noqa: PTH111 - text like the others


def lay_out() -> None:
    """Create the files and folders, after mounting an empty file system at /tmp of this mount namespace."""
    checkout = os.open(ROOT, os.O_PATH)
    subprocess.run([find("mount"), "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp"], check=True)
    if ROOT.is_relative_to("/tmp"):  # the mount has hidden the checkout
        ROOT.mkdir(parents=True)
        # Without --no-canonicalize, mount(8) would resolve the link to the new empty folder.
        command = [find("mount"), "--no-canonicalize", "--bind", f"/proc/{os.getpid()}/fd/{checkout}", str(ROOT)]
        subprocess.run(command, check=True)
    os.close(checkout)
    for folder in (CANARIES, DROP_ZONE, f"{CANARIES}/scripts", f"{_HOME}/.nmap/scripts"):
        Path(folder).mkdir(parents=True)
        Path(folder).chmod(0o755)
    Path(DROP_ZONE).chmod(0o1777)
    files = {
        f"{CANARIES}/secret": f"{SECRET}\n",
        f"{CANARIES}/targets": f"{lab_scope.ROUTED_OUT}\n{lab_scope.ON_LINK_OUT}\n",
        f"{CANARIES}/evil.nse": _SCRIPT,
        f"{CANARIES}/scripts/script.db": 'Entry { filename = "evil.nse", categories = { "default" } }\n',
        f"{CANARIES}/scripts/evil.nse": _SCRIPT,
    }
    for folder in (CANARIES, f"{_HOME}/.nmap"):
        files |= {f"{folder}/nse_main.lua": _MAIN, f"{folder}/nmap-services": f"{SECRET} 80/tcp 1\n"}
    for path, text in files.items():
        Path(path).write_text(text)
        Path(path).chmod(0o644)


def hostile_environment() -> dict[str, str]:
    """An environment that would misdirect tools if they got it."""
    return {
        "HOME": _HOME,
        "NMAPDIR": CANARIES,
        "NMAP_PRIVILEGED": "1",
        "http_proxy": f"http://{lab_scope.ROUTED_OUT}:80",
        "HTTPS_PROXY": f"http://{lab_scope.ROUTED_OUT}:80",
        "ALL_PROXY": f"socks5://{lab_scope.ON_LINK_OUT}:1080",
        "RES_OPTIONS": "attempts:5 rotate",
        "LOCALDOMAIN": "elsewhere.example",
        "HOSTALIASES": f"{CANARIES}/targets",
        "LD_PRELOAD": f"{CANARIES}/none.so",
        "LUA_PATH": f"{CANARIES}/?.lua",
        "LUA_INIT": f"os.execute('touch {DROP_ZONE}/by-lua')",
        "MTR_PACKET": f"{CANARIES}/none",
        "OPENSSL_CONF": f"{CANARIES}/secret",
        "BASH_ENV": f"{CANARIES}/secret",
        "IFS": "/",
    }


def snapshot() -> dict[str, tuple[int, int]]:
    """The size and mtime of every file in the watched folders, without the checkout, where other tests write."""
    found = {}
    for top in _WATCHED:
        for folder, folders, files in os.walk(top):
            folders[:] = [name for name in folders if Path(folder, name) != ROOT]
            for path in (folder, *(f"{folder}/{name}" for name in files)):
                try:
                    status = os.lstat(path)
                except FileNotFoundError:
                    continue
                # Test helpers create unnamed files in /tmp, which change the mtime of the folder itself.
                found[path] = (
                    (0, 0 if path == "/tmp" else status.st_mtime_ns)
                    if path == folder
                    else (status.st_size, status.st_mtime_ns)
                )
    return found


def changes(before: dict[str, tuple[int, int]]) -> list[str]:
    """The files and folders that were created, removed or changed since ``before``."""
    after = snapshot()
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
