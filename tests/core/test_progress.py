"""Bars on a terminal and lines elsewhere for what takes long."""

import logging

from core.progress import Bars, ProgressReport

DONE = (("rec_inter.csv", 0.5), ("rec_inter.csv", 1.0), ("saving", 0.25))


def test_a_terminal_sees_a_bar_for_each_thing_done(capsys):
    with Bars(terminal=True) as bars:
        for what, share in DONE:
            bars.report(what, share)
    shown = capsys.readouterr().err
    assert "rec_inter.csv" in shown and "100%" in shown
    assert "saving" in shown and "25%" in shown


def test_elsewhere_each_thing_is_a_line(caplog):
    caplog.set_level(logging.INFO)
    with Bars(terminal=False) as bars:
        for what, share in DONE:
            bars.report(what, share)
    assert caplog.messages == ["rec_inter.csv", "saving"]


def test_elsewhere_a_stage_says_where_it_is(caplog):
    caplog.set_level(logging.INFO)
    report = ProgressReport("rl", 0, 20, 8)
    report.step(5, {"loss": 0.5, "reward": 1.0})
    report.say("saved")
    report.close()
    assert caplog.messages == ["rl step 5/20 loss 0.5000 reward 1.0000", "rl: saved"]
