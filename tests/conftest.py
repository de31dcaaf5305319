"""Settings that every test and every process it starts share."""

import os
import sys

import pytest
from hypothesis import settings
from in_process import crm  # noqa: F401
from object_store import credentials, store  # noqa: F401
from tiny_course import data, no_board, tiny_networks  # noqa: F401

# Before torch is imported anywhere: on a busy machine, threads that spin while they wait for each other
# triple the time of everything.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A deadline per example would be a timed assertion, and machines that run tests are busy.
settings.register_profile("crm", deadline=None)
settings.load_profile("crm")


@pytest.fixture(scope="module", autouse=True)
def smallest_numbers() -> None:
    """Begin every module with numbers next to zero, which opening a `Line` trades for speed."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
