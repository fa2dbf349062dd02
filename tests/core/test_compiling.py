"""What is said while something takes long, and the time that a stage has left."""

import logging
import time

from core.compiling import announced
from core.metric_writers import ProgressReport


def test_a_long_wait_is_announced_and_timed_and_a_short_one_is_not():
    said = []
    with announced("compiling it", said.append, after_s=0.05):
        deadline = time.monotonic() + 10
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
        assert said == ["compiling it ..."]
    assert said == ["compiling it ...", "compiling it took 0 s"]
    with announced("compiling it", said.append, after_s=5.0):
        pass
    assert len(said) == 2


def test_the_time_left_counts_neither_compiling_nor_what_ran_before(caplog, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO):
        report = ProgressReport("train", 1000, 1120, 8)
        clock[0] = 90.0  # compiling
        report.step(1020, {"loss": 0.5})
        clock[0] = 92.0
        report.step(1040, {"loss": 0.25})
    first, second = [record.getMessage() for record in caplog.records]
    assert first == "train step 1020/1120 loss 0.5000"
    assert second == "train step 1040/1120 loss 0.2500 80 examples/s, 8 s left at most"
