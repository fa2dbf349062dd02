"""The sample of two facts: neither alone tells the item, and the bounds are what they say."""

import subprocess
import sys

import numpy as np
import pytest

from core.errors import UserError
from input_pipelines import prepare
from input_pipelines.sample import generator, two_facts
from input_pipelines.search_task import held_out_searches, training_searches
from input_pipelines.splits import check_leakage, split_log

USERS = 300
STYLES, ITEMS = len(two_facts.STYLES), len(two_facts.STYLES) * len(two_facts.TOPICS)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("two_facts"))
    raw = generator.ensure_sample(
        folder, num_users=USERS, seed=1, shuffle_searches=False, two_facts=True
    )
    log, _ = prepare.prepare_log("qilin", raw, folder, {"segmenter": "characters"})
    splits = split_log(log, "by_user")
    check_leakage(log, splits)
    return log, splits, two_facts.structure_of(raw)


def test_the_item_follows_from_topic_and_style_and_from_neither_alone(world):
    log, splits, structure = world
    searches = training_searches(log, splits)
    assert len(searches) == 3 * USERS * 8 // 10
    topics, styles = two_facts.facts(log, searches)
    clicked = np.array([int(log.item_ids[item]) for item in searches.item])
    # A search leads to its own topic; the model is the table's as often as the rule says.
    assert (clicked // STYLES - 1 == topics).all()
    models = clicked % STYLES
    followed = (structure.models()[topics, styles] == models).mean()
    assert abs(followed - (structure.by_rule + (1 - structure.by_rule) / STYLES)) < 0.04
    # Every model of a topic is that of one style.
    assert (np.sort(structure.models(), 1) == np.arange(STYLES)).all()
    # A style's models differ by topic: no model is worth a guess.
    assert np.bincount(models, minlength=STYLES).max() < 0.4 * len(models)


def test_the_history_tells_the_style_last(world):
    log, splits, _ = world
    for examples in (training_searches(log, splits), held_out_searches(log, splits, "test")):
        _, styles = two_facts.facts(log, examples)
        asked = [log.query(int(end) - 1)[0] for end in examples.search_end]
        assert asked == [two_facts.STYLES[style] for style in styles]


def test_bounds_are_those_of_counting(world):
    log, splits, structure = world
    searches = held_out_searches(log, splits, "test")
    bounds = {known: two_facts.ranked(log, searches, structure, known) for known in two_facts.KNOWN}
    # One of all items, whatever is asked; one of a topic's; the rule.
    assert bounds["nothing"]["hr@1"] == pytest.approx(1 / ITEMS)
    assert bounds["the query"]["hr@1"] == pytest.approx(1 / STYLES)
    assert bounds["the query"]["ndcg@10"] == pytest.approx(
        (1 / np.log2(np.arange(2, STYLES + 2))).mean(), abs=1e-6
    )
    topics, styles = two_facts.facts(log, searches)
    clicked = np.array([int(log.item_ids[item]) for item in searches.item])
    follows = structure.models()[topics, styles] == clicked % STYLES
    assert bounds["both"]["hr@1"] == pytest.approx(follows.mean())
    # The style alone: its items, one a topic.
    assert bounds["the purchase"]["hr@1"] == pytest.approx(
        follows.mean() / len(two_facts.TOPICS), abs=0.03
    )
    assert bounds["both"]["ndcg@10"] > bounds["the query"]["ndcg@10"] + 0.2


def test_a_click_is_drawn_from_what_both_facts_tell(world):
    log, splits, structure = world
    searches = held_out_searches(log, splits, "validation")
    for known in two_facts.KNOWN:
        scores = two_facts.probabilities(log, searches, structure, known)
        np.testing.assert_allclose(scores.sum(1), 1.0, atol=1e-9)
        assert not scores[:, 0].any()


def test_the_command_prints_the_bounds():
    command = [sys.executable, "-m", "input_pipelines.sample.two_facts", "--users=60"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == "6 searches of test users; items 28"
    assert [line[:12].strip() for line in lines[2:]] == list(two_facts.KNOWN)
    assert lines[3].split()[2] == "0.2500"


def test_it_is_a_sample_of_its_own_and_cannot_be_shuffled(tmp_path):
    paths = [
        generator.ensure_sample(
            str(tmp_path), num_users=4, seed=1, shuffle_searches=False, two_facts=chosen
        )
        for chosen in (False, True, True)
    ]
    assert paths[0] != paths[1] == paths[2]
    for other in ("shuffle_searches", "hops"):
        asked = {"shuffle_searches": False, "two_facts": True} | {other: True}
        with pytest.raises(UserError, match=r"on_sample\.two_facts"):
            generator.ensure_sample(str(tmp_path), num_users=4, seed=1, **asked)
