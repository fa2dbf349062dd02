"""A mistake in the config or the data is one line before the workdir is written, not after."""

import functools

import pytest
from absl import flags

from configs import bert4rec, cl4srec, lares, popularity, rearec, sasrec
from core.errors import UserError
from experiments.resolve import resolve
from experiments.train import train
from input_pipelines.dataset import Dataset
from launch import compare, evaluate, predict, report
from studies.ablation.ablate import ablate


def refused(config, changes, workdir, words):
    """`train` ends in `words`, and there is no workdir."""
    wrong = config.copy_and_resolve_references()
    wrong.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        train(wrong, str(workdir))
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.batch_size", -8),
        ("train.evals_per_epoch", 0.0),
        ("train.evals_per_epoch", -1.0),
        ("loop.log_every", 0),
        ("loop.checkpoint_every", 0),
        ("eval.batch_size", -8),
        ("eval.full_batch_size", 0),
        ("rl.evals", 0),
        ("rl.batch_size", 0),
        ("rl.examples", 0),
        ("rl.gamma", -1.0),
        ("rl.negatives", -1),
        ("rl.negatives", 0),
        ("data.rec_length", 0),
        ("data.search_length", 0),
        ("data.search_length", -3),
        ("data.words", 0),
        ("data.clicks", 0),
        ("data.train_negatives", 0),
        ("data.max_validation", -5),
        ("model.width", 0),
        ("model.ffn_width", -4),
        ("model.heads", 0),
    ],
)
def test_sizes_that_are_not_above_0(small_config, tmp_path, key, value):
    words = rf"expected config\.{key} above 0, found {value};"
    refused(small_config, {key: value}, tmp_path / "w", words)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.lambda_tcl", -1.0),
        ("train.margin", -3.0),
        ("train.lambda_distil", -0.1),
        ("train.lambda_l2", -1e-5),
        ("train.learning_rate", -1.0),
        ("rl.lambda_kl", -1.0),
        ("rl.learning_rate", -1.0),
        ("rl.clip_eps", -0.2),
        ("train.plateau_patience", -1),
        ("train.min_learning_rate", -1.0),
    ],
)
def test_weights_below_0(small_config, tmp_path, key, value):
    words = rf"expected config\.{key} of 0 or more, found {value};"
    refused(small_config, {key: value}, tmp_path / "w", words)


def test_without_rl_its_sizes_do_not_matter(small_config, tmp_path):
    # The next mistake is found, and not that one.
    changes = {"rl.enabled": False, "rl.evals": 0, "eval.protocols": ("half",)}
    refused(small_config, changes, tmp_path / "w", "found 'half'")


@pytest.mark.parametrize("model", [None, popularity])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval.metrics": ("ndcg@5", "err@5")}, "a metric such as .* found 'err@5'"),
        ({"eval.metrics": ("ndcg@5", "hr@0")}, "a metric such as .* found 'hr@0'"),
        ({"eval.protocols": ("half",)}, "config.eval.protocols of neg99, .* found 'half'"),
        ({"eval.protocols": ("published99",)}, "data.split=published .* found leave_one_out"),
    ],
)
def test_what_the_test_split_could_not_be_read_with(small_config, tmp_path, model, changes, words):
    config = small_config
    if model is not None:
        config = model.get_config()
        config.dataset, config.data = small_config.dataset, small_config.data
        config.data_dir, config.cache_dir = small_config.data_dir, small_config.cache_dir
    refused(config, changes, tmp_path / "w", words)


def test_heads_that_do_not_divide_the_width(small_config, tmp_path):
    for module in (sasrec, bert4rec, rearec, cl4srec, lares):
        config = module.get_config()
        config.dataset, config.data = small_config.dataset, small_config.data
        config.data_dir, config.cache_dir = small_config.data_dir, small_config.cache_dir
        changes = {"model.width": 8, "model.heads": 3}
        words = r"config\.model: expected width divisible by heads, found 8/3;"
        refused(config, changes, tmp_path / "w", words)


