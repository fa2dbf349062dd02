"""A day joins a prepared log: numbers stay, events are those of a log that is read at once."""

import dataclasses
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_csv_shards import events, write_csv

from core.errors import UserError
from input_pipelines import candidates, prepare, prepared_log, splits
from input_pipelines.grown_log import grown
from input_pipelines.log import RawEvents, build_log

ROOT = pathlib.Path(__file__).parents[2]
OPTIONS = {"segmenter": "characters"}


def told(log):
    """Returns what a log says of every user, by names, in its order."""
    said = {}
    for user in range(1, log.num_users + 1):
        rows = range(log.rec_offsets[user], log.rec_offsets[user + 1])
        clicks = [(int(log.rec_times[r]), log.item_ids[int(log.rec_items[r])]) for r in rows]
        searches = []
        for r in range(log.search_offsets[user], log.search_offsets[user + 1]):
            clicked = log.click_items[log.click_offsets[r] : log.click_offsets[r + 1]]
            times = (int(log.search_times[r]), log.asked_at(r))
            shown = (log.item_ids[log.unclicked(r)].tolist(), log.place(r))
            searches.append((times, log.query(r), log.item_ids[clicked].tolist(), *shown))
        said[log.user_ids[user]] = (clicks, searches, log.profile(user))
    texts = log.item_texts() if log.text_bytes is not None else [""] * log.num_items
    items = {log.item_ids[i + 1]: (texts[i], log.facts(i + 1)) for i in range(log.num_items)}
    return said, items, set(log.words.tolist())


def parts(seed, every):
    """Events of a few users at few times, with all that a log can hold, cut in two."""
    rng = np.random.default_rng(seed)
    clicks, searches = 300, 150
    late = 10 * (np.arange(clicks) >= 200), 40 * (np.arange(searches) >= 110)
    columns = {
        "click_user": [f"u{n}" for n in rng.integers(0, 12 + late[0])],
        "click_item": [f"i{n}" for n in rng.integers(0, 30 + late[0])],
        "click_time": rng.integers(0, 25, clicks).tolist(),
        "search_user": [f"u{n}" for n in rng.integers(4, 16, searches)],
        "search_time": rng.integers(0, 25, searches).tolist(),
        "search_words": [
            [f"w{w}" for w in rng.integers(0, 10 + late[1][n], n % 3)] for n in range(searches)
        ],
        "search_clicks": [[f"i{i}" for i in rng.integers(20, 45, n % 4)] for n in range(searches)],
    }
    if every:
        columns["search_unclicked"] = [[f"i{n % 50}"] * (n % 2) for n in range(searches)]
        columns["search_places"] = [("", "here", "there")[n % 3] for n in range(searches)]
        columns["search_begins"] = [when - n % 2 for n, when in enumerate(columns["search_time"])]
    named = {"item_texts": {f"i{n}": f"text {n}" for n in range(0, 50, 3)}} if every else {}
    if every:
        named["item_facts"] = {f"i{n}": {"price": str(n)} for n in range(0, 50, 4)}
        named["user_profiles"] = {f"u{n}": {"age": str(n)} for n in range(0, 16, 5)}

    def cut(cut_clicks, cut_searches):
        taken = {
            name: values[cut_clicks if name.startswith("click") else cut_searches]
            for name, values in columns.items()
        }
        return RawEvents(**taken, **named)

    # Late events are among the second part: times overlap.
    first = cut(slice(0, 200), slice(0, 110))
    return [cut(slice(None), slice(None)), first, cut(slice(190, None), slice(110, None))]


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_told_is_what_a_log_read_at_once_tells(seed, every):
    whole, first, second = (build_log("x", part) for part in parts(seed, every))
    made = grown(first, second)
    assert told(made) == told(whole)
    # Numbers stay, new ones follow.
    for kind in ("user_ids", "item_ids", "words"):
        before, now = (getattr(log, kind).tolist() for log in (first, made))
        assert now[: len(before)] == before
    assert made.num_users > first.num_users and made.num_words > first.num_words
    assert made.hash not in (whole.hash, first.hash, second.hash)
    assert made.hash == grown(first, second).hash


