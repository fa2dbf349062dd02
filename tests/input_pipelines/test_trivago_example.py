"""CONTRIBUTING's conversion of trivago's sessions, run as it is printed."""

import pathlib
import re

import pandas as pd
import pytest

from input_pipelines.data_card import describe
from input_pipelines.log_checks import validate_log
from input_pipelines.readers import csv_log
from input_pipelines.splits import check_leakage, split_log

ROOT = pathlib.Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "trivago_100k" / "trivago_val_100k.parquet"


@pytest.fixture
def convert():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"   ```python\n(.*?)   ```", text, re.S).group(1)
    names = {}
    exec(re.sub(r"^   ", "", block, flags=re.M), names)
    return names["convert"]


def row(user, session, time, step, action, reference, impressions=None):
    return {
        "user_id": user,
        "session_id": session,
        "timestamp": time,
        "step": step,
        "action_type": action,
        "reference": reference,
        "impressions": impressions,
    }


def test_a_session_by_hand(convert, tmp_path):
    rows = [
        row("a", "s", 10, 1, "search for destination", "Paisley, United Kingdom"),
        row("a", "s", 20, 2, "interaction item image", "7"),
        row("a", "s", 30, 3, "clickout item", "7", "5|7"),
        row("a", "s", 40, 4, "search for poi", "Port Authority"),
        row("a", "s", 50, 5, "clickout item", "8", "8|9"),
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "raw.parquet")
    convert(str(tmp_path / "raw.parquet"), str(tmp_path))
    log = csv_log.read_csv_log(str(tmp_path))
    assert log.item_ids.tolist() == ["", "5", "7", "8", "9"]
    assert log.rec_times.tolist() == [30, 50] and log.search_times.tolist() == [10, 40]
    words = log.words[log.word_ids].tolist()
    assert words == ["paisley", "united", "kingdom", "port", "authority"]


def test_the_real_sessions(convert, tmp_path):
    if not REAL.exists():
        pytest.skip(f"needs {REAL.relative_to(ROOT.parent)} beside the repository")
    convert(str(REAL), str(tmp_path))
    log = csv_log.read_csv_log(str(tmp_path))
    validate_log(log)
    card = describe(log)
    # 13,597 click-outs, of which 48 repeat user, item and second; 4,140 typed searches.
    assert (card["users"], card["clicks"], card["searches"]) == (6593, 13549, 4140)
    assert card["items"] == 106_866
    for name in ("leave_one_out", "global_time"):
        check_leakage(log, split_log(log, name))