def test_data_without_what_a_run_needs(small_config, tmp_path):
    config = small_config.copy_and_resolve_references()
    config.data_dir, config.rl.negatives = str(tmp_path), 60
    searches = "user,session,time,query,clicked_items\n"
    (tmp_path / "searches.csv").write_text(searches)

    def clicks(users, items):
        rows = [f"u{u},i{(u + 7 * t) % items},{t}\n" for u in range(users) for t in range(4)]
        (tmp_path / "clicks.csv").write_text("user,item,time\n" + "".join(rows))

    workdir = tmp_path / "w"
    clicks(1, 4)
    refused(config, {"eval.protocols": ("neg99",)}, workdir, "99 items .*, found none in test")
    # Evaluation could be made, training could not: everybody has touched both items.
    clicks(9, 2)
    none_left = "not touched to train against, found none for 100% of the training examples"
    refused(config, {}, workdir, none_left)
    with pytest.raises(UserError, match=none_left):
        ablate(config, "lambda_tcl:0,0.5", str(workdir))
    assert not workdir.exists()
    (tmp_path / "clicks.csv").write_text("user,item,time\nu,i,1\nv,j,1\n")
    refused(config, {}, workdir, "expected test examples")


def test_a_workdir_that_is_a_file(small_config, tmp_path):
    file = tmp_path / "w"
    file.write_text("precious")
    for path in (file, file / "below"):
        with pytest.raises(UserError, match=f"expected a folder at {file}, found a file; pass ano"):
            train(small_config, str(path))
        with pytest.raises(UserError, match=f"expected a folder at {file}, found a file"):
            ablate(small_config, "lambda_tcl:0,0.5", str(path))
    assert file.read_text() == "precious"


def test_an_address_is_no_folder(small_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--workdir on a mounted file system, found gs"):
        ablate(small_config, "lambda_tcl:0,0.5", "gs://bucket/run")
    with pytest.raises(UserError, match="--workdir on this machine or in an object store, found z"):
        train(small_config, "zz://bucket/run")
    config = small_config.copy_and_resolve_references()
    config.data_dir = "zz://bucket/data"
    with pytest.raises(UserError, match=r"config\.data_dir on this machine or in an object store"):
        train(config, str(tmp_path / "w"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "given", "words"),
    [
        (evaluate, ["--workdir=none", "--split=train"], "validation or test, found 'train'"),
        (evaluate, ["--workdir=none", "--protocols="], "protocols after --protocols=, found none;"),
        (evaluate, ["--workdir=none", "--protocol="], "protocols after --protocols=, found none;"),
        (
            evaluate,
            ["--workdir=none", "--protocol=full", "--protocols=neg99"],
            "expected --protocol or --protocols, found both; pass one",
        ),
        (predict, ["--workdir=none", "--users=no", "--out={0}/no/x.jsonl"], "--out=FILE in a"),
        (predict, ["--workdir=none", "--users=no", "--out={0}"], "--out=FILE in a folder"),
        (report, ["--workdirs=none", "--out={0}/no/x.html"], "--out=FILE in a folder"),
        (
            compare,
            ["--workdirs=none", "--against=hr@1/full", "--figure={0}/no/x.png"],
            "--figure=FILE.png in a folder that exists",
        ),
        (
            compare,
            ["--workdirs=none", "--against=hr@1/full", "--figure={0}/x.txt"],
            "--figure=FILE.png in a folder that exists, found .*x.txt",
        ),
        (compare, ["--workdirs=none", "--split=train"], "validation or test, found 'train'"),
    ],
)
def test_flags_are_looked_at_before_anything_is_opened(tmp_path, monkeypatch, module, given, words):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    for name in ("DEFINE_string", "DEFINE_integer", "DEFINE_list", "DEFINE_enum"):
        define = functools.partial(getattr(flags, name), flag_values=values)
        monkeypatch.setattr(flags, name, define)
    module.define_flags()
    values(["program", *(flag.format(tmp_path) for flag in given)])
    with pytest.raises(UserError, match=words):
        getattr(module, "check_flags", lambda: None)()
        module.main()
    assert not list(tmp_path.iterdir())


def test_there_are_no_evaluation_lists_of_the_training_split(small_config):
    data = Dataset(resolve(small_config))
    with pytest.raises(UserError, match="expected split validation or test, found 'train'"):
        data.sampled("train", "neg99")


def test_of_two_mistakes_the_first_is_named(small_config):
    config = small_config.copy_and_resolve_references()
    config.loop.log_every, config.rl.evals = -2, 0
    with pytest.raises(UserError, match=r"config\.loop\.log_every above 0, found -2"):
        resolve(config)