def test_a_day_without_news_adds_its_events_alone():
    _, first, _ = (build_log("x", part) for part in parts(0, True))
    later = dataclasses.replace(
        first,
        rec_times=np.asarray(first.rec_times) + 1000,
        search_times=first.search_times + 1000,
        search_begins=first.search_begins + 1000,
        hash="later",
    )
    made = grown(first, later)
    assert made.user_id_bytes is first.user_id_bytes and made.text_bytes is first.text_bytes
    assert len(made.rec_items) == 2 * len(first.rec_items)


@pytest.mark.parametrize(
    ("changes", "found", "other_way"),
    [
        (
            {"time_unit": "seconds"},
            "times in positions as in the log, found seconds .*time_unit=p",
            "times in seconds as in the log, found positions .*time_unit=s",
        ),
        (
            {"text_offsets": None, "text_bytes": None},
            "found texts in the log and none in the new",
            "found texts in the new files",
        ),
    ],
)
def test_a_day_of_another_kind_is_one_line(changes, found, other_way):
    _, first, second = (build_log("x", part) for part in parts(0, True))
    with pytest.raises(UserError, match=found) as error:
        grown(first, dataclasses.replace(second, **changes))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=other_way):
        grown(dataclasses.replace(first, **changes), second)
    with pytest.raises(UserError, match="without a split of its own"):
        grown(dataclasses.replace(first, published={"train_target_row": np.zeros(1)}), second)


def test_a_day_that_overlaps_the_log_is_refused_and_leaves_it_as_it_was(days):
    path = days / "log" / "meta.json"
    before = path.read_bytes()
    for table in ("clicks", "searches"):
        lines = (days / "day0" / f"{table}.csv").read_text().splitlines()
        # The end of the day before, its sessions under other names.
        again = [line.replace(",s", ",again") for line in lines[-3:]]
        with open(days / "day1" / f"{table}.csv", "a") as file:
            file.write("\n".join(again if table == "searches" else lines[-3:]) + "\n")
    with pytest.raises(UserError, match=r"found 3 of \d+ that it has, such as .* 'user") as error:
        join(days, 1)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


@pytest.fixture
def days(tmp_path):
    """Raw folders of three days, and the prepared log of the first."""
    clicks, searches = events()
    for number in range(3):
        folder = tmp_path / f"day{number}"
        write_csv(clicks[number * 120 : number * 120 + 120], folder / "clicks.csv")
        write_csv(searches[number * 40 : number * 40 + 40], folder / "searches.csv")
    prepare.prepare_into("csv_log", str(tmp_path / "day0"), str(tmp_path / "log"), OPTIONS)
    return tmp_path


def join(days, number):
    return prepare.append_into("csv_log", str(days / f"day{number}"), str(days / "log"), OPTIONS)


def test_days_join_in_a_chain_and_no_day_twice(days):
    first = prepared_log.load_log(str(days / "log"))
    second = join(days, 1)
    third = join(days, 2)
    clicks, searches = events()
    write_csv(clicks[:360], days / "all" / "clicks.csv")
    write_csv(searches, days / "all" / "searches.csv")
    whole, _ = prepare.prepare_log("csv_log", str(days / "all"), str(days / "cache"), OPTIONS)
    assert told(third) == told(whole)
    links = prepared_log.read_links(str(days / "log"))
    assert [link["hash"] for link in links] == [first.hash, second.hash, third.hash]
    # The latest one again changes nothing, earlier ones are refused.
    files = sorted(os.listdir(days / "log"))
    assert join(days, 2).hash == third.hash and sorted(os.listdir(days / "log")) == files
    for number in (0, 1):
        with pytest.raises(UserError, match=rf"found those of its part {number + 1} of 3 in .*day"):
            join(days, number)
    assert prepare.validate_prepared(str(days / "log")).hash == third.hash
    with pytest.raises(UserError, match="found a log prepared from other files or settings"):
        prepare.prepare_into("csv_log", str(days / "day0"), str(days / "log"), OPTIONS)
    with pytest.raises(UserError, match=r"with settings .*jieba"):
        options = {"segmenter": "jieba"}
        prepare.append_into("csv_log", str(days / "day2"), str(days / "log"), options)
    with pytest.raises(UserError, match=r"expected a prepared log with meta\.json in"):
        prepare.append_into("csv_log", str(days / "day2"), str(days / "day0"), OPTIONS)


