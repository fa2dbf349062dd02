"""A sweep's table from results made up by hand."""

import json
from types import SimpleNamespace

import made_results
import numpy as np
import pytest
import scipy.stats

from configs import lcr_ser
from core import drawing
from core.errors import UserError
from core.results import device
from core.workdir import Workdir, commit_id
from studies.ablation.sweeps import Setting, Sweep
from studies.ablation.tables import Supplement, draw, read_sweep, title, write
from studies.statistics import holm

SWEEP = Sweep("k", "k:0,2,3", "K", tuple(Setting(f"K = {k}", {}, value=k) for k in (0, 2, 3)))
RNG = np.random.default_rng(0)
BASE = RNG.uniform(size=40)
USERS = {
    "K = 0": [BASE, BASE + 0.02],
    "K = 2": [BASE + 0.1 * RNG.uniform(size=40) for _ in range(2)],
    "K = 3": [BASE + 0.1 * RNG.standard_normal(40) for _ in range(2)],
}


def run(folder, seed, values, stages=("train",), users=None, **made):
    (folder / "per_user").mkdir(parents=True)
    users = np.arange(len(values)) if users is None else users
    rows = []
    for number, stage in enumerate(stages):
        np.savez(folder / "per_user" / f"{stage}.npz", user=users, **{"ndcg@5": values + number})
        mean = float(np.mean(values + number))
        rows.append(
            made_results.row(
                stage=stage,
                protocol="neg99",
                metrics={"ndcg@5/neg99": mean, "hr@1/neg99": mean / 2},
                seed=seed,
                **({"commit": "aaa"} | made),
                per_user=f"per_user/{stage}.npz",
            )
        )
    (folder / "results.json").write_text(json.dumps({"rows": rows}))
    return str(folder)


def folders(tmp_path, **more):
    return {
        label: [run(tmp_path / label / str(i), i, v, **more) for i, v in enumerate(values)]
        for label, values in USERS.items()
    }


def test_rows_are_tested_against_the_first_over_means_of_seeds(tmp_path):
    rows = read_sweep(SWEEP, folders(tmp_path), "ndcg@5/neg99")
    assert [row.setting.label for row in rows] == list(USERS)
    means = {label: np.mean(values, 0) for label, values in USERS.items()}
    p = [scipy.stats.ttest_rel(means[k], means["K = 0"]).pvalue for k in ("K = 2", "K = 3")]
    assert rows[0].pair is None
    assert [row.pair.p_holm for row in rows[1:]] == pytest.approx(holm(p))
    assert rows[1].pair.difference == pytest.approx((means["K = 2"] - means["K = 0"]).mean())
    assert rows[1].metrics["hr@1/neg99"] == pytest.approx([v.mean() / 2 for v in USERS["K = 2"]])


def test_a_user_with_many_examples_counts_once(tmp_path):
    # Forty examples of ten users.
    users = RNG.permutation(np.arange(40) % 10)
    rows = read_sweep(SWEEP, folders(tmp_path, users=users), "ndcg@5/neg99")
    means = [
        [np.mean(values, 0)[users == user].mean() for user in range(10)]
        for values in USERS.values()
    ]
    p = [scipy.stats.ttest_rel(mean, means[0]).pvalue for mean in means[1:]]
    assert [row.pair.p_holm for row in rows[1:]] == pytest.approx(holm(p))
    text = write(Workdir(str(tmp_path / "w")), SWEEP, rows, "ndcg@5/neg99", "sample, test", {})
    assert "over 40 examples, differences and their tests over the means of 10 users" in text


def test_every_stage_has_a_first_row_of_its_own(tmp_path):
    rows = read_sweep(SWEEP, folders(tmp_path, stages=("train", "rl")), "ndcg@5/neg99")
    assert [row.stage for row in rows] == ["train"] * 3 + ["rl"] * 3
    assert [row.pair is None for row in rows] == [True, False, False] * 2
    # Modules added one by one are compared across stages.
    added = Sweep(
        "table3",
        "table3",
        "model",
        (Setting("K = 0", {}, stage="train"), Setting("K = 2", {}, stage="rl")),
    )
    base, last = read_sweep(added, _again(tmp_path), "ndcg@5/neg99")
    assert (base.stage, last.stage) == ("train", "rl")
    difference = np.mean(USERS["K = 2"], 0) + 1 - np.mean(USERS["K = 0"], 0)
    assert last.pair.difference == pytest.approx(difference.mean())


