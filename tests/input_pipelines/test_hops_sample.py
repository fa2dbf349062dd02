"""The sample of 0 to 4 hops: every target is as many links away as it says."""

import numpy as np
import pytest

from core.errors import UserError
from input_pipelines import prepare
from input_pipelines.sample import generator, hops
from input_pipelines.splits import check_leakage, split_log

USERS = 150


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("hops"))
    raw = generator.ensure_sample(
        folder, num_users=USERS, seed=1, shuffle_searches=False, hops=True
    )
    log, _ = prepare.prepare_log("qilin", raw, folder, {"segmenter": "characters"})
    splits = split_log(log, "leave_one_out")
    check_leakage(log, splits)
    return log, splits


def words_of(log, search):
    return " ".join(log.query(search))


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_links_lead_from_the_last_search_to_the_target(world, part):
    log, splits = world
    examples = getattr(splits, part)
    counts = hops.hops(log, examples)
    assert len(counts) == len(examples) >= USERS
    for row in range(len(examples)):
        target = str(log.item_ids[log.rec_items[examples.target_row[row]]])
        links = {}
        for search in range(log.search_offsets[examples.user[row]], examples.search_end[row]):
            clicked = log.click_items[log.click_offsets[search] : log.click_offsets[search + 1]]
            assert len(clicked) <= 1
            if len(clicked):
                assert words_of(log, search) not in links, "no note is in two chains of a user"
                links[words_of(log, search)] = f"topic{int(log.item_ids[clicked[0]]) - 100}"
        word = words_of(log, examples.search_end[row] - 1)
        for _ in range(counts[row]):
            word = links.pop(word)
        assert word == f"topic{target}" and word not in links
    assert np.bincount(counts, minlength=5).min() > 0.05 * len(counts) and counts.max() == 4


def test_it_is_sample_data_of_its_own_name(world, tmp_path):
    assert world[0].is_sample
    paths = [
        generator.ensure_sample(
            str(tmp_path), num_users=4, seed=1, shuffle_searches=False, hops=hops
        )
        for hops in (False, True, True)
    ]
    assert paths[0] != paths[1] == paths[2]


def test_its_searches_cannot_be_shuffled(tmp_path):
    with pytest.raises(UserError, match=r"hops and on_sample.shuffle_searches"):
        generator.ensure_sample(
            str(tmp_path), num_users=4, seed=1, shuffle_searches=True, hops=True
        )
