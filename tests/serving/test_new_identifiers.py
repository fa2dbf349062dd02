"""Items that joined after training get identifiers from GenSAR's own quantizers."""

import shutil
import types

import jax
import numpy as np
import pytest
from moved_runs import ITEMS, write_log

from configs import gensar
from core.errors import UserError
from core.workdir import open_workdir
from experiments.methods import open_experiment
from experiments.resolve import resolve
from gensar_jax import identifiers
from gensar_jax.experiment import own_identifiers
from input_pipelines.dataset import Dataset
from serving.new_items import WithNewTexts
from serving.recommender import Recommender
from serving.requests import Click, Request

NEW = [
    {"item": "n1", "title": "pot 7"},
    {"item": "i3", "title": "known already"},
    {"item": "n2", "title": "pot 8", "words": "pot"},
    {"item": "n3"},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """GenSAR with trained identifiers and random parameters."""
    folder = tmp_path_factory.mktemp("gensar")
    write_log(folder / "data")
    config = gensar.method()
    config.dataset, config.data_dir = "csv_log", str(folder / "data")
    config.cache_dir = str(folder / "cache")
    config.update_from_flattened_dict(
        {
            "identifier_vectors.width": 8,
            "identifier_vectors.sketch_width": 4,
            "identifier_model.widths": (16,),
            "identifier_model.latent_width": 4,
            "identifier_model.shared_levels": 1,
            "identifier_model.codes": 8,
            "identifier_train.epochs": 4,
            "identifier_train.evals": 1,
            "identifier_train.batch_size": 32,
            "vocabulary.pieces": 420,
            "prompts.max_inputs": 160,
            "prompts.max_targets": 16,
            "model.size": "tiny",
            "train.row_inputs": 160,
            "train.row_targets": 24,
            "eval.beam": 10,
            "eval.protocols": ("full",),
            "eval.search_protocols": ("full",),
            "eval.metrics": ("ndcg@5",),
            "eval.selection": "ndcg@5/full",
            "loop.writers": (),
        }
    )
    config = resolve(config)
    experiment = open_experiment(config, Dataset(config))
    experiment.train_identifiers()
    network = experiment.network
    tokens = np.zeros((1, 8), np.int32)
    params = jax.jit(lambda key: network.init(key, tokens, tokens, tokens, enable_dropout=False))(
        jax.random.key(0)
    )["params"]
    return types.SimpleNamespace(
        experiment=experiment,
        params=params,
        tables=None,
        tables_with_words=None,
        workdir=open_workdir(str(folder / "w"), config.to_dict(), experiment.data.log.hash),
        data=experiment.data,
    )


@pytest.fixture(scope="module")
def opened(run):
    return WithNewTexts(run, NEW)


def test_new_items_have_identifiers_of_their_own(run, opened):
    before, after = run.experiment.table, opened.experiment.table
    assert (before.num_items, after.num_items) == (ITEMS, ITEMS + 2)
    for source, codes in after.codes.items():
        np.testing.assert_array_equal(codes[:ITEMS], before.codes[source])
    log = opened.experiment.data.log
    assert log.item_ids[ITEMS + 1 :].tolist() == ["n1", "n2"] and log.item_texts()[-2] == "pot 7"
    assert run.experiment.data.log.num_items == ITEMS, "the run itself is as it was"


def test_two_new_items_of_one_text_differ_by_the_last_code_alone(run):
    twins = [{"item": "a", "title": "pot 7"}, {"item": "b", "title": "pot 7"}]
    for codes in WithNewTexts(run, twins).experiment.table.codes.values():
        np.testing.assert_array_equal(codes[-2, :-1], codes[-1, :-1])
        assert codes[-2, -1] != codes[-1, -1]


def test_new_items_are_generated_clicked_and_found(opened):
    model = Recommender(opened)
    assert model.catalogue_size == ITEMS + 2 and model.titles["n2"] == "pot 8"
    question = Request(clicks=(Click("i1"), Click("n1")), k=ITEMS + 2, keep_seen=True)
    search = Request(query="pot", candidates=("n1", "n2", "none"), k=2)
    whole, found = model.recommend_many([question, search])
    assert whole.skipped_items == 0
    assert {item.item for item in whole.items} == {f"i{n}" for n in range(ITEMS)} | {"n1", "n2"}
    assert {item.item for item in found.items} == {"n1", "n2"} and found.skipped_items == 1


def test_codes_give_way_to_those_of_the_catalogue():
    codes = np.array([[0, 0], [0, 1], [1, 0]], np.int32)
    books = np.arange(2.0)[None, :, None].repeat(2, 0)
    new = identifiers.join(codes, np.array([[1, 0]]), np.array([[0.1]]), books[1:])
    assert new.tolist() == [*codes.tolist(), [1, 1]]
    # All last codes under 0 are taken, and the nearest code before has room.
    new = identifiers.join(codes, np.array([[0, 0]]), np.array([[0.9]]), books)
    assert new.tolist()[3] == [1, 1]
    with pytest.raises(UserError, match="more that no code is left to tell apart"):
        identifiers.join(codes, np.array([[0, 0]]), np.zeros((1, 1)), books[1:])


def test_without_the_quantizers_it_says_so(run):
    folder, _ = own_identifiers(run.experiment.config, run.experiment.data)
    shutil.move(f"{folder}/checkpoints", f"{folder}/away")
    try:
        with pytest.raises(UserError, match=r"the run that trained the identifiers .* found none"):
            WithNewTexts(run, NEW)
    finally:
        shutil.move(f"{folder}/away", f"{folder}/checkpoints")
