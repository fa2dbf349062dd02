"""GenSAR's prompts and targets: what they hold, and what of the future they do not."""

import numpy as np
import pytest
from test_gensar import USERS, changed, small_config, table_of

from experiments.resolve import resolve
from gensar_jax.examples import GenSARExamples
from input_pipelines import histories
from input_pipelines.dataset import Dataset


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_config(tmp_path_factory)


@pytest.fixture(scope="module")
def data(config):
    return Dataset(resolve(config))


@pytest.fixture(scope="module")
def examples(config, data):
    return GenSARExamples(resolve(config), data, table_of(data))


def holds(tokens, identifier):
    width = len(identifier)
    return any(tokens[i : i + width] == identifier for i in range(len(tokens) - width + 1))


def test_no_training_prompt_or_target_holds_a_held_out_interaction(examples, data):
    """Every example of every task, against the items and queries of validation and test."""
    log = data.log
    rows = [data.splits.validation.target_row, data.splits.test.target_row]
    held_out = np.unique(np.asarray(log.rec_items)[np.concatenate(rows)])
    assert len(held_out) == 2 * USERS
    wanted = {
        tuple(examples.prompts.catalogue.identifier(int(item), kind))
        for item in held_out
        for kind in ("semantic", "collaborative")
    }
    width = examples.identifiers["semantic"].shape[1]
    sizes = examples.sizes
    assert set(sizes) == set(examples.mixture.tasks)
    numbers = data.log.item_ids.tolist()
    assert not {numbers.index("3"), numbers.index("5")} & set(examples.described)
    # Clicks 2..6 of 12 users, and their searches, the first of them with an empty history.
    assert sizes["nrip"] == 5 * USERS and sizes["nsip"] == sizes["nsqp"] == 6 * USERS
    assert sizes["nrip"] == len(data.splits.train) and sizes["nsip"] == len(examples.searches)
    assert sizes["desc2id"] == sizes["id2desc"] == 2 * len(examples.described)
    assert sizes["pseudo_query"] == len(examples.query_pairs)
    texts = []
    for task, size in sizes.items():
        for row in range(size):
            example = examples.training_example(task, row, row % 10)
            for tokens in example:
                parts = {tuple(tokens[i : i + width]) for i in range(len(tokens))}
                assert not parts & wanted, (task, row)
                texts.append(examples.vocabulary.text_of(tokens))
    assert not any("heldout" in text for text in texts)
    # What is looked for can be found: test prompts hold the validation event, both faces.
    clicks = data.splits.test
    prompt = examples.evaluation_inputs(clicks)[0].tolist()
    item = int(log.rec_items[clicks.target_row[0] - 1])
    assert holds(prompt, examples.prompts.catalogue.identifier(item, "collaborative"))
    assert holds(prompt, examples.prompts.catalogue.identifier(item, "semantic"))
    assert "heldoutquery" in examples.vocabulary.text_of(prompt)
    assert any("red tea kind" in text for text in texts) and any("model" in t for t in texts)


def test_a_search_prompt_holds_its_query_and_no_face_of_its_event(examples, data):
    searches = data.examples("search", "test")
    assert len(searches) == USERS
    prompts = examples.evaluation_inputs(searches)
    for row in range(USERS):
        prompt = prompts[row].tolist()
        text = examples.vocabulary.text_of(prompt)
        query = histories.query_text(data.log, int(searches.target_row[row]))
        assert text.count(query) == 1 and text.index(query) > text.index("search query is")
        for kind in ("semantic", "collaborative"):
            own = examples.prompts.catalogue.identifier(int(searches.item[row]), kind)
            assert not holds(prompt, own)


def test_controls_take_the_query_or_the_history_out_of_search_prompts(config, data):
    searches = data.examples("search", "test")
    recommended, texts = {}, {}
    for control in ("nothing", "query", "history"):
        other = resolve(changed(config, prompts__search_without=control))
        blind = GenSARExamples(other, data, table_of(data))
        prompts = blind.evaluation_inputs(searches)
        texts[control] = [blind.vocabulary.text_of([t for t in row if t]) for row in prompts]
        trained = blind.training_example("nsip", 3, 0).inputs
        texts[control].append(blind.vocabulary.text_of(trained))
        recommended[control] = blind.training_example("nrip", 3, 0)
    queries = [histories.query_text(data.log, int(row)) for row in searches.target_row]
    for row, query in enumerate(queries):
        assert query in texts["nothing"][row] and "<R_I>" in texts["nothing"][row]
        assert query not in texts["query"][row] and "<R_I>" in texts["query"][row]
        assert query in texts["history"][row] and "<R_I>" not in texts["history"][row]
    assert len({texts[control][-1] for control in texts}) == 3, "training prompts too"
    assert recommended["nothing"] == recommended["query"] == recommended["history"]


def test_a_prompt_too_long_loses_its_oldest_events_whole(config, data):
    limit = 64
    short = GenSARExamples(
        resolve(changed(config, prompts__max_inputs=limit)), data, table_of(data)
    )
    whole = GenSARExamples(resolve(config), data, table_of(data))
    lost = 0
    for row in range(len(data.splits.test)):
        cut = short.prompts.next_item(short.history(data.splits.test, row), 1).inputs
        full = whole.prompts.next_item(whole.history(data.splits.test, row), 1).inputs
        history = whole.history(data.splits.test, row)
        events = [whole.prompts.event(*event) for event in history]
        assert len(cut) <= limit < len(full)
        held = [holds(cut, event) for event in events]
        # The latest events and no others, each whole: once one is kept all later ones are.
        assert held == sorted(held) and held[-1] and not held[0]
        lost += held.count(False)
        codes = sum(token >= whole.vocabulary.text_rows + 3 for token in cut)
        assert codes == sum(3 for (b, _), k in zip(history, held) if k and b != "<S_Q>")
    assert lost > USERS
