"""Fixtures of the scope tests: a policy, a DNS server on loopback, and a resolver that asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mcp_server.scope.policy import ScopePolicy
from mcp_server.scope.resolver import SystemResolver
from tests.unit.scope.loopback_dns import Zone, serve


@pytest.fixture
def policy() -> ScopePolicy:
    return ScopePolicy.from_entries(["RFC1918", ".lab.internal"])


@pytest.fixture
async def zone() -> AsyncIterator[Zone]:
    async with serve() as zone:
        yield zone


@pytest.fixture
def resolver(zone: Zone) -> SystemResolver:
    return SystemResolver(["127.0.0.1"], port=zone.port, lifetime=2.0, hosts_file=None)
