"""Distillation from a checkpoint's words: prompts, parts that a kill leaves, what is dropped."""

import json
import shutil

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file
from test_crs import config_of, opened, write_beauty

from core.errors import UserError
from core.partitioning import make_mesh
from core.workdir import open_workdir
from crs_jax import decoder_checkpoints, distillation, recorded_inputs, teacher
from crs_jax.decoder_config import DecoderConfig
from crs_jax.examples import CRSExamples
from crs_jax.subsets import Subsets
from crs_jax.vocabulary import Vocabulary, train_tokenizer
from experiments.restored import Restored, open_run
from experiments.train import train

SIZES = {"width": 64, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_dim": 16}
ROWS = 320


def write_teacher(folder, *, ends=True):
    """A checkpoint in Qwen3's format with random weights.

    `ends`: of one whose layers add nothing and whose embedding makes </think> the likeliest token
    after any, a third of the probability at the teacher's temperature.
    """
    folder.mkdir()
    tokenizer = train_tokenizer(["the user wants things", "blue tents"], 280)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = DecoderConfig(text_rows=ROWS, new_rows=1, **SIZES)
    rng = np.random.default_rng(0)
    tensors = {}
    for name, (_, _, shape) in decoder_checkpoints.tensors_of(config).items():
        tensors[name] = (0.05 * rng.normal(size=shape)).astype(np.float32)
        if name.endswith("norm.weight"):
            tensors[name] = np.ones(shape, np.float32)
        if ends and name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = np.zeros(shape, np.float32)
    if ends:
        rest = rng.normal(size=(ROWS, 63))
        table = np.ones((ROWS, 64))
        table[:, 1:] = 0.5 * rest / np.linalg.norm(rest, axis=1, keepdims=True)
        table[tokenizer.token_to_id("</think>"), 0] = 1.45
        tensors["model.embed_tokens.weight"] = table.astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    names = decoder_checkpoints.SIZES | decoder_checkpoints.NUMBERS
    about = {theirs: getattr(config, ours) for ours, theirs in names.items()}
    about |= {"model_type": "qwen3", "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(about))
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    return write_beauty(folder / "beauty"), folder / "cache"


def test_a_prompt_tells_the_context_in_words_and_the_target():
    words = Vocabulary(train_tokenizer(["the user wants things"], 280), (1,))
    events = ['searched for "pan" and chose "Iron <a_1> pan"', 'chose "Blue tent"']
    text = words.decode(teacher.prompt(words, 'the "stove"', events, "Gas <think>", limit=500))
    lines = text.split("\n")
    assert lines[1] == (
        'Earlier this user searched for "pan" and chose "Iron (a_1> pan"; chose "Blue tent".'
    )
    assert lines[2] == 'Now the user searches for "the \'stove\'" and chooses "Gas (think>".'
    assert lines[-2:] == ["<think>", ""] and text.count("<think>") == 1
    whole = len(teacher.prompt(words, "stove", events, "Gas", limit=500))
    shorter = words.decode(teacher.prompt(words, "stove", events, "Gas", limit=whole - 1))
    assert "pan" not in shorter and "Blue tent" in shorter
    cut = teacher.prompt(words, "stove " * 500, events, "Gas " * 500, limit=whole)
    assert whole - 20 < len(cut) <= whole and '"stove stove' in words.decode(cut)
    with pytest.raises(UserError, match=r"a teacher's prompt in 20 tokens, found \d+ without"):
        teacher.prompt(words, "stove", events, "Gas", limit=20)


def settings(path, **changes):
    return {
        "distill.teacher": path,
        "distill.examples": 20,
        "prompts.max_prompt": 400,
        "prompts.max_reasoning": 4,
        "sft.row_length": 460,
        "eval.batch_size": 4,
        **changes,
    }


def taught(experiment, folder, load=distillation.load_teacher):
    words = experiment.examples.vocabulary
    subsets = Subsets(str(folder), words.decode)
    mesh = make_mesh(experiment.config.mesh.data, experiment.config.mesh.model)
    return distillation.distilled(
        experiment.config, experiment.examples, subsets, "sft_0", mesh, load
    )


def test_a_prompt_that_the_teacher_has_no_room_for_is_told_before_training(data, tmp_path):
    experiment = opened(*data, **settings(write_teacher(tmp_path / "t")))
    experiment.check_data()
    experiment.config.prompts.max_prompt = 50
    with pytest.raises(UserError, match=r"a teacher's prompt in 50 tokens, found \d+"):
        distillation.check_data(experiment.config, experiment.examples)


def test_traces_are_kept_in_parts_that_a_kill_leaves(data, tmp_path):
    path = write_teacher(tmp_path / "t")
    experiment = opened(*data, **settings(path))
    examples, words = experiment.examples, experiment.examples.vocabulary
    row = int(examples.distilled()[0])
    query, events, title = examples.in_words(row)
    assert title == examples.texts[int(examples.train.item[row])]
    assert query == examples.query(int(examples.train.target_row[row]))
    assert all(event.startswith(("searched for", "chose")) for event in events)

    cases = taught(experiment, tmp_path / "s")
    asked = set(examples.distilled().tolist())
    # Some end at once or never; those that say something and end are kept.
    assert 3 < len(cases) < 20 and {case.example for case in cases} <= asked
    said = [token for case in cases for token in case.reasoning]
    assert all(case.reasoning for case in cases) and max(said) < words.text_rows
    saved = {file.name for file in (tmp_path / "s").iterdir()}
    # 20 examples are two parts of 4 batches of 4.
    assert saved >= {"teacher_0.json", "teacher_1.json", "sft_0.json", "sft_0.jsonl"}
    # Killed after its first part: only the second is asked for again, and says the same.
    for name in ("teacher_1.json", "sft_0.json"):
        (tmp_path / "s" / name).unlink()
    numbers = []

    class Watched:
        def __init__(self, config, mesh):
            self.ask = distillation.load_teacher(config, mesh)
            self.vocabulary = self.ask.vocabulary

        def __call__(self, prompts, number):
            numbers.append(number)
            return self.ask(prompts, number)

    assert taught(experiment, tmp_path / "s", Watched) == cases and numbers == [1]
    # With all there the checkpoint is not even read.
    assert taught(experiment, tmp_path / "s", None) == cases


def test_a_mesh_says_what_one_device_says(data, tmp_path):
    path = write_teacher(tmp_path / "t")
    one = opened(*data, **settings(path, **{"distill.examples": 6}))
    cut = opened(
        *data, **settings(path, **{"distill.examples": 6, "mesh.data": 2, "mesh.model": 2})
    )
    assert taught(cut, tmp_path / "cut") == taught(one, tmp_path / "one")


@pytest.mark.slow
def test_a_run_distils_what_its_teacher_says(data, tmp_path):
    path = write_teacher(tmp_path / "t")
    short = {"align.epochs": 0.2, "evolve.iterations": 0, "distill.epochs": 1.0}
    results = train(config_of(*data, **settings(path, **short)), str(tmp_path / "w"))
    rows = {row["stage"]: row for row in results["rows"]}
    assert list(rows) == ["align", "sft_0"]
    told = (tmp_path / "w" / "subsets" / "sft_0.jsonl").read_text().splitlines()
    assert rows["sft_0"]["subset"]["rows"] == len(told) > 3
    # The run is read where its teacher is not.
    shutil.rmtree(path)
    assert Restored(str(tmp_path / "w"), "sft_0").step == rows["sft_0"]["step"]


def test_a_teacher_that_never_ends_and_wrong_folders_are_refused(data, tmp_path):
    path = write_teacher(tmp_path / "t", ends=False)
    experiment = opened(*data, **settings(path, **{"distill.examples": 4}))
    with pytest.raises(UserError, match=r"ends in </think> within 4 tokens .* found none of 4"):
        taught(experiment, tmp_path / "s")
    assert not (tmp_path / "s" / "sft_0.json").exists()
    with pytest.raises(UserError, match="found both; leave one empty"):
        opened(*data, **settings(path, **{"distill.traces": "traces.jsonl"}))
    with pytest.raises(UserError, match=r"config.json of a Qwen3 .* no such file or none"):
        opened(*data, **settings(str(tmp_path / "nowhere")))
    about = json.loads((tmp_path / "t" / "config.json").read_text())
    for size in (10**9, "1", None):
        wrong = about | {"num_hidden_layers": size}
        (tmp_path / "t" / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="num_hidden_layers of a whole number from 1 to 10,000"):
            teacher.read_config(path)
    (tmp_path / "t" / "config.json").write_text(json.dumps(about | {"tie_word_embeddings": False}))
    with pytest.raises(UserError, match="with tie_word_embeddings False"):
        opened(*data, **settings(path))


def test_a_checkpoint_to_train_brings_its_own_tokenizer(data, tmp_path):
    path = write_teacher(tmp_path / "t")
    experiment = opened(*data)
    config = experiment.config.copy_and_resolve_references()
    config.model.checkpoint = path
    words = CRSExamples(config, experiment.data, ROWS).vocabulary
    own = tokenizers.Tokenizer.from_file(f"{path}/tokenizer.json")
    assert words.encode("blue tents") == own.encode("blue tents").ids
    (tmp_path / "t" / "tokenizer.json").unlink()
    config.model.checkpoint = f"{path}/model.safetensors"
    with pytest.raises(UserError, match=r"found no .*t/tokenizer\.json"):
        CRSExamples(config, experiment.data, ROWS)


def test_a_checkpoint_of_another_size_is_refused_before_the_workdir(data, tmp_path):
    path = write_teacher(tmp_path / "t")
    sizes = {f"model.{name}": size for name, size in SIZES.items() if name != "layers"}
    config = config_of(*data, **{"model.checkpoint": path, **sizes, "model.layers": 2})
    with pytest.raises(UserError, match=r"the tensor model\.layers\.1\..* of Qwen3, found none"):
        train(config, str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()
    about = json.loads((tmp_path / "t" / "config.json").read_text())
    (tmp_path / "t" / "config.json").write_text(json.dumps(about | {"num_hidden_layers": 2}))
    with pytest.raises(UserError, match=r"the tensor model\.layers\.1\..* of Qwen3, found none"):
        opened(*data, **settings(path))


def test_a_run_is_read_with_its_own_tokenizer_and_without_its_checkpoint(data, tmp_path):
    path = write_teacher(tmp_path / "t")
    sizes = {f"model.{name}": size for name, size in SIZES.items()}
    changes = {"model.checkpoint": path, **sizes}
    config, trained = config_of(*data, **changes), opened(*data, **changes)
    workdir = open_workdir(str(tmp_path / "w"), config.to_dict(), trained.data.log.hash)
    recorded_inputs.record(workdir, trained.examples)
    # Another tokenizer comes to the checkpoint's folder, then both go.
    train_tokenizer(["quite other words"], 270).save(f"{path}/tokenizer.json")
    expected = trained.examples.vocabulary
    for _ in range(2):
        run = open_run(workdir, devices=1)
        assert run.examples.vocabulary.to_json() == expected.to_json()
        assert run.network.config == trained.network.config
        assert run.details("test", "search/catalogue")["more"]["initial"] == path
        shutil.rmtree(path, ignore_errors=True)
    # A run that kept neither is opened with its checkpoint alone.
    (tmp_path / "w" / "tokenizer.json").unlink()
    (tmp_path / "w" / "text_rows.json").unlink()
    with pytest.raises(UserError, match=r"found no .*t"):
        open_run(workdir, devices=1)
