"""The embedded sample: its form, its truth, and the control without a gain."""

import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from core import metrics
from core.errors import UserError
from input_pipelines import candidates, prepare
from input_pipelines.sample import generator, truth
from input_pipelines.splits import check_leakage, split_log


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    def make(**settings):
        folder = tmp_path_factory.mktemp("sample")
        raw = generator.ensure_sample(str(folder), num_users=400, seed=1, **settings)
        log, directory = prepare.prepare_log("qilin", raw, str(folder), {"segmenter": "characters"})
        splits = split_log(log, "leave_one_out")
        check_leakage(log, splits)
        lists = candidates.evaluation_candidates(log, splits, "test", "neg99", 0, directory)
        return truth.Truth(raw), log, splits.test, lists, raw

    return make(shuffle_searches=False), make(shuffle_searches=True)


def ndcg(world, use_search):
    known, log, test, lists, _ = world
    scores = truth.bayes_scores(known, log, test, lists, use_search=use_search)
    return truth.truth_metric(scores)


def test_noise_share_counts_the_searches_that_announce_nothing(prepared):
    known, log, test, _, _ = prepared[0]
    share = truth.noise_share(log, test)
    for row, user in enumerate(test.user):
        start, end = log.search_offsets[user], test.search_end[row]
        texts = [
            {str(log.words[w]) for w in log.word_ids[log.word_offsets[i] : log.word_offsets[i + 1]]}
            for i in range(start, end)
        ]
        noise = [bool(text & set(generator.NOISE_WORDS)) for text in texts]
        expected = np.mean(noise) if noise else np.nan
        np.testing.assert_equal(share[row], expected)
        if str(log.user_ids[user]) in known.all_noise_users and noise:
            assert share[row] == 1.0
    assert ((share > 0) & (share < 1)).any()


def test_searches_are_worth_a_gap_and_only_to_those_who_search_before_they_click(prepared):
    world = prepared[0]
    known, log, test, _, _ = world
    seeing, blind = ndcg(world, True), ndcg(world, False)
    assert seeing.mean() - blind.mean() > 0.12
    noise = np.array([str(u) in known.all_noise_users for u in log.user_ids[test.user]])
    assert 0.1 < noise.mean() < 0.3
    assert abs(seeing[noise].mean() - blind[noise].mean()) < 0.03
    assert seeing.mean() < 0.9, "there is head-room for nobody above the truth"


def test_shuffled_searches_are_worth_nothing(prepared):
    shuffled = prepared[1]
    seeing, blind = ndcg(shuffled, True), ndcg(shuffled, False)
    # The ranker that believes them does worse than the one that does not look.
    assert seeing.mean() < blind.mean() - 0.1
    np.testing.assert_allclose(blind.mean(), ndcg(prepared[0], False).mean(), atol=0.06)


def test_it_says_that_it_is_sample_data(prepared):
    assert all(world[1].is_sample for world in prepared)


def test_its_files_have_qilins_columns_and_traps(prepared):
    raw = prepared[0][4]
    rec = pq.read_table(f"{raw}/recommendation_train").to_pylist()
    search = pq.read_table(f"{raw}/search_train").to_pylist()
    stamps = [d["request_timestamp"] for r in rec for d in r["rec_result_details_with_idx"]]
    seconds = [d["search_timestamp"] for r in search for d in r["search_result_details_with_idx"]]
    assert min(stamps) > 1e12 and max(seconds) < 1e11, "milliseconds against seconds"
    page_times = [d["page_time"] for r in rec for d in r["rec_result_details_with_idx"]]
    assert any(np.isnan(page_times)) and -1.0 in page_times
    notes = [[d["note_idx"] for d in r["rec_result_details_with_idx"]] for r in rec]
    assert any(len(set(n)) < len(n) for n in notes), "repeated impressions"


def test_it_is_deterministic(tmp_path):
    for name in "ab":
        generator.write_sample(str(tmp_path / name), num_users=20, seed=3)
    for path in sorted((tmp_path / "a").rglob("*.parquet")):
        twin = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == twin.read_bytes()
    generator.write_sample(str(tmp_path / "c"), num_users=20, seed=4)
    assert json.loads((tmp_path / "c" / "truth.json").read_text())["seed"] == 4


def test_the_filter_agrees_with_enumeration():
    """Two topics, two brands, two items a cell: sum over every secret by hand."""
    structure = generator.Structure(topics=2, brands=2, items_per_cell=2, change=0.3, all_noise=0.4)
    topic, brand = structure.topic_probabilities(), structure.brand_probabilities()
    weight = structure.cell_weights()
    clicks = [(0, 0, 0), (1, 0, 1), (1, 1, 0)]
    announced = [0, None, 1, None]  # informative queries before each click and the next

    def item_probability(s, b, cell, unseen):
        mass = {c: topic[s, c[0]] * brand[b, c[1]] * weight[c[2]] for c in unseen}
        return mass.get(cell, 0.0) / sum(mass.values())

    everything = set(itertools.product(range(2), repeat=3))

    def enumerate_next(use_search):
        total = dict.fromkeys(everything - set(clicks), 0.0)
        for noise, b in itertools.product((False, True), range(2)):
            prior = (0.4 if noise else 0.6) * 0.5
            for path in itertools.product(range(2), repeat=4):
                p = prior
                for n, s in enumerate(path):
                    change = 1.0 if n == 0 else 0.3
                    stay = (1 - change) * (n > 0 and path[n - 1] == s)
                    if use_search and not noise:
                        silent = announced[n] is None
                        p *= stay if silent else change * 0.5 * (s == announced[n])
                    elif use_search and announced[n] is not None:
                        p = 0.0  # all-noise users announce nothing
                    else:
                        p *= stay + change * 0.5
                for n, cell in enumerate(clicks):
                    p *= item_probability(path[n], b, cell, everything - set(clicks[:n]))
                for cell in total:
                    total[cell] += p * item_probability(path[3], b, cell, set(total))
        scale = sum(total.values())
        return {cell: value / scale for cell, value in total.items()}

    for use_search in (True, False):
        belief = truth.Filter(structure, use_search)
        for n, cell in enumerate(clicks):
            belief.before_click(n == 0, announced[n])
            belief.observe(*cell)
        belief.before_click(False, announced[3])
        probabilities = belief.next_item()
        for cell, value in enumerate_next(use_search).items():
            assert probabilities[cell] / probabilities.sum() == pytest.approx(value, abs=1e-9)


def test_truth_scores_are_ranked_with_ties():
    scores = np.zeros((1, 100))
    assert truth.truth_metric(scores, "hr@10")[0] == pytest.approx(0.1)
    assert metrics.full_name("hr@10", "neg99") == "hr@10/neg99"


@pytest.mark.parametrize("hops", [False, True])
def test_a_cache_that_cannot_be_written_is_the_users_mistake(hops):
    with pytest.raises(UserError, match=r"/dev/null/x/sample-.* found Not a directory; free"):
        generator.ensure_sample(
            "/dev/null/x", num_users=20, seed=0, shuffle_searches=False, hops=hops
        )
