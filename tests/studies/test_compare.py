"""Comparing runs: grouping by seed, paired tests, Holm's correction, and what is refused."""

import json
import time

import made_results
import matplotlib.image
import numpy as np
import pytest
import scipy.stats

from configs import lcr_ser_qilin
from core import metrics, run_schema
from core.errors import UserError
from core.stages import stage_order
from core.workdir import Workdir, check_workdir, open_workdir
from input_pipelines.dataset import Dataset
from studies import compare, comparison_tables, strata
from studies.statistics import Row, compare_pairs, holm


def workdir(folder, method, seed, values, **changes):
    folder.mkdir()
    (folder / "per_user").mkdir()
    config = {"method": method, "seed": seed, "data_dir": str(folder), "model": {"k": 3}}
    config |= {"dataset": "csv_log", "data": {}, "eval": {}}
    config |= changes.pop("config", {})
    (folder / "config.json").write_text(json.dumps(run_schema.stamped(config)))
    (folder / "log.json").write_text('{"hash": "h"}')
    users = changes.pop("users", np.arange(len(values)))
    np.savez(folder / "per_user" / "a.npz", **{"user": users, "ndcg@5": np.float32(values)})
    row = made_results.row(
        metrics={"ndcg@5/full": float(np.mean(np.float32(values)))},
        seed=seed,
        per_user="per_user/a.npz",
    )
    (folder / "results.json").write_text(json.dumps({"rows": [row | changes]}))
    return str(folder)


