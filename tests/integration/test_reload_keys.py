"""Every live key is read from the configuration in force. No value from before a reload is used."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mcp_server import metrics
from mcp_server.config import Config, load_config
from mcp_server.config.base import Section
from mcp_server.config.keys import Key, keys
from mcp_server.config.reload_result import Trigger
from mcp_server.errors import BusyError, PlatformError
from mcp_server.identity.base import Rejected
from mcp_server.model.access import FULL_ACCESS
from mcp_server.model.run import Actor
from mcp_server.observability import tracing
from mcp_server.server import EnhancedMCPServer
from mcp_server.server.reloading import Reloader, reconfigure
from tests.support.interfaces import environment
from tests.support.issuer import RESOURCE, claims, jwks
from tests.support.issuer import Key as SigningKey
from tests.support.site_tools import SiteTools, make_site_tools

ISSUER, SIGNER = "https://issuer.example", SigningKey.make("one")
ACTOR = Actor("tester", "test", access=FULL_ACCESS)
ELSEWHERE = {
    # read by the interface for each response and at each stop signal; tested in test_config_behaviour.py
    "server.answer_text",
    "server.shutdown_grace_period",
    # read by the guard helper, which reads the operator's files itself at every reload; tested in test_guard_kernel.py
    "guard.loopback_user",
    # applied by `reconfigure` if they have changed; tested below and in test_reload.py
    "logging.level",
    "logging.format",
    "logging.file_path",
    "logging.max_file_size",
    "logging.backup_count",
    "tracing.endpoint",
    "tracing.sample_ratio",
}


class Readings:
    """The keys that were read, each with the configuration that it was read from."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, str]] = set()
        self.on = False

    def of(self, config: Config) -> set[str]:
        return {key.dotted for key in keys().values() if (id(key.holder(config)), key.name) in self.seen}


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Readings]:
    found = Readings()
    plain_get, plain_is_set, plain_of = Section.__getattribute__, Section.is_set, Key.of

    def spying_get(section: Section, name: str) -> Any:
        if found.on and not name.startswith("_"):
            found.seen.add((id(section), name))
        return plain_get(section, name)

    def spying_is_set(section: Section, name: str) -> bool:
        if found.on:
            found.seen.add((id(section), name))
        return plain_is_set(section, name)

    def unseen_of(key: Key, config: Config) -> Any:  # a comparison of configurations does not count
        on, found.on = found.on, False
        try:
            return plain_of(key, config)
        finally:
            found.on = on

    monkeypatch.setattr(Key, "of", unseen_of)
    monkeypatch.setattr(Section, "__getattribute__", spying_get)
    monkeypatch.setattr(Section, "is_set", spying_is_set)
    yield found
    tracing.shutdown()
    metrics.configure(enabled=False)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteTools:
    tools = make_site_tools(tmp_path / "site")
    monkeypatch.syspath_prepend(tools.folder)
    monkeypatch.setenv("PATH", tools.env["PATH"])
    return tools


async def test_every_live_key_is_read_from_the_configuration_in_force(
    tmp_path: Path, site: SiteTools, readings: Readings
) -> None:
    soon = {"MCP_CIRCUIT_BREAKER_RECOVERY_TIMEOUT": "1", "MCP_AUDIT_CHECKPOINT_INTERVAL": "1"}
    soon |= {"MCP_AUTH_LOCKOUT_FAILURES": "100"}  # the keys of the lockout are read only if it is on
    issuer_keys = tmp_path / "jwks.json"
    issuer_keys.write_text(json.dumps(jwks(SIGNER)))
    issuer_keys.chmod(0o600)
    soon |= {"MCP_AUTH_ISSUER": ISSUER, "MCP_AUTH_AUDIENCE": RESOURCE, "MCP_AUTH_JWKS_FILE": str(issuer_keys)}
    env = environment(tmp_path / "state", TOOLS_PACKAGE=site.package, MCP_SERVER_TRANSPORT="http", **soon)
    server = EnhancedMCPServer(load_config(env=env))
    reloader = Reloader(server.pipeline, read=lambda: load_config(env=env))
    old = server.config
    try:
        await server.pipeline.audit.start()
        server.services.background.start()
        reloader.start()
        await use(server)  # every part has now read the old configuration
        readings.on = True
        await reloader.reload(Trigger.REQUEST, ACTOR)
        new = server.config
        assert new is not old
        at_reload = readings.of(new)
        readings.seen.clear()
        await use(server)
        stale, used = readings.of(old), readings.of(new)
    finally:
        readings.on = False
        await reloader.stop()
        await server.cleanup()
    live = {key.dotted for key in keys().values() if key.status == "live"}
    assert stale & live == set(), "these keys were read from a configuration that is no longer in force"
    assert live - at_reload - used - ELSEWHERE == set(), "these keys were never read"


