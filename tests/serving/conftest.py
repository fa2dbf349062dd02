"""One run for all tests of serving."""

import moved_runs
import pytest

from configs import lcr_ser


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return moved_runs.Untrained(lcr_ser.method(), tmp_path_factory.mktemp("lcr_ser"))
