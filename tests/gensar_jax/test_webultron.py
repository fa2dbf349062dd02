"""WebUltron's codes by hand, and its three stages."""

import numpy as np
import pytest
from test_gensar import changed, refused, small_config
from test_gensar_baselines import config_of

from configs import webultron_identifiers
from experiments.methods import open_experiment
from experiments.predict import predict
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.train import train
from gensar_jax import vocabulary
from gensar_jax.baselines.webultron import StageSettings, updates_of
from gensar_jax.baselines.webultron_identifiers import part_codes
from gensar_jax.identifiers import load_table, numbered
from gensar_jax.vocabulary import Vocabulary
from input_pipelines.dataset import Dataset

SMALL = {"identifier_model__parts": 4, "identifier_model__codes": 8}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_config(tmp_path_factory)


def test_a_part_s_centroid_is_a_token_of_its_own():
    model = vocabulary.train_pieces(["red pot", "green tea"], 280)
    vocab = Vocabulary(model, shared=(256,) * 24, semantic=(), collaborative=())
    codes = np.zeros((2, 24), int)
    codes[1] = 255
    tokens = vocab.identifiers(codes, "semantic")
    first = vocab.size - 24 * 256
    assert tokens[0].tolist() == [first + 256 * part for part in range(24)]
    assert tokens[0, 0] == first and tokens[1, -1] == first + 6143


def test_equal_vectors_have_equal_codes_and_other_numbers():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 10))
    rows = np.repeat(centres, [3, 1, 2, 1], axis=0)
    codes = part_codes(rows, 3, 4)
    assert codes.shape == (7, 3) and codes.max() < 4
    assert (codes[0] == codes[1]).all() and (codes[4] == codes[5]).all()
    assert len(np.unique(codes, axis=0)) == 4
    unique = numbered(codes, 4)
    assert unique[:, :3].tolist() == codes.tolist()
    assert unique[:, 3].tolist() == [0, 1, 2, 0, 0, 1, 0]
    assert numbered(codes[[0, 3, 4]], 4) is not unique
    assert numbered(codes[[0, 3]], 4).shape == (2, 3)
    # Two codes count to five in three digits.
    five = numbered(np.zeros((5, 1), np.int32), 2)
    assert five.tolist() == [[0, n >> 2, n >> 1 & 1, n & 1] for n in range(5)]


def test_a_part_is_cut_where_its_own_numbers_differ():
    rows = np.array([[0.0, 5], [0.1, 5], [9.0, 5], [9.1, 6]])
    codes = part_codes(rows, 2, 2)
    assert codes[0, 0] == codes[1, 0] != codes[2, 0] == codes[3, 0]
    assert codes[:, 1].tolist() == [0, 0, 0, 1]


def test_updates_of_its_stages():
    shares = {"general": 0.25, "pseudo_queries": 0.5}
    assert updates_of(40, StageSettings(**shares)) == {
        **{"general": 10, "pseudo_queries": 20, "joint": 10},
    }
    most = StageSettings(general=0.49, pseudo_queries=0.5)
    assert updates_of(2, most) == {"general": 0, "pseudo_queries": 1, "joint": 1}
    assert updates_of(1, most)["joint"] == 1


def test_what_its_stages_read(small):
    config = resolve(config_of(small, "webultron", **SMALL))
    data = Dataset(config)
    experiment = open_experiment(config, data)
    experiment.train_identifiers()
    assert experiment.stages == ("joint", "pseudo_queries", "general")
    tasks = {stage: experiment.examples_of(stage).mixture.tasks for stage in experiment.stages}
    assert tasks == {
        "general": ("desc2id", "pseudo_query"),
        "pseudo_queries": ("pseudo_search",),
        "joint": ("nsip",),
    }
    codes = experiment.table.codes["semantic"]
    # Items have few different texts here, which further codes count.
    assert codes.shape[1] > 4 and len(np.unique(codes, axis=0)) == data.log.num_items
    # One command makes the same table.
    own = webultron_identifiers.get_config("amazon_beauty")
    own.data_dir, own.cache_dir = small.data_dir, small.cache_dir
    own.model.update({"parts": 4, "codes": 8})
    made, _ = open_experiment(resolve(own), data).fit()
    assert made.hash == experiment.table.hash


def test_mistakes_end_in_one_line(small, tmp_path):
    config = config_of(small, "webultron", **SMALL)
    too_much = changed(config, shares__general=0.6, shares__pseudo_queries=0.5)
    assert "shares of less than 1 in all, found 0.6 and 0.5" in refused(too_much, tmp_path)
    own = webultron_identifiers.get_config("amazon_beauty")
    own.data_dir, own.cache_dir = small.data_dir, small.cache_dir
    for changes, words in (
        ({"model__codes": 8, "model__parts": 4096}, "at least 4096 numbers"),
        ({"model__codes": 2, "model__parts": 2, "model__repeated": "refused"}, "that are unique"),
    ):
        assert words in refused(changed(own, **changes), tmp_path)
    # GenSAR's identifiers are another method's.
    given = refused(changed(config, identifiers=small.identifiers), tmp_path)
    assert "expected identifiers of webultron_identifiers in" in given
    assert "found those of gensar_identifiers; pass the folder that configs/webu" in given


@pytest.mark.slow
def test_a_run_trains_three_stages_of_24_codes(small, tmp_path):
    own = webultron_identifiers.get_config("amazon_beauty")
    own.data_dir, own.cache_dir, own.model.codes = small.data_dir, small.cache_dir, 8
    folder = str(tmp_path / "i")
    train(own, folder)
    table = load_table(folder, data_hash=Dataset(resolve(own)).log.hash)
    assert table.method == "webultron_identifiers" and table.codes["semantic"].shape[1] >= 24
    config = config_of(
        *(small, "webultron"),
        **{"train__updates": 8, "prompts__max_targets": 32, "train__row_targets": 64},
    )
    config.identifiers, config.identifier_model.codes = folder, 8
    results = train(changed(config, eval__search_protocols=("full",)), str(tmp_path / "w"))
    steps = {row["stage"]: row["step"] for row in results["rows"]}
    assert set(steps) == {"general", "pseudo_queries", "joint"} and steps["general"] <= 2
    restored = Restored(str(tmp_path / "w"))
    items = [row["item"] for row in predict(restored, None, 5, "red tea kind2")]
    assert len(set(items)) == 5
