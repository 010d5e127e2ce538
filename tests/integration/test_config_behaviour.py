"""A changed key changes what the server does. Every key has at least one test."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest

from mcp_server.config import load_config
from mcp_server.config.keys import keys
from mcp_server.errors import (
    AccessError,
    ArgumentError,
    BusyError,
    ConfigError,
    NotFoundError,
    PlatformError,
    TargetError,
)
from mcp_server.health import HealthStatus
from mcp_server.identity.local_token import load_or_create_token
from mcp_server.model.access import FULL_ACCESS
from mcp_server.model.run import Actor
from mcp_server.pipeline.respond import CallResult
from mcp_server.sandbox.binaries import invalidate_command_cache
from mcp_server.server import EnhancedMCPServer
from mcp_server.server.applying import apply
from tests.support.interfaces import environment, free_port, http_server, open_interfaces
from tests.support.site_tools import SiteTools, make_site_tools

ACTOR = Actor("tester", "test", access=FULL_ACCESS)
TESTED: set[str] = set()
T = TypeVar("T", bound=Callable[..., Any])


def changes(*keys: str) -> Callable[[T], T]:
    """Record the keys that a test covers."""
    TESTED.update(keys)
    return lambda test: test


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteTools:
    tools = make_site_tools(tmp_path / "site")
    monkeypatch.syspath_prepend(tools.folder)
    monkeypatch.setenv("PATH", tools.env["PATH"])
    invalidate_command_cache()
    return tools


@asynccontextmanager
async def serving(tmp_path: Path, site: SiteTools | None = None, **env: str) -> AsyncIterator[EnhancedMCPServer]:
    extra = {"TOOLS_PACKAGE": site.package} if site else {}
    server = EnhancedMCPServer(load_config(env=environment(tmp_path / "state", **extra, **env)))
    try:
        yield server
    finally:
        await server.cleanup()


async def probe(server: EnhancedMCPServer, what: str, tool: str = "probe", **more: Any) -> CallResult:
    return await server.pipeline.call(tool, {"target": "127.0.0.1", "extra_args": f"--do {what}"} | more, ACTOR)


@changes("state_dir")
async def test_all_state_is_in_the_state_folder(tmp_path: Path, site: SiteTools) -> None:
    async with serving(tmp_path, site) as server:
        await probe(server, "nothing")
    found = {path.name for path in (tmp_path / "state").iterdir()}
    assert {"audit.jsonl", "raw", "store.db"} <= found
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


@changes("server.host", "server.port", "server.transport")
async def test_transport_host_and_port(tmp_path: Path) -> None:
    port = free_port()
    settings = {"MCP_SERVER_TRANSPORT": "http", "MCP_SERVER_HOST": "127.0.0.2", "MCP_SERVER_PORT": str(port)}
    env = environment(tmp_path / "state", **settings)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mcp_server.server", env=env, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr
        async with asyncio.timeout(30):
            while f"http://127.0.0.2:{port}" not in (line := (await process.stderr.readline()).decode()):
                assert line, "the server ended"
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"http://127.0.0.1:{port}/")
        assert httpx2.get(f"http://127.0.0.2:{port}/").status_code in {401, 403}
    finally:
        process.terminate()
        await process.communicate()


@changes("server.shutdown_grace_period")
@pytest.mark.parametrize(("grace", "finishes"), [("0", False), ("20", True)])
async def test_running_calls_may_finish_within_the_grace_period(
    tmp_path: Path, site: SiteTools, grace: str, finishes: bool
) -> None:
    env = environment(tmp_path / "state", **site.env, MCP_SERVER_SHUTDOWN_GRACE_PERIOD=grace)
    with http_server(env) as (base, token, process):
        async with httpx2.AsyncClient(
            base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=60
        ) as client:
            body = {"target": "127.0.0.1", "extra_args": "--do sleep", "timeout_sec": 4}
            call = asyncio.create_task(client.post("/tools/probe/execute", json=body))
            async with asyncio.timeout(20):
                while not json.loads((await client.get("/runs")).text)["runs"]:
                    await asyncio.sleep(0.1)
            process.terminate()
            try:
                answered = (await call).status_code == 504
            except httpx2.HTTPError:
                answered = False
        assert await asyncio.to_thread(process.wait, 20) == 0
    assert answered is finishes


@changes("server.auth", "server.allowed_hosts", "server.allowed_origins")
def test_hosts_and_origins_are_checked(tmp_path: Path) -> None:
    env = environment(
        tmp_path / "state",
        MCP_SERVER_AUTH="none",
        MCP_SERVER_ALLOWED_HOSTS="scanner.lab.internal",
        MCP_SERVER_ALLOWED_ORIGINS="https://console.lab.internal",
    )
    with http_server(env) as (base, token, _):
        assert token == ""
        named = {"Host": "scanner.lab.internal"}
        assert httpx2.get(f"{base}/tools", headers=named).status_code == 200
        assert (
            httpx2.get(f"{base}/tools", headers=named | {"Origin": "https://console.lab.internal"}).status_code == 200
        )
        assert httpx2.get(f"{base}/tools", headers=named | {"Origin": "https://evil.example"}).status_code == 403
        assert httpx2.get(f"{base}/tools", headers={"Host": "other.lab.internal"}).status_code == 403
    with http_server(environment(tmp_path / "closed-state")) as (base, token, _):
        assert httpx2.get(f"{base}/tools").status_code == 401
        assert httpx2.get(f"{base}/tools", headers={"Authorization": f"Bearer {token}"}).status_code == 200


@changes("auth.local_token")
def test_the_local_token_can_be_switched_off(tmp_path: Path) -> None:
    state = tmp_path / "state"
    load_or_create_token(state)
    with http_server(environment(state, MCP_AUTH_LOCAL_TOKEN="false")) as (base, token, _):
        assert httpx2.get(f"{base}/tools", headers={"Authorization": f"Bearer {token}"}).status_code == 401
        assert "auth.nobody" in (tmp_path / f"server-{base.rpartition(':')[2]}.log").read_text()


@changes("server.max_connections")
async def test_requests_over_the_limit_are_refused(tmp_path: Path, site: SiteTools) -> None:
    env = environment(tmp_path / "state", **site.env, MCP_SERVER_MAX_CONNECTIONS="2")
    with http_server(env) as (base, token, _):
        async with httpx2.AsyncClient(
            base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=60
        ) as client:
            body = {"target": "127.0.0.1", "extra_args": "--do sleep", "timeout_sec": 60}
            slow = [asyncio.create_task(client.post("/tools/probe/execute", json=body)) for _ in range(2)]
            async with asyncio.timeout(20):
                log = tmp_path / "state" / "audit.jsonl"  # a request to the server would count itself
                while not log.exists() or log.read_text().count('"accept"') < 2:
                    await asyncio.sleep(0.05)
            refused = await client.get("/tools")
            assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
            assert httpx2.get(f"{base}/tools").status_code == 401, "an unauthenticated request must not count"
            for call in slow:
                call.cancel()


@changes("server.answer_text")
async def test_the_full_text_has_every_line(tmp_path: Path) -> None:
    port = free_port()
    listening = [await asyncio.start_server(lambda _r, w: w.close(), f"127.0.0.{n}", port) for n in range(1, 25)]
    texts = {}
    for style in ("short", "full"):
        async with open_interfaces(tmp_path / f"{style}-state", MCP_SERVER_ANSWER_TEXT=style) as interfaces:
            arguments = {"target": "127.0.0.0/27", "mode": "ports", "ports": str(port)}
            texts[style] = (await interfaces.call("stdio", "nmap", arguments)).text
    for server in listening:
        server.close()
    assert "127.0.0.24" not in texts["short"]
    assert f"127.0.0.24 {port}/tcp" in texts["full"]


@changes("security.allowed_targets")
async def test_the_scope_is_what_the_operator_lists(tmp_path: Path, site: SiteTools) -> None:
    async with serving(tmp_path, site, MCP_SECURITY_ALLOWED_TARGETS="127.0.0.0/30") as server:
        assert (await probe(server, "nothing")).error is None
        with pytest.raises(TargetError):
            await server.pipeline.call("probe", {"target": "10.0.0.1"}, ACTOR)


@changes("security.max_args_length", "limits.max_args_len")
@pytest.mark.parametrize("name", ["MCP_SECURITY_MAX_ARGS_LENGTH", "MCP_LIMITS_MAX_ARGS_LEN", "MCP_MAX_ARGS_LEN"])
async def test_long_arguments_are_refused(tmp_path: Path, site: SiteTools, name: str) -> None:
    async with serving(tmp_path, site, **{name: "8"}) as server:
        with pytest.raises(ArgumentError) as caught:
            await probe(server, "nothing")
        assert caught.value.code == "arguments_too_long"


@changes("security.max_output_size", "limits.max_stdout_bytes")
@pytest.mark.parametrize("name", ["MCP_SECURITY_MAX_OUTPUT_SIZE", "MCP_MAX_STDOUT_BYTES"])
async def test_standard_output_is_cut_in_the_result_and_complete_in_the_record(
    tmp_path: Path, site: SiteTools, name: str
) -> None:
    async with serving(tmp_path, site, **{name: "2048"}) as server:
        answer = await probe(server, "out")
        assert (len(answer.stdout), answer.truncated_stdout, answer.error) == (2048, True, None)
        assert answer.run.raw is not None
        assert answer.run.raw.size == 300_000


@changes("limits.max_stderr_bytes")
async def test_standard_error_is_cut(tmp_path: Path, site: SiteTools) -> None:
    async with serving(tmp_path, site, MCP_MAX_STDERR_BYTES="1024") as server:
        answer = await probe(server, "err")
        assert answer.truncated_stderr
        assert len(answer.run.stderr) == 1024


@changes("limits.max_raw_bytes")
async def test_raw_output_has_a_limit(tmp_path: Path, site: SiteTools) -> None:
    async with serving(tmp_path, site, MCP_MAX_RAW_BYTES=str(1 << 20)) as server:
        answer = await probe(server, "huge")
        assert answer.error is not None
        assert answer.error.code == "output_exceeded"
        assert answer.run.raw is not None
        assert answer.run.raw.size <= 1 << 20


@changes("security.timeout_seconds", "tool.default_timeout", "limits.default_timeout_sec")
@pytest.mark.parametrize(
    "name", ["MCP_SECURITY_TIMEOUT_SECONDS", "MCP_TOOL_DEFAULT_TIMEOUT", "MCP_DEFAULT_TIMEOUT_SEC"]
)
async def test_a_run_ends_at_its_time_limit(tmp_path: Path, site: SiteTools, name: str) -> None:
    async with serving(tmp_path, site, **{name: "1"}) as server:
        answer = await probe(server, "sleep")
        assert answer.timed_out
        assert answer.run.returncode == 124
        assert answer.seconds < 30


@changes("security.concurrency_limit", "tool.default_concurrency", "limits.default_concurrency")
@pytest.mark.parametrize(
    "name", ["MCP_SECURITY_CONCURRENCY_LIMIT", "MCP_TOOL_DEFAULT_CONCURRENCY", "MCP_DEFAULT_CONCURRENCY"]
)
async def test_the_number_of_concurrent_runs_is_limited(tmp_path: Path, site: SiteTools, name: str) -> None:
    for limit, expected in (("1", 1), ("3", 3)):
        async with serving(tmp_path / limit, site, **{name: limit}) as server:
            calls = [asyncio.create_task(probe(server, "sleep", timeout_sec=2)) for _ in range(4)]
            store = await server.pipeline.open_store()
            await asyncio.sleep(1)
            assert (await store.list_runs()).total == expected
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)


@changes("security.allow_intrusive")
async def test_intrusive_calls_need_the_setting(tmp_path: Path) -> None:
    arguments = {"target": "127.0.0.1", "ports": "9", "timing": 5}
    async with serving(tmp_path) as server:
        with pytest.raises(AccessError) as caught:
            await server.pipeline.plan("nmap", arguments, ACTOR)
        assert caught.value.code == "intrusive_not_allowed"
    async with serving(tmp_path, MCP_SECURITY_ALLOW_INTRUSIVE="true") as server:
        assert "-T5" in (await server.pipeline.plan("nmap", arguments, ACTOR)).plan.argv


@changes("limits.max_memory_mb", "limits.max_file_descriptors")
async def test_memory_and_descriptors_of_a_process_are_limited(tmp_path: Path, site: SiteTools) -> None:
    async with serving(tmp_path, site, MCP_MAX_MEMORY_MB="200", MCP_MAX_FILE_DESCRIPTORS="77") as server:
        assert (await probe(server, "limits")).stdout.strip() == f"as={200 * 1024} nofile=77 core=0"


@changes("tool.include_patterns", "tool.exclude_patterns", "tool.packages")
async def test_patterns_select_the_tools(tmp_path: Path, site: SiteTools) -> None:
    async with serving(tmp_path, site) as server:
        assert list(server.pipeline.current.value.registry.programs) == ["nmap", "probe", "single"]
    async with serving(tmp_path, site, TOOL_INCLUDE="n*,probe") as server:
        assert list(server.pipeline.current.value.registry.programs) == ["nmap", "probe"]
    async with serving(tmp_path, site, TOOL_EXCLUDE="nmap") as server:
        with pytest.raises(NotFoundError):
            server.pipeline.current.value.registry.get("nmap")


@changes("logging.level", "logging.format", "logging.file_path", "logging.max_file_size", "logging.backup_count")
def test_logs_are_written_as_configured(tmp_path: Path) -> None:
    script = (
        "import logging; from mcp_server.config import get_config\n"
        "from mcp_server.observability.logs import configure_logging\n"
        "configure_logging(get_config().logging)\n"
        "for n in range(200): logging.getLogger('x').warning('line %d', n)\n"
        "logging.getLogger('x').debug('fine')"
    )

    def run(**env: str) -> str:
        settings = environment(tmp_path / "state", **env)
        done = subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, text=True, check=True)
        assert done.stdout == ""
        return done.stderr

    assert json.loads(run().splitlines()[0])["event"] == "line 0"
    assert not run(LOG_FORMAT="console").startswith("{")
    assert run(LOG_LEVEL="ERROR") == ""
    assert "fine" in run(LOG_LEVEL="DEBUG")
    log = tmp_path / "logs" / "server.log"
    run(MCP_LOGGING_FILE_PATH=str(log), MCP_LOGGING_MAX_FILE_SIZE="2048", MCP_LOGGING_BACKUP_COUNT="2")
    files = sorted(path.name for path in log.parent.iterdir())
    assert files == ["server.log", "server.log.1", "server.log.2"]
    assert all(path.stat().st_size <= 2048 for path in log.parent.iterdir())


@changes("database.url")
async def test_the_configured_database_is_used(tmp_path: Path, site: SiteTools) -> None:
    async with serving(tmp_path, site, MCP_DATABASE_URL=f"sqlite:///{tmp_path}/elsewhere.db") as server:
        await probe(server, "nothing")
    assert (tmp_path / "elsewhere.db").exists()
    assert not (tmp_path / "state" / "store.db").exists()
    with pytest.raises(ConfigError):
        load_config(env=environment(tmp_path, MCP_DATABASE_URL="mysql://x"))


@changes("security.policy_file")
async def test_a_policy_file_defines_the_scope(tmp_path: Path, site: SiteTools) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nallow: [127.0.0.1]\nexclude: [127.0.0.2]\n")
    policy.chmod(0o600)
    env = environment(tmp_path / "state", TOOLS_PACKAGE=site.package, MCP_SECURITY_POLICY_FILE=str(policy))
    with pytest.raises(ConfigError, match=r"both set"):
        EnhancedMCPServer(load_config(env=env))
    del env["MCP_SECURITY_ALLOWED_TARGETS"]
    server = EnhancedMCPServer(load_config(env=env))
    try:
        assert (await probe(server, "nothing")).error is None
        with pytest.raises(TargetError):
            await probe(server, "nothing", target="127.0.0.2")
        policy.write_text("version: 1\nallow: [127.0.0.2]\n")
        assert (await probe(server, "nothing")).error is None, "only a reload may apply a change"
        await apply(server.pipeline, load_config(env=env))
        with pytest.raises(TargetError):
            await probe(server, "nothing")
        policy.write_text("version: 1\nallow: [127.0.0.1\n")
        with pytest.raises(ConfigError):
            await apply(server.pipeline, load_config(env=env))
        assert (await probe(server, "nothing", target="127.0.0.2")).error is None, "a wrong file must change nothing"
    finally:
        await server.cleanup()


@changes("security.guard", "security.require_enforcement")
def test_a_server_below_the_required_enforcement_does_not_start(tmp_path: Path) -> None:
    def start(**env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mcp_server", "serve"]
        settings = environment(tmp_path / "state", **env)
        return subprocess.run(command, env=settings, input="", capture_output=True, text=True, check=False)

    assert start().returncode == 0
    weak = start(MCP_SECURITY_REQUIRE_ENFORCEMENT="kernel")
    assert (weak.returncode, weak.stdout) == (9, "")
    assert "enforcement_too_weak" in weak.stderr
    assert "serve --guard kernel" in weak.stderr
    called = subprocess.run(
        [sys.executable, "-m", "mcp_server", "call", "nmap", "target=127.0.0.1", "--json"],
        env=environment(tmp_path / "state", MCP_SECURITY_REQUIRE_ENFORCEMENT="kernel"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(called.stdout)["error"]["code"] == "enforcement_too_weak"


@changes("security.allowed_checksums")
async def test_the_operator_can_accept_another_version_of_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / "prefix"
    shutil.copytree("/usr/share/nmap", prefix / "share" / "nmap")
    (prefix / "bin").mkdir()
    shutil.copy(shutil.which("nmap") or "", prefix / "bin" / "nmap")
    script = prefix / "share" / "nmap" / "scripts" / "http-title.nse"
    script.write_text(script.read_text() + "\n-- changed\n")
    monkeypatch.setenv("PATH", f"{prefix}/bin:/usr/bin:/bin")
    invalidate_command_cache()
    arguments = {"target": "127.0.0.1", "ports": "9", "mode": "scripts", "scripts": ["http-title"]}
    async with serving(tmp_path) as server:
        with pytest.raises(PlatformError) as caught:
            await server.pipeline.plan("nmap", arguments, ACTOR)
        assert caught.value.code == "binary_changed"
    sums = tmp_path / "sums"
    sums.write_text(f"{hashlib.sha256(script.read_bytes()).hexdigest()}  scripts/http-title.nse\n")
    async with serving(tmp_path, MCP_SECURITY_ALLOWED_CHECKSUMS=str(sums)) as server:
        assert "http-title" in (await server.pipeline.plan("nmap", arguments, ACTOR)).plan.argv
    invalidate_command_cache()


@changes("audit.checkpoint_interval", "audit.ship_to", "audit.max_file_size")
async def test_the_audit_log_has_checkpoints_and_rotates_as_configured(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    settings = {
        "MCP_AUDIT_CHECKPOINT_INTERVAL": "1",
        "MCP_AUDIT_SHIP_TO": str(elsewhere),
        "MCP_AUDIT_MAX_FILE_SIZE": str(64 * 1024),
    }
    async with serving(tmp_path, None, **settings) as server:
        await server.pipeline.audit.start()
        for _ in range(8):
            await server.pipeline.audit.append("test", text="x" * 10_000)
        async with asyncio.timeout(20):
            while not elsewhere.exists():
                await asyncio.sleep(0.1)
        assert len(list((tmp_path / "state").glob("audit*.jsonl"))) == 2


@changes("rate_limit.calls_per_minute", "rate_limit.total_calls_per_minute")
@pytest.mark.parametrize("name", ["MCP_RATE_LIMIT_CALLS_PER_MINUTE", "MCP_RATE_LIMIT_TOTAL_CALLS_PER_MINUTE"])
async def test_calls_per_minute_are_limited(tmp_path: Path, site: SiteTools, name: str) -> None:
    async with serving(tmp_path, site, **{name: "2"}) as server:
        for _ in range(2):
            await probe(server, "nothing")
        with pytest.raises(BusyError) as caught:
            await probe(server, "nothing")
        assert caught.value.code == "rate_limited"
        assert caught.value.details["retry_after"] >= 1


@changes("admission.max_running", "admission.per_actor", "admission.per_host", "admission.max_waiting")
@pytest.mark.parametrize("name", ["MAX_RUNNING", "PER_ACTOR", "PER_HOST"])
async def test_calls_wait_in_the_queue_or_are_refused(tmp_path: Path, site: SiteTools, name: str) -> None:
    caps = {f"MCP_ADMISSION_{name}": "1", "MCP_ADMISSION_MAX_WAITING": "1"}
    async with serving(tmp_path, site, **caps) as server:
        calls = [asyncio.create_task(probe(server, "sleep", timeout_sec=30)) for _ in range(3)]
        async with asyncio.timeout(20):
            while not any(call.done() for call in calls):
                await asyncio.sleep(0.05)
        (refused,) = [call for call in calls if call.done()]
        with pytest.raises(BusyError) as caught:
            await refused
        assert caught.value.code == "too_many_requests"
        load = server.pipeline.admission.load("probe")
        assert (load.running, load.waiting) == (1, 1)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


@changes("circuit_breaker.failure_threshold", "circuit_breaker.recovery_timeout")
@changes("circuit_breaker.half_open_success_threshold")
async def test_a_failing_tool_is_not_called_for_a_while(tmp_path: Path, site: SiteTools) -> None:
    keys = {"FAILURE_THRESHOLD": "2", "RECOVERY_TIMEOUT": "1", "HALF_OPEN_SUCCESS_THRESHOLD": "2"}
    settings = {f"MCP_CIRCUIT_BREAKER_{key}": value for key, value in keys.items()}
    async with serving(tmp_path, site, **settings) as server:
        breaker = server.pipeline.breakers.of("probe")
        states = [breaker.state.value]
        for what in ("fail", "fail", "nothing", "nothing"):
            if breaker.state.value == "open":
                with pytest.raises(BusyError):
                    await probe(server, what)
                await asyncio.sleep(1.2)  # recovery_timeout and its jitter
            await probe(server, what)
            states.append(breaker.state.value)
        assert states == ["closed", "closed", "open", "half_open", "closed"]


@changes("health.cpu_threshold", "health.memory_threshold", "health.disk_threshold", "health.dependencies")
async def test_health_thresholds_are_configured(tmp_path: Path) -> None:
    strict = {f"MCP_HEALTH_{key}_THRESHOLD": "0" for key in ("MEMORY", "DISK")}
    async with serving(tmp_path, None, MCP_HEALTH_DEPENDENCIES="json,no_such_module_here", **strict) as server:
        found = {result.name: result for result in (await server.services.health().check()).results}
        unwell = {name for name, result in found.items() if result.status is not HealthStatus.HEALTHY}
        assert {"memory", "disk"} <= unwell
        assert any("no_such_module_here" in str(result) for name, result in found.items() if name in unwell)
    lax = {f"MCP_HEALTH_{key}_THRESHOLD": "100" for key in ("CPU", "MEMORY", "DISK")}
    async with serving(tmp_path / "lax", None, MCP_HEALTH_DEPENDENCIES="json", **lax) as server:
        found = {result.name: result for result in (await server.services.health().check()).results}
        assert {name for name in ("cpu", "memory", "disk") if found[name].status is not HealthStatus.HEALTHY} == set()


def test_every_key_has_a_test() -> None:
    elsewhere = {
        # what a reload does: tests/integration/test_reload.py
        "server.watch_config",
        # real certificates: tests/integration/test_tls.py
        "server.tls_cert",
        "server.tls_key",
        "server.tls_client_ca",
        # forged and valid tokens: tests/unit/test_access_tokens.py; a real issuer: tests/integration/test_identity.py
        "auth.issuer",
        "auth.audience",
        "auth.jwks_url",
        "auth.jwks_file",
        "auth.algorithms",
        "auth.clock_skew_sec",
        "auth.role_claim",
        "auth.default_role",
        # tests/integration/test_authorization_bounds.py
        "auth.actors_file",
        # tests/unit/test_lockout.py, and over HTTP tests/integration/test_identity.py
        "auth.lockout_failures",
        "auth.lockout_sec",
        # a real Redis: tests/integration/test_rate_limit_redis.py
        "rate_limit.storage_url",
        # how often, and for how long at most: tests/unit/test_health.py
        "health.check_interval",
        "health.timeout",
        # the page and the sampler: tests/integration/test_metrics_*.py
        "metrics.enabled",
        "metrics.prometheus_enabled",
        "metrics.prometheus_port",
        "metrics.collection_interval",
        # a real collector: tests/integration/test_tracing_interfaces.py
        "tracing.endpoint",
        "tracing.sample_ratio",
        # the network namespace: tests/integration/test_guard_helper_*.py
        "guard.user",
        "guard.loopback_user",
        "guard.mode",
        "guard.uplink",
        "guard.addresses",
        "guard.gateways",
        "guard.link_network",
        # the Postgres pool: tests/integration/test_store_pool.py
        "database.pool_size",
        "database.max_overflow",
        "database.pool_timeout",
        "database.pool_recycle",
    }
    read = {key.dotted for key in keys().values()}
    assert read - TESTED - elsewhere == set()
    assert read >= TESTED
