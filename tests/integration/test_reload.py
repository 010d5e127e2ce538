"""A running server reloads changed files or on request, and uses all of a new configuration or none of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.support.interfaces import environment, free_port, http_server, log_records, rest_client
from tests.support.site_tools import make_site_tools

WAIT_SEC = 20.0
"""A change is found within a second. A machine under load needs longer."""


@dataclass(slots=True)
class Served:
    """A server with a configuration file and a policy file that a test can change."""

    folder: Path
    client: httpx2.AsyncClient
    pid: int
    log: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def policy(self) -> Path:
        return self.folder / "policy.yaml"

    def write(self, **sections: Any) -> None:
        """Replace the configuration file atomically."""
        security = {"policy_file": str(self.policy)} | sections.pop("security", {})
        replace(self.config, json.dumps({"security": security, **sections}))

    def allow(self, *entries: str) -> None:
        replace(self.policy, f"version: 1\nallow: [{', '.join(entries)}]\n")

    async def allowed(self, address: str) -> bool:
        scope = (await self.client.get("/scope", params={"target": address})).json()
        return bool(scope["targets"][0]["allowed"])

    async def running(self) -> dict[str, Any]:
        return dict((await self.client.get("/config")).json())

    def reloads(self) -> list[dict[str, Any]]:
        records = log_records(self.folder / "state")
        return [each for each in records if each["event"] == "admin" and each["action"] == "reload"]


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    new.rename(path)


async def until(attempt: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_SEC):
        while not await attempt():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def served(folder: Path, *, sections: dict[str, Any] | None = None, **env: str) -> AsyncIterator[Served]:
    folder.mkdir(exist_ok=True)
    settings = environment(folder / "state", MCP_CONFIG_FILE=str(folder / "config.json"), **env)
    del settings["MCP_SECURITY_ALLOWED_TARGETS"]
    own = Served(folder, None, 0, folder)  # type: ignore[arg-type]  # there is no client yet
    own.allow("127.0.0.1")
    own.write(**(sections or {}))
    with http_server(settings) as (base, token, process):
        async with rest_client(base, token) as client:
            yield Served(folder, client, process.pid, folder / f"server-{base.rpartition(':')[2]}.log")


async def test_changed_files_are_reloaded_automatically(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        assert [await server.allowed(f"127.0.0.{n}") for n in (1, 2)] == [True, False]
        server.allow("127.0.0.2")
        await until(lambda: server.allowed("127.0.0.2"))
        assert not await server.allowed("127.0.0.1")

        server.policy.write_text("version: 1\nallow: [127.0.0.3]\n")  # in place, as some editors do
        await until(lambda: server.allowed("127.0.0.3"))

        other = tmp_path / "other.yaml"
        replace(other, "version: 1\nallow: [127.0.0.4]\n")
        server.write(security={"policy_file": str(other)})
        await until(lambda: server.allowed("127.0.0.4"))

        replace(other, "version: 1\nallow: [127.0.0.5]\n")  # the new policy file is watched too
        await until(lambda: server.allowed("127.0.0.5"))
        assert [each["result"] for each in server.reloads()] == ["accepted"] * 4
        assert {each["interface"] for each in server.reloads()} == {"file"}


async def test_a_changed_config_map_is_reloaded(tmp_path: Path) -> None:
    # Kubernetes makes every file a link to ..data/FILE, and replaces ..data by a rename.
    mounted = tmp_path / "mounted"
    mounted.mkdir()

    def publish(version: str, entry: str) -> None:
        folder = mounted / f"..{version}"
        folder.mkdir()
        (folder / "policy.yaml").write_text(f"version: 1\nallow: [{entry}]\n")
        (folder / "policy.yaml").chmod(0o600)
        (mounted / "..data_tmp").symlink_to(folder.name)
        (mounted / "..data_tmp").rename(mounted / "..data")

    publish("one", "127.0.0.6")
    (mounted / "policy.yaml").symlink_to("..data/policy.yaml")
    sections = {"security": {"policy_file": str(mounted / "policy.yaml")}}
    async with served(tmp_path, sections=sections) as server:
        assert await server.allowed("127.0.0.6")
        publish("two", "127.0.0.7")
        await until(lambda: server.allowed("127.0.0.7"))
        assert not await server.allowed("127.0.0.6")


async def test_an_invalid_file_is_logged_and_changes_nothing(tmp_path: Path) -> None:
    async with served(tmp_path, sections={"limits": {"max_stderr_bytes": 2048}}) as server:
        server.write(limits={"max_stderr_bytes": 4096}, health={"check_intervall": 5})

        async def logged() -> bool:
            return "config.not_reloaded" in server.log.read_text()

        await until(logged)
        running = await server.running()
        assert running["config"]["limits"]["max_stderr_bytes"] == 2048, "a value of an invalid file is used"
        assert running["last_reload"]["result"] == "kept"
        assert "health.check_intervall" in running["last_reload"]["error"]["message"]
        metrics = (await server.client.get("/metrics")).text
        assert 'mcp_config_reloads_total{result="kept"} 1.0' in metrics
        (record,) = server.reloads()
        assert (record["result"], record["code"]) == ("kept", "config_invalid")

        server.config.write_text("")  # some editors empty the file before they write

        async def twice() -> bool:
            return len(server.reloads()) == 2

        await until(twice)
        assert (await server.running())["config"]["security"]["policy_file"] == str(server.policy)
        assert await server.allowed("127.0.0.1")

        server.write(limits={"max_stderr_bytes": 4096})  # corrected

        async def corrected() -> bool:
            return bool((await server.running())["config"]["limits"]["max_stderr_bytes"] == 4096)

        await until(corrected)
        assert 'mcp_config_reloads_total{result="applied"} 1.0' in (await server.client.get("/metrics")).text


async def test_an_invalid_policy_prevents_the_reload_of_the_configuration(tmp_path: Path) -> None:
    async with served(tmp_path, MCP_SERVER_WATCH_CONFIG="false") as server:
        broken = tmp_path / "broken.yaml"
        replace(broken, "version: 1\nallow: [127.0.0.300]\n")
        server.write(security={"policy_file": str(broken)}, limits={"max_stderr_bytes": 4096})
        response = await server.client.post("/admin/reload")
        assert response.status_code == 422
        assert response.headers["content-type"].startswith("application/problem+json")
        assert (response.json()["status"], response.json()["code"]) == (422, "config_invalid")
        assert "127.0.0.300" in response.json()["message"]
        running = (await server.running())["config"]
        assert running["limits"]["max_stderr_bytes"] == 262144
        assert running["security"]["policy_file"] == str(server.policy)


async def test_a_reload_request_returns_the_changed_keys_and_those_that_need_a_restart(tmp_path: Path) -> None:
    async with served(tmp_path, MCP_SERVER_WATCH_CONFIG="false") as server:
        server.write(
            server={"max_connections": 7, "answer_text": "full"},
            database={"url": "postgresql://scan:hunter2@127.0.0.1/x"},
            limits={"max_stderr_bytes": 4096},
        )
        response = (await server.client.post("/admin/reload")).json()
        assert (response["result"], response["by"]) == ("applied", "request")
        assert response["changed"] == ["server.answer_text", "limits.max_stderr_bytes"]
        assert response["restart_needed"] == [
            {"key": "server.max_connections", "running": 100, "configured": 7},
            {"key": "database.url", "running": None, "configured": "postgresql://scan:***@127.0.0.1/x"},
        ]
        running = await server.running()
        assert running["restart_needed"] == response["restart_needed"]
        assert running["config"]["server"]["max_connections"] == 100
        assert running["config"]["server"]["answer_text"] == "full"
        assert running["config"]["database"]["url"] is None
        assert str(running["config"]["server"]["port"]) in str(server.client.base_url), (
            "the option --port does not override the file"
        )
        assert "config.restart_needed" in server.log.read_text()

        bad = await server.client.post("/admin/reload", params={"now": "1"})
        assert (bad.status_code, bad.json()["code"]) == (422, "invalid_arguments")
        unknown_caller = httpx2.post(f"{server.client.base_url}/admin/reload")
        assert unknown_caller.status_code == 401
        assert len(server.reloads()) == 1
        (record,) = server.reloads()
        assert record["arguments"] == {
            "changed": ["server.answer_text", "limits.max_stderr_bytes"],
            "restart_needed": ["server.max_connections", "database.url"],
        }
        assert (record["actor"], record["interface"]) == ("token", "rest")


async def test_watching_can_be_switched_off_and_on(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        server.write(server={"watch_config": False})

        async def off() -> bool:
            return not (await server.running())["config"]["server"]["watch_config"]

        await until(off)
        server.allow("127.0.0.2")
        await asyncio.sleep(1.5)  # six times as long as it takes to find a change
        assert not await server.allowed("127.0.0.2")
        os.kill(server.pid, signal.SIGHUP)
        await until(lambda: server.allowed("127.0.0.2"))
        assert server.reloads()[-1]["interface"] == "signal"
        server.write()
        assert (await server.client.post("/admin/reload")).json()["changed"] == ["server.watch_config"]
        server.allow("127.0.0.3")
        await until(lambda: server.allowed("127.0.0.3"))


async def test_a_running_call_keeps_the_settings_of_its_start(tmp_path: Path) -> None:
    site = make_site_tools(tmp_path / "site")
    sections = {"security": {"timeout_seconds": 5}}
    async with served(tmp_path, sections=sections, MCP_SERVER_WATCH_CONFIG="false", **site.env) as server:
        body = {"target": "127.0.0.1", "extra_args": "--do sleep"}
        call = asyncio.create_task(server.client.post("/tools/probe/execute", json=body))

        async def started() -> bool:
            return bool((await server.client.get("/runs")).json()["runs"])

        await until(started)
        server.allow("127.0.0.2")
        server.write(security={"timeout_seconds": 1}, tool={"exclude_patterns": ["probe"]})
        assert (await server.client.post("/admin/reload")).status_code == 200
        response = await call
        assert response.status_code == 504
        result = response.json()["result"]
        assert result["execution_time"] > 4, "the call ended at the new timeout"
        assert result["timed_out"]
        gone = await server.client.post("/tools/probe/execute", json=body)
        assert (gone.status_code, gone.json()["code"]) == (404, "unknown_tool")
        single = await server.client.post("/tools/single/execute", json=body | {"target": "127.0.0.2"})
        assert single.json()["result"]["execution_time"] < 4
        outside = await server.client.post("/tools/single/execute", json=body)
        assert outside.json()["code"] == "target_out_of_scope"


async def test_a_reload_changes_the_log_and_keeps_it_if_the_new_one_cannot_be_opened(tmp_path: Path) -> None:
    async with served(tmp_path, MCP_SERVER_WATCH_CONFIG="false") as server:
        before = server.log.read_text()
        server.write(logging={"level": "ERROR", "file_path": str(tmp_path / "own.log")})
        assert (await server.client.post("/admin/reload")).status_code == 200
        assert "config.reloaded" not in server.log.read_text().removeprefix(before)
        server.write(logging={"level": "INFO", "format": "console", "file_path": f"{server.config}/none.log"})
        refused = await server.client.post("/admin/reload")
        assert (refused.status_code, refused.json()["code"]) == (503, "permission_denied")
        kept = (tmp_path / "own.log").read_text()
        assert "config.not_reloaded" in kept
        assert json.loads(kept.splitlines()[-1])["level"] == "error", "the log has changed its format or file"


async def test_simultaneous_reload_requests_are_served_one_after_the_other(tmp_path: Path) -> None:
    async with served(tmp_path) as server:

        async def ask(number: int) -> int:
            server.write(limits={"max_stderr_bytes": 2000 + number})
            return (await server.client.post("/admin/reload")).status_code

        assert await asyncio.gather(*map(ask, range(12))) == [200] * 12

        async def settled() -> bool:
            wanted = json.loads(server.config.read_text())["limits"]["max_stderr_bytes"]
            return bool((await server.running())["config"]["limits"]["max_stderr_bytes"] == wanted)

        await until(settled)
        policies = [each for each in log_records(tmp_path / "state") if each["event"] == "policy"]
        assert len(policies) == 1, "an unchanged policy was logged again"


async def test_without_an_audit_log_nothing_is_reloaded(tmp_path: Path) -> None:
    async with served(tmp_path, MCP_SERVER_WATCH_CONFIG="false") as server:
        log = tmp_path / "state" / "audit.jsonl"
        log.rename(tmp_path / "taken.jsonl")
        log.mkdir()
        server.write(limits={"max_stderr_bytes": 4096})
        response = await server.client.post("/admin/reload")
        assert response.json()["code"] in {"audit_unavailable", "audit_broken"}
        assert (await server.running())["config"]["limits"]["max_stderr_bytes"] == 262144
        log.rmdir()
        (tmp_path / "taken.jsonl").rename(log)
        assert (await server.client.post("/admin/reload")).json()["changed"] == ["limits.max_stderr_bytes"]


async def test_a_change_during_the_start_is_not_lost(tmp_path: Path) -> None:
    async with served(tmp_path) as server:  # watching begins a second after the start
        server.allow("127.0.0.9")
        await until(lambda: server.allowed("127.0.0.9"))


async def test_a_pipe_instead_of_the_configuration_file_does_not_block_the_server(tmp_path: Path) -> None:
    async with served(tmp_path, MCP_SERVER_WATCH_CONFIG="false") as server:
        server.config.unlink()
        os.mkfifo(server.config)
        response = await server.client.post("/admin/reload", timeout=WAIT_SEC)
        assert (response.status_code, response.json()["message"]) == (
            422,
            f"The configuration file {server.config} is not a regular file.",
        )
        server.config.unlink()
        server.write(limits={"max_stderr_bytes": 4096})
        assert (await server.client.post("/admin/reload")).json()["changed"] == ["limits.max_stderr_bytes"]


async def test_a_hangup_signal_during_the_start_does_not_end_the_server(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")
    command = [sys.executable, "-P", "-m", "mcp_server", "serve", "--transport", "http", "--port", str(free_port())]
    env = environment(tmp_path / "state", MCP_CONFIG_FILE=str(config))
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(WAIT_SEC):
            while not hangup(process.pid, "SigIgn"):  # before that, Python itself starts
                assert process.poll() is None, "the server ended"
                await asyncio.sleep(0.002)
            sent = 0
            while not hangup(process.pid, "SigCgt"):
                process.send_signal(signal.SIGHUP)
                sent += 1
                await asyncio.sleep(0.002)
            assert sent, "no signal was sent during the start"
            line = b""
            while b"Listening on" not in line:
                line = await asyncio.to_thread(process.stderr.readline)
                assert line, "the server ended"
    finally:
        process.terminate()
        with process.stderr:
            process.wait(15)
    assert process.returncode == 0


def hangup(pid: int, mask: str) -> bool:
    """Return whether SIGHUP is in a mask of /proc/PID/status (proc(5))."""
    found = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(found[mask], 16) >> (signal.SIGHUP - 1) & 1)
