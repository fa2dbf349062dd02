"""The sharding of every array of every method's states, as text: tests/golden/shardings.txt.

A change shows as a difference; `pytest tests/benchmarks/test_golden_shardings.py --update-golden`
writes the file anew.
"""

import importlib
import pathlib
import types

import jax
import numpy as np
import pytest
import scipy.sparse

from benchmarks import crs_pod_steps
from benchmarks.random_tasks import TableSizes, random_batch
from core.partitioning import make_mesh, path_name
from core.settings import build
from experiments.methods import open_experiment
from gensar_jax import sharding
from gensar_jax.joint_task import JointConfig, JointTask
from gensar_jax.t5.config import of_size
from gensar_jax.t5.network import Transformer
from input_pipelines.batches import BatchShape

ROOT = pathlib.Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "shardings.txt"
WORDS = 5540  # of GenSAR's and CRS's vocabularies; a multiple of 4
SIZES = TableSizes(users=1000, items=2000, words=500)


class ShapesOnly:
    """Stands in for `input_pipelines.dataset.Dataset`: sizes and one batch, no log."""

    table_sizes = SIZES.as_arguments()
    splits = types.SimpleNamespace(train=range(100_000))

    def __init__(self, config):
        data = config.data
        self.shape = BatchShape(
            rec_length=data.rec_length,
            search_length=data.search_length,
            words=data.words,
            clicks=data.clicks,
            candidates=2,
        )

    def training(self, **settings):
        return lambda start: iter(()), 1

    def training_clicks(self):
        return scipy.sparse.csr_array(np.zeros((SIZES.users + 1, SIZES.items + 1)))

    def item_words(self):
        return None

    def selection(self, task="recommendation"):
        return "ndcg@5/neg99"

    def sampled(self, split, protocol):
        yield random_batch(self.shape, 2, SIZES)


# Methods by their files, with choices that differ in what they train.
CHOICES = {
    "bert4rec": ["qilin"],
    "cl4srec": ["qilin"],
    "crs": ["amazon_beauty", "amazon_beauty,tiny"],
    "fmlp_rec": ["qilin,bce"],
    "gensar": ["amazon_beauty", "amazon_electronics"],
    "gensar_identifiers": ["amazon_beauty"],
    "gru4rec": ["qilin"],
    "item_knn": ["qilin"],
    "jsr": ["qilin"],
    "lares": ["qilin"],
    "lcr_ser": ["qilin", "amazon_beauty,paper", "unisar_pickles"],
    "lrurec": ["qilin,bce"],
    "nrhub": ["qilin"],
    "popularity": ["qilin"],
    "query_seqrec": ["qilin,bce", "qilin,ce"],
    "rearec": ["qilin,erl", "qilin,prl"],
    "sasrec": ["qilin,bce", "qilin,ce"],
    "sesrec": ["amazon_beauty", "qilin"],
    "unified_ssr": ["qilin"],
    "unisar": ["amazon_beauty", "qilin"],
    "user": ["qilin"],
}


def shardings_of(file, choice):
    """Lines `CONFIG STAGE PATH SHAPE SPEC` of one config; one line where nothing is trained."""
    config = importlib.import_module(f"configs.{file}").get_config(choice)
    name = f"{file}:{choice}"
    if config.method == "gensar_identifiers":
        return [f"{name} lies on one device"]
    if config.method == "crs":
        steps = crs_pod_steps.steps(config, make_mesh(2, 4), batch_size=8, text_rows=WORDS)
        return [
            line
            for stage, _, (state, *_) in steps
            for line in lines_of(f"{name} mesh 2x4 crs {stage}", state)
        ]
    if config.method == "gensar":
        network = Transformer(of_size(config.model.size, WORDS))
        partition = sharding.partition_of(network, make_mesh(2, 4))
        state = partition.abstract(jax.eval_shape(joint_task(config, network, partition).init))
        return lines_of(f"{name} mesh 2x4 joint", state)
    dense = "train" in config and config.train.table_update == "dense"
    config.mesh.data, config.mesh.model = (8, 1) if dense else (2, 4)
    experiment = open_experiment(config, ShapesOnly(config))
    if experiment.stages == ("fit",):
        return [f"{name} is fitted, not trained"]
    mesh = f"mesh {config.mesh.data}x{config.mesh.model}"
    lines = []
    for stage in ("train", "rl"):
        if stage not in experiment.stages:
            continue
        lines += lines_of(f"{name} {mesh} {stage}", experiment.abstract_state(stage))
    return lines


def lines_of(start, state):
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        spec = ", ".join(str(axis) for axis in leaf.sharding.spec)
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        lines.append(f"{start} {path_name(path)} {shape} ({spec})")
    return lines


def joint_task(config, network, partition):
    return JointTask(
        network,
        build(JointConfig, config.train.to_dict(), section="train"),
        stream=lambda start, stop: [],
        examples_per_epoch=1000,
        evaluate=lambda params, tables: {},
        selection=config.eval.selection,
        tables={"identifiers": np.zeros(32, np.uint8)},
        seed=0,
        partition=partition,
    )


def test_shardings_of_every_method(request):
    lines = [
        line for file in CHOICES for choice in CHOICES[file] for line in shardings_of(file, choice)
    ]
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text("\n".join(lines) + "\n", encoding="utf-8")
        pytest.skip("wrote tests/golden/shardings.txt anew")
    assert lines == GOLDEN.read_text(encoding="utf-8").splitlines()


def test_every_method_that_trains_has_its_shardings():
    methods = {path.stem for path in (GOLDEN.parent / "configs").glob("*.txt")}
    on_one_device = {"copps", "qem", "tem", "genret_identifiers"}
    fitted = {"matching", "retrieval"}
    fitted |= {"genre_identifiers", "p5_cid_identifiers", "webultron_identifiers"}
    assert set(CHOICES) == methods - fitted - on_one_device


def test_the_golden_text_cuts_tables_and_nothing_else():
    lines = GOLDEN.read_text(encoding="utf-8").splitlines()
    # GenSAR and CRS have no tables: the mesh cuts their networks.
    lines = [line for line in lines if " joint " not in line and " crs " not in line]
    cut = [line for line in lines if line.endswith("(model)")]
    assert any(" rl tables/item 1024x128 " in line for line in cut)
    assert all("tables/" in line or "table_states/" in line for line in cut)
    assert sum(line.endswith("()") for line in lines) > len(cut)
