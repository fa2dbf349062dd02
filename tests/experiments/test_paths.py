"""A file or folder is the same setting however it is written."""

import pytest

from configs import crs_sample, gensar_qilin, lcr_ser_qilin
from core.errors import UserError
from experiments.resolve import resolve
from input_pipelines.dataset import Dataset


@pytest.mark.parametrize(
    ("module", "keys"),
    [
        (lcr_ser_qilin, ["train.teacher"]),
        (
            gensar_qilin,
            ["identifiers", "vocabulary.pieces_model", "prompts.pseudo_queries"],
        ),
        (
            crs_sample,
            [
                "distill.teacher",
                "model.checkpoint",
                "semantic_ids.extend",
                "vocabulary.tokenizer",
            ],
        ),
        (crs_sample, ["distill.traces"]),
    ],
)
def test_paths_in_a_config_become_whole(module, keys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    wanted = str(tmp_path / "T")
    for given in ("T", "./T", "~/T", wanted):
        config = module.get_config()
        config.update_from_flattened_dict(dict.fromkeys(keys, given))
        resolved = resolve(config)
        for key in keys:
            section, _, name = key.rpartition(".")
            assert (resolved[section] if section else resolved)[name] == wanted


def test_empty_paths_and_names_of_models_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = crs_sample.get_config()
    config.vectors.semantic = "org/model"
    resolved = resolve(config)
    assert resolved.vectors.semantic == "org/model"
    assert (
        resolved.distill.teacher == resolved.model.checkpoint == resolved.vocabulary.tokenizer == ""
    )


@pytest.mark.parametrize("key", ["data_dir", "model.checkpoint", "vocabulary.tokenizer"])
def test_a_tilde_without_a_home_is_refused(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = crs_sample.get_config()
    config.update_from_flattened_dict({key: "~nobody-here/T"})
    with pytest.raises(UserError, match=f"a home folder for config.{key}=~nobody-here/T, found"):
        resolve(config)
    config = crs_sample.get_config()
    config.cache_dir = "~nobody-here/cache"
    with pytest.raises(UserError, match=r"a home folder for config\.cache_dir=~nobody"):
        Dataset(resolve(config))
    assert list(tmp_path.iterdir()) == []


def test_runs_may_lie_in_a_store_and_other_places_not():
    address = "s3://bucket/run"
    for module, key in (
        (lcr_ser_qilin, "train.teacher"),
        (gensar_qilin, "identifiers"),
        (crs_sample, "semantic_ids.extend"),
    ):
        config = module.get_config()
        config.update_from_flattened_dict({key: address})
        section, _, name = key.rpartition(".")
        resolved = resolve(config)
        # As it is: the copy's folder is another on every machine.
        assert (resolved[section] if section else resolved)[name] == address
    for module, key in (
        (gensar_qilin, "prompts.pseudo_queries"),
        (crs_sample, "model.checkpoint"),
        (crs_sample, "distill.traces"),
    ):
        config = module.get_config()
        config.update_from_flattened_dict({key: address})
        with pytest.raises(UserError, match=f"config.{key} on a mounted file system, found s3:"):
            resolve(config)
