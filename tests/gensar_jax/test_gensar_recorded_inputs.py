"""What GenSAR reads beside the log: settings that name files, and what a run is held to."""

import gc
import json
import os
import pathlib
import signal
import types

import pytest
from test_gensar import SHARED, SMALL, changed, table_of, write_beauty
from test_gensar_examples import holds

from configs import gensar_amazon_beauty
from core.errors import Preempted, UserError
from core.termination import watched
from core.workdir import Workdir
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.train import train
from gensar_jax import recorded_inputs, vocabulary
from gensar_jax.examples import GenSARExamples
from gensar_jax.experiment import GenSARExperiment
from gensar_jax.identifiers import IdentifierTable, save_table
from gensar_jax.vocabulary import Vocabulary
from input_pipelines import histories
from input_pipelines.dataset import Dataset


@pytest.fixture
def config(tmp_path):
    small = gensar_amazon_beauty.get_config()
    small.data_dir, small.cache_dir = write_beauty(tmp_path / "raw"), str(tmp_path / "cache")
    small.update_from_flattened_dict(SMALL)
    small.identifiers = str(tmp_path / "table")
    (tmp_path / "table").mkdir()
    save_table(small.identifiers, table_of(Dataset(resolve(small))), {})
    return small


def begin(config, tmp_path):
    """A run that stops before its first update: what is kept is kept before."""
    gc.collect()  # the error of the run before may still hold the lock of its workdir
    with watched():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Preempted, match="before stage joint"):
            train(config, str(tmp_path / "w"))
    return tmp_path / "w"


