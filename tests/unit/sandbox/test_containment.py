"""The description of a tier: its detail, and a remedy if something is missing."""

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
def test_there_is_a_remedy_if_and_only_if_something_is_missing(tier: Tier) -> None:
    for abi, filtered in itertools.product(range(8), (True, False)):
        found = describe(tier, abi, calls_filtered=filtered)
        signals_confined = abi >= 6 or tier in {Tier.PID_NAMESPACE, Tier.USER_NAMESPACE}
        complete = tier is not Tier.SESSION and abi > 0 and signals_confined and filtered
        assert bool(found.remedy) != complete, f"Landlock ABI {abi}, filter {filtered}: found {found}"
        assert found.files_confined == (abi > 0)
        assert ("Files are not confined" in found.detail) == (abi == 0)


def test_without_a_namespace_landlock_must_confine_signals() -> None:
    assert "signals" in describe(Tier.SUPERVISOR, 5, calls_filtered=True).detail
    assert "ABI is 5" in describe(Tier.SUPERVISOR, 5, calls_filtered=True).detail
    assert describe(Tier.SUPERVISOR, 6, calls_filtered=True).remedy == ""
    assert describe(Tier.PID_NAMESPACE, 1, calls_filtered=True).remedy == ""


def test_a_runner_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    containment.cache_clear()
    for interpreter in ("/nowhere/python", "/bin/true", "/bin/false"):
        monkeypatch.setattr(sys, "executable", interpreter)
        with pytest.raises(PlatformError, match="The runner cannot be started"):
            containment()