async def use(server: EnhancedMCPServer) -> None:
    """Use every part of a server that reads its configuration."""
    pipeline = server.pipeline
    await pipeline.call("probe", {"target": "127.0.0.1"}, ACTOR)
    pipeline.breakers.of("single").reset()
    for _ in range(6):
        with suppress(BusyError):
            await pipeline.call("single", {"target": "127.0.0.1", "extra_args": "--do fail"}, ACTOR)
    for credential in ("wrong", SIGNER.sign(claims(ISSUER, roles=None))):
        with suppress(Rejected):
            await server.services.authenticator().admit(credential, "127.0.0.1")
    await pipeline.audit.seal()
    await server.services.health().check()
    # The log is sealed and the event loop is measured once a second. The circuit breaker is half-open after one second.
    await asyncio.sleep(1.5)
    await pipeline.call("single", {"target": "127.0.0.1"}, ACTOR)


def test_a_change_of_tracing_or_logging_is_applied_at_once_or_not_at_all(tmp_path: Path) -> None:
    env = environment(tmp_path / "state")
    plain = load_config(env=env)
    traced = load_config(env=env | {"MCP_TRACING_ENDPOINT": "http://127.0.0.1:9"})
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # remove the handlers of pytest
    try:
        reconfigure(plain, traced, inside=False)
        assert tracing.enabled()
        reconfigure(traced, plain, inside=False)
        assert not tracing.enabled()
        loud = load_config(env=env | {"LOG_LEVEL": "ERROR"})
        reconfigure(plain, loud, inside=False)
        assert root.level == logging.ERROR
        bad = load_config(env=env | {"LOG_LEVEL": "DEBUG", "MCP_LOGGING_FILE_PATH": "/proc/none/x.log"})
        with pytest.raises(PlatformError, match="cannot be written"):
            reconfigure(loud, bad, inside=False)
        assert root.level == logging.ERROR
        assert root.handlers
    finally:
        root.handlers, root.level = handlers, level
        tracing.shutdown()


async def test_a_reload_switches_metrics_only_if_it_succeeds(tmp_path: Path) -> None:
    env = environment(tmp_path / "state", MCP_SERVER_TRANSPORT="http")
    server = EnhancedMCPServer(load_config(env=env))
    said = dict(env)
    reloader = Reloader(server.pipeline, read=lambda: load_config(env=said))
    try:
        said["MCP_METRICS_ENABLED"] = "false"
        await reloader.reload(Trigger.REQUEST, ACTOR)
        assert not metrics.enabled()
        said |= {"MCP_METRICS_ENABLED": "true", "MCP_LOGGING_FILE_PATH": "/proc/none/x.log"}
        with pytest.raises(PlatformError, match="cannot be written"):
            await reloader.reload(Trigger.REQUEST, ACTOR)
        assert not metrics.enabled()
        del said["MCP_LOGGING_FILE_PATH"]
        await reloader.reload(Trigger.REQUEST, ACTOR)
        assert metrics.enabled()
        assert b"mcp_server_info{" in metrics.exposition(), "metrics that are set once at the start must be set again"
    finally:
        await server.cleanup()
        metrics.configure(enabled=False)