def _again(tmp_path):
    return {label: [str(tmp_path / label / str(i)) for i in range(2)] for label in USERS}


def test_the_files_say_what_stopped_and_round_nothing_in_json(tmp_path):
    found = folders(tmp_path)
    missing = {label: paths for label, paths in found.items() if label != "K = 3"}
    rows = read_sweep(SWEEP, missing, "ndcg@5/neg99")
    workdir, stopped = Workdir(str(tmp_path / "w")), {"K = 3, seed 0": "loss nan at step 7"}
    beside = Supplement(["", "more"], {"seconds": [1.5]}, {"one model": [(0.0, 0.5), (2.0, 0.6)]})
    text = write(workdir, SWEEP, rows, "ndcg@5/neg99", "sample, test", stopped, beside)
    mean, spread = np.mean(rows[0].metrics["ndcg@5/neg99"]), 0.02 / np.sqrt(2)
    assert f"| K = 0 | after training | 0, 1 | {mean:.4f} ± {spread:.4f} |" in text
    assert "- K = 3, seed 0: loss nan at step 7" in text and text.endswith("\nmore\n")
    values = json.loads((tmp_path / "w" / "table.json").read_text())
    assert values["rows"][0]["metrics"]["ndcg@5/neg99"] == list(rows[0].metrics["ndcg@5/neg99"])
    assert values["seconds"] == [1.5] and values["stopped"] == stopped
    assert (tmp_path / "w" / "table.png").stat().st_size > 5000


def test_a_stage_that_all_settings_share_is_one_row(tmp_path):
    same = dict.fromkeys(USERS, USERS["K = 0"])
    paths = {
        label: [run(tmp_path / label / str(i), i, v) for i, v in enumerate(values)]
        for label, values in same.items()
    }
    rows = read_sweep(SWEEP, paths, "ndcg@5/neg99")
    lines = write(Workdir(str(tmp_path / "w")), SWEEP, rows, "ndcg@5/neg99", "", {}).splitlines()
    told = [line for line in lines if "after training" in line]
    assert len(told) == 1 and told[0].startswith("| all settings | after training | 0, 1 |")


def test_settings_that_tie_in_the_tested_metric_alone_keep_their_rows(tmp_path):
    paths = {
        label: [run(tmp_path / label / str(i), i, v) for i, v in enumerate(USERS["K = 0"])]
        for label in USERS
    }
    other = tmp_path / "K = 3" / "1" / "results.json"
    saved = json.loads(other.read_text())
    saved["rows"][0]["metrics"]["hr@1/neg99"] += 0.1
    other.write_text(json.dumps(saved))
    rows = read_sweep(SWEEP, paths, "ndcg@5/neg99")
    text = write(Workdir(str(tmp_path / "w")), SWEEP, rows, "ndcg@5/neg99", "", {})
    assert "all settings" not in text and text.count("| after training |") == len(USERS)


def test_a_metric_that_no_run_has_is_named(tmp_path):
    with pytest.raises(UserError, match=r"expected ndcg@5/full in the results"):
        read_sweep(SWEEP, folders(tmp_path), "ndcg@5/full")


def test_a_long_legend_lies_within_the_picture(tmp_path):
    stages = ("train", "rl", "control")
    rows = read_sweep(SWEEP, folders(tmp_path, stages=stages), "ndcg@5/neg99")
    curves = {
        f"one model of the largest K ({stage})": [(0.0, 0.5), (2.0, 0.6)]
        for stage in ("train", "rl")
    }
    figure = draw(SWEEP, rows, ["ndcg@5/neg99"], "sample, test", curves)
    drawing.save(figure, str(tmp_path / "table.png"), dpi=120)
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0


@pytest.fixture
def small_data():
    data = SimpleNamespace(label="sample", split=lambda name: np.zeros(40))
    return lcr_ser.method(), data