def refused(program, *arguments):
    gc.collect()
    with pytest.raises(UserError) as error:
        program(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit_titles(config):
    path = pathlib.Path(config.data_dir) / "items.jsonl"
    path.write_text(path.read_text().replace('"pot model', '"large pan model'))


def write_pieces(path, text):
    path.write_bytes(vocabulary.train_pieces([text, "pots and pans; tea"], 300))
    return str(path)


def test_a_run_is_held_to_its_item_texts(config, tmp_path):
    workdir = begin(config, tmp_path)
    begin(config, tmp_path)  # the same again goes on
    before = Dataset(resolve(config)).log
    edit_titles(config)
    assert Dataset(resolve(config)).log.hash == before.hash, "else the log's hash would do"
    recorded = json.loads((workdir / "inputs.json").read_text())
    for program, argument in ((train, config), (Restored, str(workdir))):
        arguments = (argument, str(workdir)) if program is train else (argument,)
        message = refused(program, *arguments)
        assert f"expected the item texts {recorded['item texts']}" in message
        assert "bring the data with those texts back" in message


def test_a_run_is_held_to_its_pieces_and_keeps_them(config, tmp_path):
    path = tmp_path / "mine.model"
    given = changed(config, vocabulary__pieces_model=write_pieces(path, "green cup"))
    workdir = begin(given, tmp_path)
    model = path.read_bytes()
    write_pieces(path, "yellow kettles whistle")
    for program, arguments in ((train, (given, str(workdir))), (Restored, (str(workdir),))):
        assert "expected the vocabulary" in refused(program, *arguments)
    # What the message says to bring back.
    path.write_bytes((workdir / "vocabulary" / "pieces.model").read_bytes())
    assert path.read_bytes() == model
    begin(given, tmp_path)
    examples = GenSARExamples(resolve(given), *data_and_table(given))
    assert Vocabulary.load(workdir / "vocabulary").digest == examples.vocabulary.digest


def data_and_table(config):
    data = Dataset(resolve(config))
    return data, table_of(data)


def test_training_is_held_to_its_pseudo_queries_and_nothing_else_is(config, tmp_path):
    path = tmp_path / "queries.txt"
    path.write_text("0\tmy first\n1\tmy second\n")
    given = changed(config, prompts__pseudo_queries=str(path))
    workdir = begin(given, tmp_path)
    path.write_text("0\tmy first\n1\tmy third\n")
    assert "expected the pseudo-queries" in refused(train, given, str(workdir))
    # Nobody but training reads them: all that evaluation misses here is a checkpoint.
    assert "expected checkpoints of stage joint" in refused(Restored, str(workdir))


def test_a_continued_run_is_held_to_its_identifiers_at_its_start(config, tmp_path):
    workdir = begin(config, tmp_path)
    table = table_of(Dataset(resolve(config)))
    codes = {name: codes[::-1] for name, codes in table.codes.items()}
    other = IdentifierTable(codes, 1, 8, table.data_hash, table.training_split)
    save_table(config.identifiers, other, {})
    for program, arguments in ((train, (config, str(workdir))), (Restored, (str(workdir),))):
        message = refused(program, *arguments)
        assert f"expected the identifier table {table.hash}" in message and other.hash in message


def test_a_trained_run_without_its_record_is_refused(config, tmp_path):
    experiment = GenSARExperiment(resolve(config), Dataset(resolve(config)))
    (tmp_path / "w" / "checkpoints" / "joint").mkdir(parents=True)
    workdir = Workdir(str(tmp_path / "w"))
    recorded_inputs.check(workdir, experiment.examples, experiment.table_hash)  # not trained yet
    (tmp_path / "w" / "checkpoints" / "joint" / "1").mkdir()
    for read, table in (
        (recorded_inputs.record, experiment.table),
        (recorded_inputs.check, experiment.table_hash),
    ):
        message = refused(read, workdir, experiment.examples, table)
        assert f"the run in {workdir.path} was trained with as inputs.json, found none;" in message
    assert not (tmp_path / "w" / "inputs.json").exists()


def test_pieces_come_from_the_model_that_the_config_names(config, tmp_path):
    own = GenSARExamples(resolve(config), *data_and_table(config))
    path = write_pieces(tmp_path / "mine.model", "green cup")
    given = changed(config, vocabulary__pieces_model=path)
    examples = GenSARExamples(resolve(given), *data_and_table(given))
    pieces = vocabulary.processor_of(pathlib.Path(path).read_bytes(), path)
    assert examples.vocabulary.text_rows == len(pieces) != own.vocabulary.text_rows
    # A query as its own model writes it, in a prompt.
    searches = examples.searches
    query = histories.query_text(Dataset(resolve(given)).log, int(searches.target_row[0]))
    assert holds(examples.training_example("nsip", 0, 0).inputs, pieces.EncodeAsIds(query))
    missing = changed(config, vocabulary__pieces_model=str(tmp_path / "none.model"))
    message = refused(train, missing, str(tmp_path / "w"))
    assert "expected a SentencePiece model, found no" in message
    assert not (tmp_path / "w").exists()


def test_pseudo_queries_come_from_the_file_that_the_config_names(config, tmp_path):
    path = tmp_path / "queries.txt"
    data, table = data_and_table(config)
    names = data.log.item_ids.tolist()
    rows = data.log.rec_items[data.splits.training_rows]
    first, second = sorted(set(rows.tolist()))[:2]
    held_out = names.index(str(SHARED + 1))
    assert held_out not in rows
    wanted = [(second, "teapot handle"), (first, "lid"), (second, "spout")]
    lines = [*wanted[:1], (held_out, "never trained"), *wanted[1:]]
    path.write_text("".join(f"{names[item]}\t{query}\n" for item, query in lines))
    given = changed(config, prompts__pseudo_queries=str(path), mixture__pseudo_query=3)
    examples = GenSARExamples(resolve(given), data, table)
    assert examples.mixture.counts["pseudo_query"] == 3
    assert len(examples.query_pairs) == len(wanted)
    for row, (item, query) in enumerate(wanted):
        example = examples.training_example("pseudo_query", row, 0)
        assert query in examples.vocabulary.text_of(example.inputs)
        assert holds(example.targets, examples.prompts.catalogue.identifier(item, "semantic"))
    for text, found in (
        ("7 no tab\n", "line 1 of"),
        ("nobody\tx\n", "found 'nobody"),
        ("", "none"),
    ):
        path.write_text(text)
        assert found in refused(train, given, str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xe9", b"[" * 100_000, b"{}", b'{"item texts": 3}']
)
def test_a_broken_record_of_a_run_is_one_line(tmp_path, content):
    (tmp_path / "inputs.json").write_bytes(content)
    examples = types.SimpleNamespace(
        texts_hash="a", vocabulary=types.SimpleNamespace(digest="b"), pseudo_queries_hash="c"
    )
    message = refused(recorded_inputs.check, Workdir(str(tmp_path)), examples, "d")
    assert "inputs.json, found" in message and "; restore the file, or train in" in message


def test_identifiers_whose_writing_was_killed_are_not_opened(config, tmp_path):
    folder = tmp_path / "w" / "identifiers"
    folder.mkdir(parents=True)
    trained = changed(config, identifiers="")
    save_table(str(folder), table_of(Dataset(resolve(config))), {})
    assert recorded_inputs.reopened(trained, str(tmp_path / "w")).identifiers == str(folder)
    # The description is written last.
    (folder / "identifiers.json").unlink()
    assert recorded_inputs.reopened(trained, str(tmp_path / "w")) is trained
    assert recorded_inputs.reopened(config, str(tmp_path / "w")) is config
