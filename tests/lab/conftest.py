"""The lab for all tests below this folder, built once per session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab.network.handle import Lab
from tests.lab.network.programs import LabError


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Start the lab. LAB_FLEET (number of hosts, 2000) and LAB_DATABASES (0 or 1, 1) change its size.

    If the machine cannot run the lab, the tests fail. They are not skipped, because a skip would hide that nothing was
    tested.
    """
    fleet = int(os.environ.get("LAB_FLEET", "2000"))
    databases = os.environ.get("LAB_DATABASES", "1") == "1"
    reason = ""
    try:
        started = Lab.start(fleet=fleet, databases=databases)
    except LabError as error:
        reason = str(error)
    if reason:
        pytest.fail(reason, pytrace=False)
    with started:
        yield started