def test_tables_name_what_made_their_rows_and_not_what_wrote_them(tmp_path, small_data):
    config, data = small_data
    paths = {
        "K = 0": [
            run(tmp_path / "0", 0, BASE, device="1 x T"),
            run(tmp_path / "1", 1, BASE, commit="bbb", device="1 x T"),
        ]
    }
    made = {"commit": "bbb", "device": "1 x T"}
    paths["K = 2"] = [run(tmp_path / "2", 0, BASE + 0.1, **made)]
    rows = read_sweep(SWEEP, paths, "ndcg@5/neg99")
    heading = title(config, data, rows)
    assert "commits aaa, bbb, 1 x T; selected on" in heading and commit_id() not in heading
    write(Workdir(str(tmp_path / "w")), SWEEP, rows, "ndcg@5/neg99", heading, {})
    values = json.loads((tmp_path / "w" / "table.json").read_text())
    assert (values["commits"], values["devices"]) == (["aaa", "bbb"], ["1 x T"])
    # Without rows, such as times measured now, it is this one.
    assert f"commit {commit_id()}, {device()};" in title(config, data, [])


def test_what_a_stopped_run_had_finished_keeps_its_row(tmp_path):
    paths = {
        "K = 0": [run(tmp_path / str(i), i, BASE, stages=("train", "rl")) for i in (0, 1)],
        "K = 2": [
            run(tmp_path / "2", 0, BASE + 0.1, stages=("train", "rl")),
            run(tmp_path / "3", 1, BASE + 0.2),
        ],
        "K = 3": [run(tmp_path / "4", 0, BASE - 0.1), str(tmp_path / "5")],
    }
    # The last run's test of RL has stopped after another protocol.
    saved = json.loads((tmp_path / "4" / "results.json").read_text())
    other = saved["rows"][0] | {"stage": "rl", "protocol": "full", "metrics": {"ndcg@5/full": 0.1}}
    saved["rows"].append(other)
    (tmp_path / "4" / "results.json").write_text(json.dumps(saved))
    broken = [str(tmp_path / name) for name in ("3", "4", "5")]
    rows = read_sweep(SWEEP, paths, "ndcg@5/neg99", broken)
    assert [(row.setting.label, row.stage, row.seeds) for row in rows] == [
        ("K = 0", "train", (0, 1)),
        ("K = 2", "train", (0, 1)),
        ("K = 3", "train", (0,)),
        ("K = 0", "rl", (0, 1)),
        ("K = 2", "rl", (0,)),
    ]
    text = write(Workdir(str(tmp_path / "w")), SWEEP, rows, "ndcg@5/neg99", "", {"x": "nan"})
    assert "| K = 2 | after RL | 0 (of 2 seeds) |" in text
    assert "| K = 2 | after training | 0, 1 |" in text


def test_arms_of_other_users_or_broken_examples_are_one_line(tmp_path):
    paths = {"K = 0": [run(tmp_path / "0", 0, BASE)], "K = 2": [run(tmp_path / "2", 0, BASE[:20])]}
    with pytest.raises(UserError, match="the same test users of K = 0 and K = 2, found others"):
        read_sweep(SWEEP, paths, "ndcg@5/neg99")
    paths = {"K = 0": [paths["K = 0"][0], run(tmp_path / "3", 1, BASE[:20])]}
    with pytest.raises(UserError, match=r"the same test users in .*0 and .*3, found others"):
        read_sweep(SWEEP, paths, "ndcg@5/neg99")
    file = tmp_path / "0" / "per_user" / "train.npz"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"the results of every example at .*train\.npz"):
        read_sweep(SWEEP, {"K = 0": paths["K = 0"][:1]}, "ndcg@5/neg99")


def test_a_setting_is_compared_over_the_seeds_that_have_ended(tmp_path):
    paths = {
        "K = 0": [run(tmp_path / f"0{i}", i, BASE + i) for i in (0, 1)],
        "K = 2": [run(tmp_path / "2", 0, BASE + 0.1 * RNG.uniform(size=40)), str(tmp_path / "3")],
    }
    _, second = read_sweep(SWEEP, paths, "ndcg@5/neg99", {str(tmp_path / "3")})
    # Against the mean of both seeds it would be near -.45.
    assert second.pair.seeds == (0,) and second.pair.left_out == (1,)
    assert second.pair.difference == pytest.approx(0.05, abs=0.03)
    rows = read_sweep(SWEEP, paths, "ndcg@5/neg99", {str(tmp_path / "3")})
    text = write(Workdir(str(tmp_path / "w")), SWEEP, rows, "ndcg@5/neg99", "sample, test", {})
    assert "] over seeds 0 |" in text and "0 (of 2 seeds)" in text