def test_seeds_of_one_config_are_one_row_and_users_are_paired(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.uniform(size=50)
    better = [base + 0.1 + 0.05 * rng.standard_normal(50) for _ in range(2)]
    paths = [workdir(tmp_path / f"a{i}", "sasrec", i, base) for i in range(2)]
    paths += [workdir(tmp_path / f"b{i}", "unisar", i, v) for i, v in enumerate(better)]
    rows = compare.read_rows(paths, "ndcg@5/full", "test")
    assert [(row.name, row.seeds) for row in rows] == [("sasrec", (0, 1)), ("unisar", (0, 1))]
    (pair,) = compare_pairs(rows)
    expected = np.float32(better).mean(0) - np.float32(base)
    assert pair.difference == pytest.approx(expected.mean(), abs=1e-6)
    p = scipy.stats.ttest_1samp(expected, 0.0).pvalue
    assert pair.p == pytest.approx(p, rel=1e-3) and pair.p_holm == pair.p
    half = 1.96 * expected.std(ddof=1) / np.sqrt(50)
    assert pair.low == pytest.approx(expected.mean() - half, abs=half / 5)
    assert (pair.seeds, pair.left_out) == ((0, 1), ())
    text = comparison_tables.to_markdown({"ndcg@5/full": (rows, [pair])})
    assert "| method | ndcg@5/full | deviation over seeds | seeds |" in text
    assert "| sasrec -> unisar | " in text


def test_a_user_with_many_examples_counts_once(tmp_path):
    # Six examples of three users; the second method is better for the first user alone, who has
    # four of them. As if every example were a user, that would pass for a difference.
    users = np.array([7, 3, 7, 7, 5, 7])
    base = np.array([0.0, 0.5, 0.2, 0.1, 1.0, 0.1])
    paths = [workdir(tmp_path / "a", "a", 0, base, users=users)]
    paths.append(workdir(tmp_path / "b", "b", 0, base + 0.6 * (users == 7), users=users))
    rows = compare.read_rows(paths, "ndcg@5/full", "test")
    np.testing.assert_allclose(rows[0].per_user(), [0.5, 1.0, 0.1], atol=1e-6)
    (pair,) = compare_pairs(rows)
    # Users 3, 5, 7 gain 0, 0 and .6: mean .2, t = .2 / (.6 / 3) = 1 with two degrees of freedom.
    assert pair.difference == pytest.approx(0.2, abs=1e-6)
    assert pair.p == pytest.approx(2 * scipy.stats.t.sf(1.0, 2), abs=1e-4)
    # Few users: Student's t, whose .975 quantile for two degrees of freedom is 4.3027.
    assert pair.low == pytest.approx(0.2 - 4.3027 * 0.2, abs=1e-4)
    assert pair.high == pytest.approx(0.2 + 4.3027 * 0.2, abs=1e-4)
    # What is displayed stays the mean over the examples, as the run's own results have it.
    text = comparison_tables.to_markdown({"ndcg@5/full": (rows, [pair])})
    assert "| b | 0.7167 |" in text and "+0.2000" in text
    assert "over 6 examples, differences and their tests over the means of 3 users" in text
    groups = {"head": np.array([1, 1, 1, 0, 0, 0], bool)}
    table = comparison_tables.strata_to_markdown(rows, groups, "ndcg@5/full").splitlines()
    assert "head (2 users)" in table[0]
    # Of the examples 0, .5, .2 the second method makes .6, .5, .8; its users gain 0 and .6.
    # Deviation sqrt(.18), t of one degree of freedom 12.7062: 12.7062 * sqrt(.18) / sqrt(2).
    assert table[3] == "| b | 0.6333 (+0.3000 ± 3.8119) |"


def made(name, values, seeds, users=None):
    """A row of values [S, E]."""
    values = np.float64(values)
    users = np.arange(values.shape[1]) if users is None else users
    return Row(name, seeds, tuple(values.mean(1)), values, users, name, "fit", name)


def test_a_pair_is_over_the_seeds_that_both_have():
    three = made("a", [[0, 0, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]], (0, 1, 2))
    one = made("b", [[1, 0, 1, 0]], (0,))
    # Against the mean over all three seeds of a the difference would be -.25.
    (pair,) = compare_pairs([three, one])
    assert (pair.difference, pair.seeds, pair.left_out) == (0.25, (0,), (1, 2))
    text = comparison_tables.to_markdown({"hr@1/full": ([three, one], [pair])})
    assert "| a -> b | +0.2500 [" in text
    assert "| 0 (not 1, 2, which one of them lacks) |" in text
    strata_text = comparison_tables.strata_to_markdown(
        [three, one], {"all": np.ones(4, bool)}, "hr@1/full"
    )
    assert "(+0.2500 ± " in strata_text
    assert "The gain of b is over seed 0, which both have." in strata_text
    with pytest.raises(UserError, match="a seed in common, found seeds 0, 1, 2 of a and seed 3 of"):
        compare_pairs([three, made("c", [[1, 0, 1, 0]], (3,))])
    # In another order they are the same seeds.
    turned = made("d", three.values[[2, 0, 1]] + 0.5, (2, 0, 1))
    (pair,) = compare_pairs([three, turned])
    assert (pair.difference, pair.left_out) == (pytest.approx(0.5), ())


def test_an_interval_of_few_users_holds_what_it_says():
    # Five users of docs/results.md's noise table: 1.96 gave .180 around .214; Student's t of four
    # degrees of freedom, 2.7764, gives .255, and zero is inside.
    gains = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    gains = 0.214 + gains / gains.std(ddof=1) * 0.180 / 1.96 * np.sqrt(5)
    assert metrics.half_interval(gains) == pytest.approx(0.180 * 2.7764 / 1.96, abs=1e-4)
    (pair,) = compare_pairs([made("a", [0 * gains], (0,)), made("b", [gains], (0,))])
    assert pair.low == pytest.approx(0.214 - 0.255, abs=1e-3) and pair.low < 0 < pair.p
    with pytest.raises(ValueError, match="two users or more, found 1"):
        metrics.half_interval(gains[:1])
    # One user tells nothing.
    (pair,) = compare_pairs([made("a", [[0.0]], (0,)), made("b", [[1.0]], (0,))])
    assert (pair.low, pair.high, pair.p) == (-np.inf, np.inf, 1.0)


def interval_of(gains):
    (pair,) = compare_pairs([made("a", [0 * gains], (0,)), made("b", [gains], (0,))])
    return pair.low, pair.high


def test_intervals_of_skewed_gains_are_bias_corrected_and_accelerated():
    gains = np.random.default_rng(0).exponential(size=100) ** 2
    mean, half = gains.mean(), 1.96 * gains.std(ddof=1) / 10
    # Efron 1987, Eq. 6.6 on draws of our own; a mean's acceleration is skewness / (6 sqrt n).
    draws = np.random.default_rng(1).choice(gains, (20_000, 100)).mean(1)
    shift = scipy.stats.norm.ppf((draws < mean).mean())
    acceleration = scipy.stats.skew(gains) / 60
    ends = shift + np.array([-1.96, 1.96])
    quantiles = scipy.stats.norm.cdf(shift + ends / (1 - acceleration * ends))
    interval = interval_of(gains)
    np.testing.assert_allclose(interval, np.quantile(draws, quantiles), atol=half / 8)
    # It reaches farther up than down; the percentiles alone lie a quarter of a half lower.
    assert interval[1] - mean > 1.5 * (mean - interval[0])
    assert interval[0] - np.quantile(draws, 0.025) > half / 8


def test_intervals_of_equal_gains_are_one_point():
    assert interval_of(np.zeros(40)) == (0.0, 0.0)
    # A tenth, up to rounding.
    gains = np.where(np.arange(40) % 2, 0.1, np.nextafter(0.1, 1.0))
    assert interval_of(gains) == pytest.approx((0.1, 0.1), abs=1e-12)
    low, high = interval_of(np.arange(40) == 7)
    assert low == 0.0 and 0.05 < high < 0.2


def test_intervals_of_many_users_take_time_in_proportion():
    # 64,000 users: leaving each out once would be four billion values.
    gains = np.random.default_rng(0).normal(0.1, 1.0, 64_000)
    begin = time.perf_counter()
    low, high = interval_of(gains)
    assert time.perf_counter() - begin < 10
    half = 1.96 * gains.std() / np.sqrt(len(gains))
    np.testing.assert_allclose([low, high], gains.mean() + np.array([-half, half]), atol=half / 10)


def test_intervals_of_small_samples_cover_the_truth():
    # 95% of intervals of two normal gains hold their mean; with 1.96 it were 70%.
    rng = np.random.default_rng(0)
    gains = rng.normal(0.3, 1.0, (4000, 2))
    halves = np.array([metrics.half_interval(one) for one in gains])
    assert np.mean(np.abs(gains.mean(1) - 0.3) <= halves) == pytest.approx(0.95, abs=0.012)


def test_all_metrics_that_runs_share_stand_in_one_table(tmp_path):
    paths = [workdir(tmp_path / m, m, 0, [0.5, v]) for m, v in (("a", 0.1), ("b", 0.7))]
    file = tmp_path / "a" / "results.json"
    (row,) = json.loads(file.read_text())["rows"]
    file.write_text(
        json.dumps({"rows": [row, row | {"protocol": "neg99", "metrics": {"hr@1": 0}}]})
    )
    assert compare.shared_metrics(paths, "test") == (["ndcg@5/full"], ["hr@1"])
    rows = compare.read_rows(paths, "ndcg@5/full", "test")
    tables = {name: (rows, compare_pairs(rows)) for name in ("ndcg@5/full", "hr@5/full")}
    lines = comparison_tables.to_markdown(tables).splitlines()
    assert lines[0] == "| method | ndcg@5/full | hr@5/full | seeds |"
    assert lines[2] == "| a | 0.3000 | 0.3000 | 0 |"
    assert lines[7].startswith("| a -> b | +0.3000 [") and lines[7].count("p 0.5") == 2
    with pytest.raises(UserError, match="on validation that all runs have, found none among no"):
        compare.shared_metrics(paths, "validation")


def test_stages_stand_in_the_order_of_training(tmp_path):
    path = workdir(tmp_path / "a", "a", 0, [0.1, 0.3])
    file = tmp_path / "a" / "results.json"
    (row,) = json.loads(file.read_text())["rows"]
    stages = ["train", "rl", "control"]
    # A stage that was evaluated again stands last in results.json.
    rows = [row | {"stage": stage} for stage in ("control", "rl", "train")]
    file.write_text(json.dumps({"rows": rows}))
    assert [r.stage for r in compare.read_rows([path], "ndcg@5/full", "test")] == stages
    loop = ["align", "sft_0", "rl_0", "sft_1", "rl_1", "sft_10", "sft_only_1", "sft_only_2"]
    assert sorted(reversed(loop), key=stage_order) == loop
    thoughts = ["align", "latent_sft", "latent_rl"]
    assert sorted(reversed(thoughts), key=stage_order) == thoughts


def test_names_of_rows_are_short(tmp_path):
    long = "/very/long/path/of/somebody"
    paths = [
        workdir(tmp_path / f"r{k}", "gensar", 0, [0.1, k / 10], config={"identifiers": path})
        for k, path in enumerate((f"{long}/one/table", f"{long}/two/table", ""))
    ]
    names = [row.name for row in compare.read_rows(paths, "ndcg@5/full", "test")]
    assert names == [f"gensar identifiers={end}" for end in ("one/table", "two/table", "")]
    # Runs that differ in much are called by their folders.
    much = [
        workdir(tmp_path / f"m{k}", "m", 0, [0.1, k / 10], config={c: k for c in "abcd"})
        for k in (0, 1)
    ]
    names = [row.name for row in compare.read_rows(much, "ndcg@5/full", "test")]
    assert names == ["m m0", "m m1"]


def test_holm_by_hand():
    # Sorted .01, .02, .03 times 3, 2, 1, never falling: .03, .04, .04.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_configs_of_one_method_are_told_apart_by_what_differs(tmp_path):
    paths = [
        workdir(tmp_path / f"k{k}", "lcr_ser", 0, [0.1, k / 10], config={"model": {"k": k}})
        for k in (1, 2)
    ]
    names = [row.name for row in compare.read_rows(paths, "ndcg@5/full", "test")]
    assert names == ["lcr_ser model.k=1", "lcr_ser model.k=2"]
    named = compare.read_rows(paths, "ndcg@5/full", "test", ["one", "two"])
    assert [row.name for row in named] == ["one", "two"]
    with pytest.raises(UserError, match="a name for each of 2 workdirs, found 1"):
        compare.read_rows(paths, "ndcg@5/full", "test", ["one"])


def test_equal_rows_have_no_difference(tmp_path):
    paths = [workdir(tmp_path / m, m, 0, [0.5, 0.2, 0.1]) for m in ("a", "b")]
    (pair,) = compare_pairs(compare.read_rows(paths, "ndcg@5/full", "test"))
    assert (pair.difference, pair.low, pair.high, pair.p) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_hash": "other"}, "runs on one data_hash, found 'h'"),
        ({"candidates_seed": 1}, "runs on one candidates_seed"),
        ({"users": np.array([7, 8])}, "the same test users"),
        ({"split": "validation"}, "expected ndcg@5/full on test in the results"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused(tmp_path, changes, words):
    paths = [workdir(tmp_path / "a", "a", 0, [0.1, 0.2])]
    paths.append(workdir(tmp_path / "b", "b", 0, [0.1, 0.2], **changes))
    with pytest.raises(UserError, match=words):
        compare.read_rows(paths, "ndcg@5/full", "test")


@pytest.mark.parametrize(
    ("chosen", "names", "words"),
    [
        ("aa", "", "every workdir once, found .*a and .*a, which are one folder"),
        ("acca", "", "every workdir once, found .*c and .*c, which are one folder"),
        ("al", "", "every workdir once, found .*a and .*l, which are one folder"),
        ("ab", "", "seeds of their own, found seed 0 in .*b and in another workdir"),
        ("ac", "xy", "differ in their seed alone, found x and, of .*c, y; give them the same"),
        ("ad", "xx", "runs called x that differ in their seed alone, found other settings in .*d;"),
    ],
)
def test_runs_twice_and_names_that_do_not_fit_are_refused(tmp_path, chosen, names, words):
    for name, seed, k in (("a", 0, 1), ("b", 0, 1), ("c", 1, 1), ("d", 0, 2)):
        workdir(tmp_path / name, "lcr_ser", seed, [0.1, 0.2], config={"model": {"k": k}})
    (tmp_path / "l").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match=words):
        compare.read_rows([str(tmp_path / name) for name in chosen], "ndcg@5/full", "test", names)
    (row,) = compare.read_rows([str(tmp_path / n) for n in "ac"], "ndcg@5/full", "test", "xx")
    assert (row.name, row.seeds) == ("x", (0, 1))


@pytest.mark.parametrize(
    ("metric", "split", "words"),
    [
        ("hr@5/full", "test", r"found ndcg@5/full; pass one of these$"),
        ("hr@5/neg99", "test", r"found ndcg@5/neg99; pass one of these$"),
        ("ndcg@5/neg99", "test", r"found none; run launch.evaluate --workdir={} --protocol=neg99$"),
        ("ndcg@5/full", "validation", r"--workdir={} --protocol=full --split=validation$"),
        ("ndcg@5/search/catalogue", "test", r"found hr@1/search/catalogue; pass one of these$"),
        ("ndcg@5/search/full", "test", r"--workdir={} --task=search --protocol=full$"),
        ("ndcg@5/search/bm25_99/exact", "test", r"{} --task=search --protocol=bm25_99$"),
        ("ndcg@5/neg99/beam30", "test", r"{} --protocol=neg99$"),
    ],
)
def test_a_metric_that_is_missing_comes_with_what_helps(tmp_path, metric, split, words):
    path = workdir(tmp_path / "a", "a", 0, [0.1], config={"eval": {"metrics": ["ndcg@5"]}})
    file = tmp_path / "a" / "results.json"
    (row,) = json.loads(file.read_text())["rows"]
    searched = {"protocol": "search/catalogue", "metrics": {"hr@1/search/catalogue": 0.1}}
    file.write_text(json.dumps({"rows": [row, row | searched]}))
    with pytest.raises(UserError, match=words.format(path)):
        compare.read_rows([path], metric, split)
    # A run that is of searches alone is not evaluated on clicks.
    file.write_text(json.dumps({"rows": [row | searched]}))
    with pytest.raises(UserError, match="found hr@1/search/catalogue; pass one of these"):
        compare.read_rows([path], "hr@5/full", "test")


def test_a_workdir_whose_config_names_no_method_is_refused(tmp_path):
    path = workdir(tmp_path / "a", "a", 0, [0.1, 0.2])
    (tmp_path / "a" / "config.json").write_text(json.dumps(run_schema.stamped({})))
    with pytest.raises(UserError, match="names its method"):
        compare.read_rows([path], "ndcg@5/full", "test")


def test_a_metric_needs_its_protocol():
    with pytest.raises(UserError, match="with its protocol"):
        compare.read_rows([], "ndcg@5", "test")


def test_strata_show_gains_over_the_first_row():
    base = np.array([0.0, 0.0, 1.0, 1.0])
    rows = [
        Row("a", (0,), (0.5,), base[None], np.arange(4)),
        Row("b", (0,), (0.75,), np.array([[1.0, 0.0, 1.0, 1.0]]), np.arange(4)),
    ]
    groups = {
        "noise 0": np.array([True, True, False, False]),
        "noise 1": ~np.array([1, 1, 0, 0], bool),
    }
    table = comparison_tables.strata_to_markdown(rows, groups, "ndcg@5/neg99").splitlines()
    assert "noise 0 (2 users)" in table[0]
    # Gains 1 and 0: mean .5, deviation sqrt(.5), half width 12.7062 * sqrt(.5) / sqrt(2) = 6.3531.
    assert table[3] == "| b | 0.5000 (+0.5000 ± 6.3531) | 1.0000 (+0.0000 ± 0.0000) |"
    # t = .5 / (sqrt(.5) / sqrt(2)) = 1 with one degree of freedom: p .5, of two tests 1.
    assert table[5:8] == [
        "| p of these checkpoints | noise 0 | noise 1 |",
        "|---|---:|---:|",
        "| b | 1 | 1 |",
    ]


def test_a_setting_sets_runs_apart_and_no_setting_is_left_out(tmp_path):
    paths = [
        workdir(tmp_path / f"a{i}", "crs", i, [0.0, 1.0], config={"semantic_ids": ids})
        for i, ids in enumerate(({"extend": ""}, {"extend": ""}, {"extend": "/w"}, {}))
    ]
    rows = compare.read_rows(paths, "ndcg@5/full", "test")
    assert [row.seeds for row in rows] == [(0, 1), (2,), (3,)]
    before = Workdir(paths[0]).read_config()
    check_workdir(paths[0], before)
    with pytest.raises(UserError, match=r"semantic_ids\.extend was '' and is '/w'"):
        check_workdir(paths[0], before | {"semantic_ids": {"extend": "/w"}})


@pytest.mark.parametrize("old", [0, 1])
def test_a_run_of_another_schema_is_refused(tmp_path, old):
    paths = [workdir(tmp_path / f"a{i}", "sasrec", i, [0.0, 1.0]) for i in range(2)]
    (tmp_path / f"a{old}" / "config.json").write_text('{"method": "sasrec"}')
    for read in (
        lambda: compare.read_rows(paths, "ndcg@5/full", "test"),
        lambda: compare.shared_metrics(paths, "test"),
    ):
        with pytest.raises(UserError, match=rf"a{old}/config\.json, found one written by a"):
            read()


def test_queries_strata_are_of_searches(tmp_path):
    run = workdir(tmp_path / "a", "a", 0, [0.1])
    with pytest.raises(UserError, match="a --metric of searches for --strata=queries, found one"):
        strata.of("queries", run, "test", "full", 1)


def test_how_runs_were_evaluated_does_not_set_them_apart(tmp_path):
    paths = [
        workdir(tmp_path / f"a{i}", "sasrec", i, [0.0, 1.0], config={"eval": {"protocols": p}})
        for i, p in enumerate((["full"], ["neg99", "full"]))
    ]
    (row,) = compare.read_rows(paths, "ndcg@5/full", "test")
    assert row.seeds == (0, 1)


def test_popularity_strata_split_targets_by_their_clicks_in_training():
    trained = np.array([1, 1, 1, 2, 3, 4])
    strata_of = strata.popularity_of(np.array([1, 2, 5]), trained, num_items=5)
    # A fifth of five items: item 1 alone is the head; nobody clicked item 5 in training.
    assert {label: chosen.tolist() for label, chosen in strata_of.items()} == {
        "head": [True, False, False],
        "tail": [False, True, False],
        "never clicked": [False, False, True],
    }


def test_the_trade_off_has_a_point_a_method(tmp_path):
    points = {"a": (0.1, 0.3), "b": (0.2, 0.1)}
    compare.draw_trade_off(points, "hr@10/full", "hr@10/search/full", str(tmp_path / "a.png"))
    image = matplotlib.image.imread(tmp_path / "a.png")
    assert image.shape[:2] == (720, 960) and image[..., :3].std() > 0.01


def test_the_trade_off_finds_rows_whose_stages_differ(tmp_path):
    path = workdir(tmp_path / "a", "a", 0, [0.1, 0.3])
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    (row,) = results["rows"]
    searched = {"protocol": "search/full", "metrics": {"ndcg@5/search/full": 0.2}}
    results["rows"] += [row | {"stage": "rl"}, row | searched]
    (tmp_path / "a" / "results.json").write_text(json.dumps(results))
    figure = str(tmp_path / "f.png")
    metric, against = "ndcg@5/full", "ndcg@5/search/full"
    rows = compare.read_rows([path], metric, "test")
    assert [row.name for row in rows] == ["a (train)", "a (rl)"]
    table = compare.trade_off(rows, [path], "test", metric, against, [], figure).splitlines()
    assert table[2:] == ["| a (train) | 0.2000 | 0.2000 |"]


def test_hops_strata_are_of_the_sample_that_has_them(tmp_path):
    config = lcr_ser_qilin.get_config()
    config.cache_dir = str(tmp_path / "cache")
    config.on_sample.users = 40
    config.on_sample.hops = True
    run = tmp_path / "run"
    open_workdir(str(run), config.to_dict(), Dataset(config).log.hash)
    masks = strata.hops_strata(str(run), "test")
    assert list(masks) == [f"{n} hops" for n in range(5)]
    assert (np.sum(list(masks.values()), 0) == np.ones(40)).all()
    config.on_sample.hops = False
    (run / "config.json").write_text(json.dumps(run_schema.stamped(config.to_dict())))
    with pytest.raises(UserError, match=r"on_sample.hops=True"):
        strata.hops_strata(str(run), "test")
