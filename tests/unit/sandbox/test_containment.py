"""What is promised of a tier, and what is said of one that lacks something."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from mcp_server.errors import PlatformError
from mcp_server.sandbox import runner
from mcp_server.sandbox.containment import Tier, containment, describe


def test_the_runner_and_the_server_have_the_same_tiers() -> None:
    assert {runner.PID_NAMESPACE, runner.USER_NAMESPACE, runner.SUPERVISOR, runner.SESSION} == set(Tier)


@pytest.mark.parametrize("tier", Tier)
def test_what_is_lacking_has_a_remedy(tier: Tier) -> None:
    for abi, filtered in itertools.product(range(8), (True, False)):
        found = describe(tier, abi, calls_filtered=filtered)
        whole = found.ends_detached and found.files_confined and found.signals_confined and filtered
        assert bool(found.remedy) != whole
        assert found.files_confined == (abi > 0)
        assert ("files are not confined" in found.detail) == (abi == 0)


def test_without_a_namespace_signals_need_landlock() -> None:
    assert not describe(Tier.SUPERVISOR, 5, calls_filtered=True).signals_confined
    assert "ABI 5" in describe(Tier.SUPERVISOR, 5, calls_filtered=True).detail
    assert describe(Tier.SUPERVISOR, 6, calls_filtered=True).signals_confined
    assert describe(Tier.PID_NAMESPACE, 1, calls_filtered=True).signals_confined


def test_a_runner_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    containment.cache_clear()
    for interpreter in ("/nowhere/python", "/bin/true", "/bin/false"):
        monkeypatch.setattr(sys, "executable", interpreter)
        with pytest.raises(PlatformError, match="the runner cannot be started"):
            containment()
