"""The health checks one by one, each on a host with its problem and without it."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mcp_server.audit import AuditLog
from mcp_server.base_tool import MCPBaseTool
from mcp_server.config import load_config
from mcp_server.errors import PlatformError
from mcp_server.health import HealthCheckPriority, HealthStatus, LoopLag
from mcp_server.limits.admission import Load
from mcp_server.limits.circuit_breaker import BreakerView, State
from mcp_server.netguard import GuardReading
from mcp_server.netguard.client import ArgumentGuard
from mcp_server.server import startup
from mcp_server.server.checks import host, load, service, versions
from mcp_server.server.checks.callers import ActorsCheck
from mcp_server.server.checks.host import CpuCheck, CpuTimes, MemoryUse, ProcessCheck, ProcessUse
from mcp_server.tools.registry import LeftOut, ToolRegistry
from tests.support.metrics import counting, sample, series

HEALTHY, DEGRADED, UNHEALTHY = HealthStatus


class Host:
    """A host whose clock and processor times the test sets."""

    def __init__(self, processors: int = 2) -> None:
        self.now = self.busy = self.total = 0.0
        self.processors = processors

    def spend(self, seconds: float, share: float) -> None:
        """Let time pass while ``share`` of all processors is in use."""
        self.now += seconds
        self.total += seconds * self.processors
        self.busy += seconds * self.processors * share

    def check(self) -> CpuCheck:
        return CpuCheck(lambda: CpuTimes(self.busy, self.total), lambda: self.now)


def test_one_busy_second_does_not_degrade_the_cpu_check() -> None:
    host_ = Host()
    check = host_.check()
    assert check(80).status is HEALTHY
    host_.spend(1, 1.0)
    assert check(80).status is HEALTHY, "one second is too short to judge"
    host_.spend(29, 0.1)
    assert check(80).status is HEALTHY
    for _ in range(5):
        host_.spend(29, 0.1)
        check(80)
        host_.spend(1, 1.0)
        assert check(80).status is HEALTHY, "one busy second in thirty must not degrade"


def test_a_busy_minute_degrades_the_cpu_check_and_an_idle_minute_restores_it() -> None:
    host_ = Host()
    check = host_.check()
    check(80)
    for _ in range(3):
        host_.spend(30, 0.95)
        found = check(80)
    assert (found.status, found.detail.partition(",")[0]) == (DEGRADED, "95 % in use over 60 s")
    assert "health.cpu_threshold is 80 %" in found.detail
    for _ in range(2):
        host_.spend(30, 0.05)
        found = check(80)
    assert (found.status, found.detail.partition(",")[0]) == (HEALTHY, "5 % in use over 60 s")


@pytest.mark.parametrize("interval", [5, 30, 300])
def test_use_is_measured_over_a_minute_or_one_interval(interval: int) -> None:
    host_ = Host()
    check = host_.check()
    for _ in range(100):
        host_.spend(interval, 0.5)
        found = check(80)
    assert f"50 % in use over {max(60, interval)} s" in found.detail


def test_values_of_this_host_are_plausible() -> None:
    before = host.read_cpu()
    sum(range(2_000_000))
    after = host.read_cpu()
    assert 0 < before.busy <= after.busy <= after.total
    memory = host.read_memory()
    assert 0 < memory.used < memory.total
    use = host.read_process()
    assert use.descriptors >= 3
    assert use.most_descriptors == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert 10 * host.MIB < use.resident < memory.total


def test_memory_over_the_threshold_degrades() -> None:
    assert host.check_memory(80, lambda: MemoryUse(79, 100)).status is HEALTHY
    found = host.check_memory(80, lambda: MemoryUse(900 * host.MIB, 1000 * host.MIB, "control group"))
    assert (found.status, found.detail) == (
        DEGRADED, "90 % of 1000 MiB in use (control group); health.memory_threshold is 80 %",
    )  # fmt: skip


def make_group(folder: Path, limit: str, used: int, droppable: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {droppable}\n")


def test_the_fullest_control_group_with_a_limit_is_used(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("1:name=systemd:/x\n0::/system.slice/tools.service\n")
    assert host.read_cgroup(membership, tmp_path / "fs") is None
    make_group(tmp_path / "fs/system.slice/tools.service", "max", 300)
    assert host.read_cgroup(membership, tmp_path / "fs") is None, "a group without a limit must not be used"
    make_group(tmp_path / "fs/system.slice/tools.service", "1000", 700, droppable=500)
    make_group(tmp_path / "fs/system.slice", "1000", 900)
    found = host.read_cgroup(membership, tmp_path / "fs")
    assert found == MemoryUse(900, 1000, "control group")
    (tmp_path / "fs/system.slice/memory.max").write_text("max\n")
    assert host.read_cgroup(membership, tmp_path / "fs") == MemoryUse(200, 1000, "control group")
    membership.write_text("4:memory:/x\n")  # cgroup v1
    assert host.read_cgroup(membership, tmp_path / "fs") is None
    assert host.read_cgroup(tmp_path / "nowhere", tmp_path / "fs") is None


@pytest.mark.parametrize(
    ("use", "status"),
    [
        (ProcessUse(host.MIB, 80, 100, 5), HEALTHY),
        (ProcessUse(host.MIB, 81, 100, 5), DEGRADED),
        (ProcessUse(host.MIB, 5000, resource.RLIM_INFINITY, 5), HEALTHY),
    ],
)
async def test_a_process_that_is_short_of_descriptors_degrades(use: ProcessUse, status: HealthStatus) -> None:
    found = await ProcessCheck(LoopLag(), lambda: use)()
    assert found.status is status
    assert f"{use.descriptors} of " in found.detail
    assert "tasks" in found.detail


async def test_an_event_loop_with_a_long_lag_degrades(monkeypatch: pytest.MonkeyPatch) -> None:
    lag = LoopLag()
    times = iter([0.0, 0.0, 1.5, 1.5, 1.5])
    loop = SimpleNamespace(time=lambda: next(times), call_at=lambda _when, *_rest: SimpleNamespace(cancel=lambda: None))
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    lag.start()
    lag._tick(loop, 1.0)  # type: ignore[arg-type]  # due at 1.0, and it is 1.5
    monkeypatch.undo()
    assert (lag.mean, lag.longest) == (0.5, 0.5)
    found = await ProcessCheck(lag, lambda: ProcessUse(1, 1, 100, 1))()
    assert (found.status, found.works) == (DEGRADED, "everything, with delays")
    lag.stop()
    lag.stop()


def test_a_full_disk_degrades_and_a_missing_folder_fails(tmp_path: Path) -> None:
    assert service.check_disk(tmp_path, 100).status is HEALTHY
    found = service.check_disk(tmp_path, 0)
    assert found.status is DEGRADED
    assert "health.disk_threshold is 0 %" in found.detail
    missing = service.check_disk(tmp_path / "missing", 100)
    assert missing.status is UNHEALTHY
    assert missing.remedy.startswith("sudo mkdir -p")


@pytest.mark.parametrize(
    ("free", "status"),
    [(startup.MIN_FREE_BYTES - 1, UNHEALTHY), (startup.MIN_FREE_BYTES, DEGRADED), (service.LOW_DISK_BYTES, HEALTHY)],
)
def test_the_status_of_the_disk_depends_on_the_free_bytes(
    free: int, status: HealthStatus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=10**12, used=10**9, free=free)
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: usage)
    assert service.check_disk(tmp_path, 100).status is status


async def test_an_audit_log_that_can_be_written_is_healthy(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    assert service.check_audit(audit).status is HEALTHY, "a log that can be created must be healthy"
    await audit.append("test")
    assert service.check_audit(audit).status is HEALTHY
    audit.problem = "No checkpoint can be made."
    assert service.check_audit(audit).status is DEGRADED
    (tmp_path / "audit.jsonl").rename(tmp_path / "elsewhere.jsonl")
    (tmp_path / "audit.jsonl").mkdir()
    found = service.check_audit(audit)
    assert found.status is UNHEALTHY
    assert "cannot be written" in found.detail


async def test_an_audit_log_that_lost_records_fails(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    for _ in range(3):
        await audit.append("test")
    lines = (tmp_path / "audit.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "audit.jsonl").write_bytes(b"".join(lines[:2]))
    with pytest.raises(PlatformError) as caught:
        await audit.append("test")
    assert caught.value.code == "audit_broken"
    found = service.check_audit(audit)
    assert found.status is UNHEALTHY
    assert found.remedy.endswith("audit verify")


async def test_an_audit_log_that_can_be_opened_again_degrades(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    await audit.append("test")
    audit.unwritable = PlatformError("The audit log cannot be written: No space left on device.", code="disk_full")
    assert service.check_audit(audit).status is DEGRADED, "if the server were not ready, no call would try to write"
    await audit.append("test")
    assert service.check_audit(audit).status is HEALTHY


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_version_is_read_once_for_each_file(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    path = program(tmp_path / "bin/tool", f"echo x >> {runs}; echo tool 1.0; echo second line")
    assert versions.version_of(str(path), ()) == ""
    assert not runs.exists()
    for _ in range(3):
        assert versions.version_of(str(path), ("-V",)) == "tool 1.0"
    assert runs.read_text() == "x\n"
    program(path, "printf 'tool 2.0 \\033[31m'")
    assert versions.version_of(str(path), ("-V",)) == "tool 2.0 \\x1b[31m"


def test_a_program_that_does_not_run_raises_a_typed_error(tmp_path: Path) -> None:
    path = program(tmp_path / "bin/tool", "echo libpcap.so.1: cannot open shared object file; exit 127")
    with pytest.raises(PlatformError, match="ended with 127: libpcap") as caught:
        versions.version_of(str(path), ("-V",))
    assert caught.value.hint
    path.write_bytes(b"\x7fELF")
    with pytest.raises(PlatformError, match="cannot be run"):
        versions.version_of(str(path), ("-V",))


class FirstTool(MCPBaseTool):
    command_name = "health-first"
    version_args = ("--version",)


class SecondTool(MCPBaseTool):
    command_name = "health-second"


def test_each_tool_is_checked_and_the_last_one_is_critical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    left_out = (
        LeftOut("site.Broken", "it cannot be built: x", broken=True),
        LeftOut("site.BaseTool", "its name says scaffolding"),
    )
    registry = ToolRegistry({"first": FirstTool(), "second": SecondTool()}, left_out)
    first = program(tmp_path / "bin/health-first", "echo first 7.93")
    second = program(tmp_path / "bin/health-second", "exit 1")
    found = service.check_tools(registry)
    assert [(each.name, each.status, each.detail) for each in found] == [
        ("tool first", HEALTHY, f"{first}, first 7.93"),
        ("tool second", HEALTHY, str(second)),
        ("tool class site.Broken", DEGRADED, "it cannot be built: x"),
    ]
    program(first, "exit 3")
    broken = service.check_tools(registry)[0]
    assert (broken.status, broken.works, broken.priority) == (DEGRADED, "the tools second", None)
    second.unlink()
    for each in service.check_tools(registry)[:2]:
        assert (each.status, each.priority) == (UNHEALTHY, HealthCheckPriority.CRITICAL)
    off = service.check_tools(registry.with_disabled(["first", "second"]))[0]
    assert (off.status, off.priority) == (UNHEALTHY, HealthCheckPriority.CRITICAL)
    assert "/admin/tools/" in off.remedy
    none = service.check_tools(ToolRegistry({}))
    assert [each.remedy for each in none] == ["widen tool.include_patterns or tool.exclude_patterns"]


def test_the_policy_is_read_again_only_if_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nallow: [10.0.0.0/8]\n")
    policy.chmod(0o600)
    config = load_config(env={"MCP_SECURITY_POLICY_FILE": str(policy), "MCP_STATE_DIR": str(tmp_path)})
    read = 0
    real = type(config).scope_policy

    def counted(self: object) -> object:
        nonlocal read
        read += 1
        return real(config)

    monkeypatch.setattr(type(config), "scope_policy", counted)
    check, before = service.ScopeCheck(serving=True), service.ScopeCheck(serving=False)
    for _ in range(3):
        assert check(config).status is HEALTHY
    assert read == 1
    policy.write_text("version: 1\nallow: [10.0.0.1/8]\n")
    assert check(config).status is DEGRADED
    assert check(config).works == "calls, with the policy that was read before"
    assert before(config).status is UNHEALTHY
    policy.unlink()
    assert check(config).status is DEGRADED


def test_an_unusable_actors_file_is_reported_before_a_start(tmp_path: Path) -> None:
    actors = tmp_path / "actors.yaml"
    actors.write_text("version: 1\nactors: [{name: ci, key: [ci, ci-2]}]\n")
    actors.chmod(0o600)
    env = {"MCP_STATE_DIR": str(tmp_path)}
    config = load_config(env=env | {"MCP_AUTH_ACTORS_FILE": str(actors)})
    check, before = ActorsCheck(serving=True), ActorsCheck(serving=False)
    assert check(load_config(env=env)) == []
    assert [(each.name, each.status) for each in check(config)] == [("actors", HEALTHY)]
    assert "names 2 credentials; other callers may do nothing" in check(config)[0].detail
    actors.write_text("version: 1\nactors: [{name: ci, key: ci, rolle: admin}]\n")
    (found,) = check(config)
    assert (found.status, found.works) == (DEGRADED, "calls, within the limits that were read before")
    assert "line 2" in check(config)[0].detail
    assert [(each.status, each.works) for each in before(config)] == [(UNHEALTHY, "nothing starts")]
    actors.write_text("version: 1\nactors: []\nothers: {role: viewer}\n")
    assert "names 0 credentials; other callers are limited too" in check(config)[0].detail


def breaker(name: str, state: State, retry_after: int = 0, *, forced: bool = False) -> BreakerView:
    return BreakerView(name, state, forced=forced, failures=5, relapses=0, retry_after=retry_after)


def test_open_and_half_open_breakers_are_named() -> None:
    assert load.check_breakers(()).status is HEALTHY
    assert load.check_breakers((breaker("nmap", State.CLOSED),)).status is HEALTHY
    found = load.check_breakers(
        (breaker("dig", State.CLOSED), breaker("nmap", State.OPEN, 12), breaker("x", State.HALF_OPEN),
         breaker("y", State.OPEN, forced=True))
    )  # fmt: skip
    assert found.status is DEGRADED
    assert found.detail == ("nmap is open, next trial in 12 s; x is half-open; y is held open by an operator")


def test_a_full_queue_degrades() -> None:
    found = load.check_queue({"nmap": Load(2, 3), "dig": Load(1, 0)}, 4)
    assert (found.status, found.detail) == (HEALTHY, "3 running, 3 waiting")
    found = load.check_queue({"nmap": Load(2, 4), "dig": Load(1, 0)}, 4)
    assert found.status is DEGRADED
    assert "4 calls wait for each of nmap, and further calls are refused" in found.detail
    assert load.check_queue({"nmap": Load(2, 0)}, 0).status is HEALTHY, "without a queue nothing can be full"


class Guarded(ArgumentGuard):
    """A guard whose readings the test sets, because no kernel drops packets on demand."""

    def __init__(self) -> None:
        self.reading: GuardReading | None = GuardReading("sum", 1, 5, {"out-of-scope": 0})

    async def read(self) -> GuardReading | None:  # type: ignore[override]  # the test sets the reading
        if self.reading is None:
            raise PlatformError("the guard is gone", code="guard_unavailable")
        return self.reading


async def test_the_guard_check_counts_drops_and_failures_while_no_call_runs() -> None:
    def counted() -> tuple[float, float | None]:
        return sum(series("mcp_guard_drops_total", "rule").values()), sample("mcp_guard_failures_total")

    guard, config = Guarded(), load_config(env={})
    with counting():
        await service.check_guard(config, guard)
        assert counted() == (0, 0)
        guard.reading = GuardReading("sum", 1, 5, {"out-of-scope": 3})
        await service.check_guard(config, guard)
        assert counted() == (3, 0)
        guard.reading = None
        found = await service.check_guard(config, guard)
        assert (found.status, found.detail) == (UNHEALTHY, "the guard is gone")
        assert counted() == (3, 1)


async def test_the_engine_check_starts_a_program_and_reports_why_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = ArgumentGuard()
    try:
        found = await service.check_engine(guard)
        assert found.status is HEALTHY, found
        assert "(here)" in found.detail
        monkeypatch.setattr("shutil.which", lambda *_, **__: "/usr/bin/false")
        found = await service.check_engine(guard)
        assert (found.status, found.detail) == (UNHEALTHY, "/usr/bin/false ended with 1 (here): ")
        monkeypatch.setattr("shutil.which", lambda *_, **__: "/usr/bin/not-there")
        found = await service.check_engine(guard)
        assert (found.status, found.remedy) == (UNHEALTHY, service._REPAIR_ENGINE)
        monkeypatch.setattr("shutil.which", lambda *_, **__: None)
        assert "not tested" in (await service.check_engine(guard)).detail
        monkeypatch.undo()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (os.open("/dev/null", os.O_RDONLY), hard))
        try:
            found = await service.check_engine(guard)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert found.status is DEGRADED, "a shortage of descriptors is temporary"
    finally:
        guard.close()


def test_a_rate_limiter_without_its_storage_degrades() -> None:
    assert load.check_rate_limit(None).status is HEALTHY
    assert load.check_rate_limit("redis is down").detail == "redis is down"
    assert load.check_rate_limit("redis is down").status is DEGRADED


def test_every_named_module_must_be_importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load.check_dependencies(())[0].status is HEALTHY
    assert load.check_dependencies(("json", "xml.dom"))[0].status is HEALTHY
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "health_breaks.py").write_text("raise RuntimeError('no \\x1b license')\n")
    found = load.check_dependencies(("json", "health_missing", "health_breaks"))
    assert [each.name for each in found] == ["dependency health_missing", "dependency health_breaks"]
    assert all(each.status is UNHEALTHY for each in found), "each missing module must be unhealthy by itself"
    assert found[1].detail == "health_breaks cannot be imported: RuntimeError: no \\x1b license"
    (tmp_path / "health_missing.py").write_text("")
    (tmp_path / "health_breaks.py").unlink()
    assert [each.name for each in load.check_dependencies(("health_missing",))] == [""]


def test_nothing_heavy_is_imported_for_it() -> None:
    heavy = ("psutil", "limits", "sqlalchemy", "fastapi", "prometheus_client")
    code = f"import sys, mcp_server.server.checks; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "[]"
