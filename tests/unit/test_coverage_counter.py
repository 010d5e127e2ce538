"""Coverage is counted from the planned addresses and the reports of the tool."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from mcp_server.model.coverage import LISTED, CoverageCounter
from mcp_server.model.target import Target, Targets


def targets(*networks: str) -> Targets:
    return Targets(tuple(Target(text, (ip_network(text),)) for text in networks))


def test_a_complete_run_counts_unnamed_addresses_as_down() -> None:
    counter = CoverageCounter(targets("10.0.0.0/24"))
    counter.finished(ip_address("10.0.0.1"), up=True)
    counter.finished(ip_address("10.0.0.2"), up=False)
    counter.gave_up(ip_address("10.0.0.3"))
    coverage = counter.result((), whole=True, down=254)
    assert (coverage.planned, coverage.up, coverage.down, coverage.looked_at) == (256, 1, 254, 255)
    assert (coverage.not_looked_at, coverage.not_looked_at_count) == (("10.0.0.3",), 1)
    assert not coverage.complete


def test_a_run_that_was_cut_short_did_not_look_at_unnamed_addresses() -> None:
    counter = CoverageCounter(targets("10.0.0.0/24", "10.0.2.0/30"))
    counter.finished(ip_address("10.0.0.1"), up=True)
    coverage = counter.result((), whole=False)
    assert (coverage.up, coverage.down, coverage.looked_at) == (1, 0, 1)
    assert coverage.not_looked_at_count == 259
    assert coverage.not_looked_at[:3] == ("10.0.0.0", "10.0.0.2", "10.0.0.3")
    assert len(coverage.not_looked_at) == LISTED
    assert coverage.not_looked_at[-1] == "10.0.2.0"


def test_no_more_addresses_are_down_than_the_tool_counted() -> None:
    coverage = CoverageCounter(targets("10.0.0.0/29")).result((), whole=True, down=5)
    assert (coverage.down, coverage.not_looked_at_count, coverage.complete) == (5, 3, False)


def test_a_run_that_looked_at_every_address_is_complete() -> None:
    coverage = CoverageCounter(targets("10.0.0.0/29")).result((), whole=True, down=8)
    assert (coverage.down, coverage.not_looked_at, coverage.complete) == (8, (), True)


def test_a_refused_network_was_not_looked_at() -> None:
    counter = CoverageCounter(targets("10.0.0.0/29", "fd77::/120"))
    assert counter.skipped(ip_network("fd77::/120"))
    assert counter.skipped(ip_network("10.0.0.1/32"))
    assert not counter.skipped(ip_network("10.9.0.0/29"))
    coverage = counter.result((), whole=True, down=7)
    assert (coverage.down, coverage.not_looked_at_count) == (7, 257)
    assert coverage.not_looked_at[:2] == ("10.0.0.1", "fd77::")


def test_an_address_that_is_reported_twice_counts_once() -> None:
    counter = CoverageCounter(targets("10.0.0.0/30"))
    for _ in range(2):
        counter.finished(ip_address("10.0.0.1"), up=True)
    coverage = counter.result((), whole=True, down=3)
    assert (coverage.up, coverage.down, coverage.looked_at) == (1, 3, 4)


def test_positions_follow_the_order_of_the_targets() -> None:
    counter = CoverageCounter(targets("10.0.2.0/24", "10.0.0.0/24", "fd77::/120"))
    assert counter.position(ip_address("10.0.2.5")) == 5
    assert counter.position(ip_address("10.0.0.0")) == 256
    assert counter.position(ip_address("fd77::1")) == 513
    assert counter.position(ip_address("10.0.1.0")) is None
    assert counter.position(ip_address("9.0.0.0")) is None
    assert counter.position(ip_address("fd78::1")) is None


def test_the_cost_of_a_large_network_does_not_depend_on_its_size() -> None:
    counter = CoverageCounter(targets("fd77::/64"))
    counter.finished(ip_address("fd77::1"), up=True)
    coverage = counter.result((), whole=False)
    assert coverage.not_looked_at_count == 2**64 - 1
    assert len(coverage.not_looked_at) == LISTED
