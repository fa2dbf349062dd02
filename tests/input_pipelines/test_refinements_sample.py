"""The sample of refinements: a part of the chain tells nothing; the bounds are what they say."""

import collections
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from core.errors import UserError
from input_pipelines import prepare
from input_pipelines.sample import generator, refinements
from input_pipelines.search_task import held_out_searches, training_searches
from input_pipelines.splits import check_leakage, split_log

USERS = 400
STYLES, FACTS = len(refinements.STYLES), refinements.FACTS
ITEMS = STYLES * len(refinements.TOPICS) + len(refinements.CARDS)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("refinements"))
    raw = generator.ensure_sample(
        folder, num_users=USERS, seed=1, shuffle_searches=False, refinements=True
    )
    log, _ = prepare.prepare_log("qilin", raw, folder, {"segmenter": "characters"})
    splits = split_log(log, "by_user")
    check_leakage(log, splits)
    return log, splits, raw


def _chained(told):
    """Follows the table from the first style, one word at a time, [E, FACTS] -> [E]."""
    style, table = told[:, 0], refinements.Structure().table()
    for step in range(1, FACTS):
        style = table[step - 1, told[:, step], style]
    return style


def _clicked(log, searches):
    notes = np.array([int(log.item_ids[item]) for item in searches.item]) - len(refinements.CARDS)
    return np.divmod(notes, STYLES)


def test_the_item_follows_from_the_whole_chain(world):
    log, splits, raw = world
    searches = training_searches(log, splits)
    assert len(searches) == 3 * USERS * 8 // 10
    topics, told = refinements.facts(log, searches)
    clicked_topics, styles = _clicked(log, searches)
    assert (clicked_topics == topics).all()
    by_rule = refinements.structure_of(raw).by_rule
    assert (_chained(told) == styles).mean() == pytest.approx(
        by_rule + (1 - by_rule) / STYLES, abs=0.04
    )


def test_whoever_lacks_one_fact_guesses():
    # Whatever the other facts are, each value of the lacking one makes another style.
    for lacking in range(FACTS):
        for others in itertools.product(range(STYLES), repeat=FACTS - 1):
            told = np.insert(np.tile(others, (STYLES, 1)), lacking, np.arange(STYLES), axis=1)
            assert sorted(_chained(told)) == list(range(STYLES))
    # The order counts: no word's turn can be added up with another's.
    first, second, *_ = refinements.Structure().table()
    assert (second[:, first].swapaxes(0, 1) != first[:, second]).any()


def test_bounds_are_those_of_counting(world):
    log, splits, raw = world
    searches = held_out_searches(log, splits, "test")
    structure = refinements.structure_of(raw)
    known = refinements.KNOWN
    bounds = {name: refinements.ranked(log, searches, structure, name) for name in known}
    assert bounds["nothing"]["hr@1"] == pytest.approx(1 / (ITEMS - len(refinements.CARDS)))
    guess = (1 / np.log2(np.arange(2, STYLES + 2))).mean()
    for name, bound in bounds.items():
        if name not in ("nothing", "all"):
            assert bound["hr@1"] == pytest.approx(1 / STYLES), name
            assert bound["ndcg@10"] == pytest.approx(guess), name
    _, told = refinements.facts(log, searches)
    follows = (_chained(told) == _clicked(log, searches)[1]).mean()
    assert bounds["all"]["hr@1"] == pytest.approx(follows)
    assert bounds["all"]["hr@1"] > 0.8 and bounds["all"]["hr@5"] == 1.0


def test_a_click_is_drawn_from_what_is_known(world):
    log, splits, raw = world
    searches = held_out_searches(log, splits, "validation")
    for known in refinements.KNOWN:
        scores = refinements.probabilities(log, searches, refinements.structure_of(raw), known)
        np.testing.assert_allclose(scores.sum(1), 1.0, atol=1e-9)
        assert not scores[:, 0].any()


def test_the_teacher_tells_each_search_once_and_without_errors(world):
    _, _, raw = world
    with open(os.path.join(raw, refinements.TRACES), encoding="utf-8") as file:
        traces = [json.loads(line) for line in file]
    keys = collections.Counter((trace["user"], trace["query"], trace["item"]) for trace in traces)
    assert len(traces) == 3 * USERS and max(keys.values()) == 1
    table = refinements.Structure().table()
    for trace in traces:
        said = trace["reasoning"].split()
        assert said[1::3] == list(refinements.STEPS)
        assert said[2::3] == trace["query"].split()[1:]
        styles = [refinements.STYLES.index(style) for style in said[::3]]
        for step, word in enumerate(said[2::3]):
            turned = table[step, refinements.WORDS[step].index(word), styles[step]]
            assert turned == styles[step + 1]


def test_the_command_prints_the_bounds():
    command = [sys.executable, "-m", "input_pipelines.sample.refinements", "--users=60"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == f"6 searches of test users; items {ITEMS}"
    assert [line[:16].strip() for line in lines[2:]] == list(refinements.KNOWN)
    assert lines[4].split()[2] == "0.2500"


def test_it_is_a_sample_of_its_own_and_cannot_be_shuffled(tmp_path):
    paths = [
        generator.ensure_sample(
            str(tmp_path), num_users=4, seed=1, shuffle_searches=False, refinements=chosen
        )
        for chosen in (False, True, True)
    ]
    assert paths[0] != paths[1] == paths[2]
    for other in ("shuffle_searches", "hops"):
        asked = {"shuffle_searches": False, "refinements": True} | {other: True}
        with pytest.raises(UserError, match=r"on_sample\.refinements"):
            generator.ensure_sample(str(tmp_path), num_users=4, seed=1, **asked)
