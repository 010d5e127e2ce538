"""The lab for every test below this folder: built once in a session, ended with it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab.network.handle import Lab
from tests.lab.network.programs import LabError


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A lab that is up. LAB_FLEET (hosts, 2000) and LAB_DATABASES (0 or 1, 1) change its size.

    A machine that cannot carry it fails the tests: a skip would hide that nothing was looked at.
    """
    fleet = int(os.environ.get("LAB_FLEET", "2000"))
    databases = os.environ.get("LAB_DATABASES", "1") == "1"
    why = ""
    try:
        started = Lab.start(fleet=fleet, databases=databases)
    except LabError as error:
        why = str(error)
    if why:
        pytest.fail(why, pytrace=False)
    with started:
        yield started
