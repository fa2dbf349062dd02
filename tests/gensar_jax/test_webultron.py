"""WebUltron's codes by hand, and its three stages."""

import numpy as np
import pytest
from test_gensar import changed, refused, small_config
from test_gensar_baselines import config_of

from configs import webultron_identifiers
from experiments.methods import open_experiment
from experiments.resolve import resolve
from experiments.train import train
from gensar_jax import vocabulary
from gensar_jax.baselines.webultron_identifiers import numbered, part_codes
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
    unique = numbered(codes)
    assert unique[:, :3].tolist() == codes.tolist()
    assert unique[:, 3].tolist() == [0, 1, 2, 0, 0, 1, 0]
    assert numbered(codes[[0, 3, 4]]) is not unique and numbered(codes[[0, 3]]).shape == (2, 3)


def test_what_its_stages_read(small):
    config = resolve(config_of(small, "webultron", **SMALL))
    data = Dataset(config)
    experiment = open_experiment(config, data)
    experiment.train_identifiers()
    assert experiment.stages == ("joint", "search", "general")
    mixed = experiment.examples.mixed({"desc2id": -1, "pseudo_query": -1})
    assert mixed.mixture.tasks == ("desc2id", "pseudo_query")
    assert experiment.examples.mixture.tasks == ("nsip",)
    codes = experiment.table.codes["semantic"]
    assert codes.shape[1] in (4, 5) and len(np.unique(codes, axis=0)) == data.log.num_items


def test_mistakes_end_in_one_line(small, tmp_path):
    config = config_of(small, "webultron", **SMALL)
    too_much = changed(config, shares__general=0.6, shares__search=0.5)
    assert "shares of less than 1 in all, found 0.6 and 0.5" in refused(too_much, tmp_path)
    own = webultron_identifiers.get_config("amazon_beauty")
    own.data_dir, own.cache_dir = small.data_dir, small.cache_dir
    for changes, words in (
        ({"model__codes": 4096}, "at least 4096 items"),
        ({"model__codes": 8, "model__parts": 4096}, "at least 4096 numbers"),
        ({"model__codes": 2, "model__parts": 2, "model__repeated": "refused"}, "that are unique"),
    ):
        with pytest.raises(Exception, match=words) as error:
            train(changed(own, **changes), str(tmp_path / "w"))
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_run_trains_three_stages(small, tmp_path):
    config = config_of(small, "webultron", train__updates=8, **SMALL)
    results = train(changed(config, eval__search_protocols=("full",)), str(tmp_path / "w"))
    steps = {row["stage"]: row["step"] for row in results["rows"]}
    assert set(steps) == {"general", "search", "joint"} and steps["search"] <= 4