def test_a_full_disk_leaves_the_log_as_it_was(days):
    before = {path.name: path.read_bytes() for path in (days / "log").iterdir()}
    # A limit on file sizes makes writes fail as a full disk does, without a disk to fill.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"^expected to write .*-2\.npy, found File too large"
        ) as e:
            join(days, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be read" not in str(e.value) and str(e.value).count("free space") == 1
    left = {path.name: path.read_bytes() for path in (days / "log").iterdir()}
    assert {name: left[name] for name in before} == before
    assert set(left) - set(before) <= {".append.lock"}
    join(days, 1)


def test_who_has_the_log_open_reads_on_and_what_was_made_of_it_is_not_mixed_up(days):
    folder = str(days / "log")
    log = prepared_log.load_log(folder)
    items = np.array(log.rec_items)

    def lists(log):
        return candidates.evaluation_candidates(
            log, splits.split_log(log, "leave_one_out"), "test", "neg99pop", 0, folder
        )

    before = lists(log)
    made = join(days, 1)
    assert (log.rec_items == items).all() and len(made.rec_items) > len(items)
    assert len(lists(made)) >= len(before)
    made_in = [path.parent.name for path in (days / "log").rglob("*neg99pop*.json")]
    assert sorted(made_in) == sorted(["log", f"of-{made.hash}"])


def test_a_damaged_log_and_a_damaged_day_leave_it_as_it_was(days):
    before = {path.name: path.read_bytes() for path in (days / "log").iterdir()}
    (days / "day1" / "clicks.csv").write_text("user,item,time\nu,i,soon\n")
    with pytest.raises(UserError, match="found 'soon' in row 1"):
        join(days, 1)
    after = {path.name: path.read_bytes() for path in (days / "log").iterdir()}
    after.pop(".append.lock")
    assert after == before
    join(days, 2)
    path = days / "log" / "rec_items-2.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    shutil.copytree(days / "day0", days / "day3")
    write_csv(events(1)[0], days / "day3" / "clicks.csv")
    with pytest.raises(UserError, match=r"rec_items-2\.npy, found .*: its content has changed"):
        join(days, 3)


def command(days, number, *more):
    flags = ["--append", "--dataset=csv_log", f"--raw_dir={days / f'day{number}'}"]
    return [
        sys.executable,
        "-m",
        "launch.prepare_data",
        *flags,
        f"--data_dir={days / 'log'}",
        *more,
    ]


def test_a_killed_run_leaves_the_log_and_the_same_command_ends_well(days):
    hashed = prepared_log.load_log(str(days / "log")).hash
    # A save that sleeps before it writes what the log then is, is killed where most is written.
    code = "import sys, time\nsys.argv = sys.argv[1:]\n"
    code += "from input_pipelines import prepared_log as log\n"
    code += "log.describe = lambda log: time.sleep(60)\n"
    code += "from core import cli\nfrom launch import prepare_data as program\n"
    code += "cli.begin('__main__', program.define_flags, program.check_flags)\n"
    code += "cli.run(program.main)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command(days, 1)[2:]], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (days / "log" / "click_items-2.npy").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (days / "log" / "rec_items-2.npy").exists()
    assert prepare.validate_prepared(str(days / "log")).hash == hashed
    done = subprocess.run(command(days, 1), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)
    log = prepare.validate_prepared(str(days / "log"))
    assert card["hash"] == log.hash != hashed and card["clicks"] == len(log.rec_items)
    held = [re.match(r"[a-z_]+", path.name)[0] for path in (days / "log").glob("*.npy")]
    assert len(held) == len(set(held)), "no array of before is left"


def test_a_mistake_ends_the_program_in_one_line(days):
    shutil.rmtree(days / "log")
    done = subprocess.run(command(days, 1), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "expected a prepared log with meta.json in" in done.stderr.splitlines()[-1]
