"""Tests of methods: seeds and users at random, against tests worked out elsewhere."""

import numpy as np
import pytest
import scipy.stats

from studies import comparison_tables
from studies.method_tests import compare_methods, hedges_g
from studies.statistics import Row, compare_pairs, effect_text, holm, p_text

RNG = np.random.default_rng(0)


def row(name, values, stage="train"):
    values = np.asarray(values, np.float64)
    seeds = tuple(range(len(values)))
    users = np.arange(values.shape[1])
    return Row(name, seeds, tuple(values.mean(1)), values, users, name, stage, name)


def test_where_users_do_not_matter_it_is_welchs_test():
    first, second = RNG.normal(size=3), RNG.normal(1, 2, size=4)
    test = compare_methods(np.tile(first[:, None], 20), np.tile(second[:, None], 20))
    welch = scipy.stats.ttest_ind(second, first, equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert test.p == pytest.approx(welch.pvalue) and test.degrees == pytest.approx(welch.df)
    assert (test.low, test.high) == pytest.approx((interval.low, interval.high))
    assert test.difference == pytest.approx(second.mean() - first.mean())
    assert test.seeds == (3, 4)


def test_where_seeds_do_not_matter_it_is_the_paired_test_over_users():
    first, second = RNG.uniform(size=(2, 40))
    expected = scipy.stats.ttest_rel(second, first)
    # Fitted methods: one run says what any would; the same run three times says no more.
    for copies in (1, 3):
        values = [np.tile(one, (copies, 1)) for one in (first, second)]
        test = compare_methods(*values, (True, True))
        assert test.p == pytest.approx(expected.pvalue) and test.degrees == pytest.approx(39)
        assert test.seeds == (1, 1) and test.effect is None
    assert compare_methods(first[None], second[None]) is None
    # What has chance in it after all is no fitted method.
    assert compare_methods(np.stack([first, second]), second[None], (True, True)).seeds == (2, 1)


def test_a_fitted_method_is_a_constant_beside_seeds():
    # Means 1, 2, 3 over seeds against 0: t = 2 / (1 / sqrt(3)) with two degrees of freedom.
    trained = np.tile(np.array([[1.0], [2.0], [3.0]]), 10)
    test = compare_methods(np.zeros((1, 10)), trained, (True, False))
    assert test.p == pytest.approx(2 * scipy.stats.t.sf(2 * np.sqrt(3), 2))
    # g: 2 deviations; with two degrees of freedom times Gamma(1) / Gamma(1/2) = .5642.
    assert test.effect == pytest.approx(2 * 0.5642, abs=1e-4)
    assert compare_methods(np.zeros((1, 10)), trained[:1], (True, False)) is None


def test_equal_numbers_do_not_differ_and_one_user_tells_nothing():
    same = np.tile(RNG.uniform(size=12), (2, 1))
    test = compare_methods(same, same)
    assert (test.difference, test.low, test.high, test.p) == (0.0, 0.0, 0.0, 1.0)
    assert compare_methods(same[:, :1], same[:, :1]) is None


def test_components_by_hand():
    # Two seeds, two users. Means over seeds .5, 1.5 and 0, 0: variance .5 over 2 seeds = .25.
    # Users' differences -2, 0 (variance 2); residuals of the first are +-.5 (sum of squares 1,
    # one degree of freedom, over 2 seeds = .5), of the second 0: (2 - .5) / 2 users = .75.
    first = np.array([[1.0, 0.0], [3.0, 0.0]])
    second = np.zeros((2, 2))
    test = compare_methods(first, second)
    assert test.difference == -1.0
    # Seeds .25 with 1, users .75 with 1: degrees (.25 + .75)^2 / (.0625 + .5625) = 1.6.
    assert test.degrees == pytest.approx(1.6)
    assert test.p == pytest.approx(2 * scipy.stats.t.sf(1.0, 1.6))


def test_hedges_g_by_hand():
    # Means 1 and 4, deviation 1 with 4 degrees of freedom: Gamma(2) / (sqrt(2) Gamma(1.5)) = .7979.
    assert hedges_g(np.array([0.0, 1.0, 2.0]), np.array([3.0, 4.0, 5.0])) == pytest.approx(
        3 * 0.7979, abs=1e-3
    )
    assert hedges_g(np.array([1.0, 1.0]), np.array([2.0, 2.0])) is None
    assert hedges_g(np.array([1.0]), np.array([2.0, 3.0])) is None


def test_both_tests_stand_in_the_table_and_methods_come_first():
    users = RNG.uniform(size=60)
    noise = np.array([[0.05], [-0.02], [0.01]])
    rows = [
        row("floor", users[None] / 2, "fit"),
        row("a", users + noise),
        row("b", users + 0.02 - noise),
    ]
    # One run of what is fitted is enough, and shares a seed.
    pairs = compare_pairs(rows)
    raw = [pair.of_methods.p for pair in pairs]
    assert [pair.of_methods.p_holm for pair in pairs] == pytest.approx(holm(raw))
    # 60 users see .02 in each of them; three seeds that differ by more do not.
    assert pairs[2].p < 1e-6 and pairs[2].of_methods.p > 0.3
    assert pairs[2].effect is None and pairs[0].effect > 1
    lines = comparison_tables.to_markdown({"ndcg@5/full": (rows, pairs)}).splitlines()
    heads = [line for line in lines if line.startswith("| of ")]
    assert heads == [
        "| of the methods: second minus first | ndcg@5/full | seeds of each |",
        "| of these checkpoints: second minus first | ndcg@5/full | seeds | effect d |",
    ]
    of_methods, of_checkpoints = (line for line in lines if line.startswith("| a -> b |"))
    assert "p 0." in of_methods and ", g " in of_methods and of_methods.endswith("| 3 and 3 |")
    assert of_checkpoints.endswith("| 0, 1, 2 | none |")
    assert "With one seed" not in "\n".join(lines)


def test_tables_print_no_p_of_0_and_no_effect_of_hundreds():
    ps = [p_text(p) for p in (0.0, 1e-300, 9.9e-5, 1e-4, 0.0123, 1.0)]
    assert ps == ["<1e-4"] * 3 + ["0.0001", "0.012", "1"]
    effects = [effect_text(g) for g in (None, -150.0, -9.6, 0.0, 1.234, 10.1)]
    assert effects == ["", "<-10", "-9.6", "+0", "+1.2", ">10"]
    # Seeds that hardly differ, of methods that do.
    users, seeds = RNG.uniform(size=60), np.array([[0.0], [1e-4], [2e-4]])
    rows = [row("a", users / 2 + seeds), row("b", users / 2 + 0.3 + seeds)]
    lines = comparison_tables.to_markdown({"ndcg@5/full": (rows, compare_pairs(rows))}).splitlines()
    assert any(line.endswith("p <1e-4, g >10 | 3 and 3 |") for line in lines)


def test_with_one_seed_methods_cannot_be_compared():
    one, two = RNG.uniform(size=(1, 30)), RNG.uniform(size=(2, 30))
    rows = [row("a", one), row("b", two)]
    (pair,) = compare_pairs(rows)
    assert pair.of_methods is None and pair.p_holm == pair.p
    text = comparison_tables.to_markdown({"hr@1/full": (rows, [pair])})
    assert "of the methods:" not in text and "| of these checkpoints:" in text
    assert "With one seed of a no test of methods is possible" in text


def null_runs(seeds, of_seeds, of_interaction, count=1000, users=200):
    """Returns how often methods without a difference are called different: by both tests."""
    rng = np.random.default_rng(7)
    wrong = np.zeros(2)
    for _ in range(count):
        of_users = rng.normal(0.4, 0.3, users)
        values = [
            of_users
            + of_interaction * rng.normal(size=users)
            + of_seeds * rng.normal(size=(number, 1))
            + 0.2 * rng.normal(size=(number, users))
            for number in seeds
        ]
        test = compare_methods(*values)
        paired = scipy.stats.ttest_rel(values[0].mean(0), values[1].mean(0)).pvalue
        wrong += [test.p < 0.05, paired < 0.05]
    return wrong / count


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(2, 2), (3, 3), (5, 5), (3, 5)], ids=str)
@pytest.mark.parametrize("of_seeds", [0.0, 0.02])
@pytest.mark.parametrize("of_interaction", [0.0, 0.15])
def test_null_runs_are_called_different_in_one_of_twenty(seeds, of_seeds, of_interaction):
    of_methods, of_checkpoints = null_runs(seeds, of_seeds, of_interaction)
    # Four standard errors of 1,000 runs are .028; fewer than one in twenty is no harm.
    assert 0.01 < of_methods < 0.05 + 0.028
    if of_seeds and not of_interaction:
        assert of_checkpoints > 0.2
