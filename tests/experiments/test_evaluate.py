"""Which task and protocols launch.evaluate takes where none are named."""

import types

import pytest

from configs import baseline, crs_sample, gensar_qilin, lcr_ser, matching, retrieval
from core import results
from core.errors import UserError
from core.loop import NotFinite
from experiments import evaluate
from experiments.methods import experiment_class


@pytest.mark.parametrize(
    ("config", "task", "protocols"),
    [
        (baseline.get_config("sasrec,amazon_beauty"), "recommendation", ("neg99", "full")),
        # There `full` takes days.
        (lcr_ser.get_config("kuaisar"), "recommendation", ("neg99",)),
        (gensar_qilin.get_config(), "recommendation", ("neg99", "full")),
        (gensar_qilin.get_config("dsi"), "search", ("bm25_99", "full")),
        (retrieval.get_config("bm25,amazon_beauty"), "search", ("bm25_99", "full")),
        (matching.get_config("bm25,trivago"), "search", ("catalogue", "impressions")),
        (crs_sample.get_config(), "search", ("catalogue",)),
    ],
)
def test_a_run_is_evaluated_on_what_it_is_tested_on(config, task, protocols):
    run = bare(config)
    assert run.tested_on(None) == (task, protocols)
    assert run.tested_on(task) == (task, protocols)


def test_a_task_of_two_can_be_chosen():
    config = gensar_qilin.get_config()
    assert bare(config).tested_on("search") == ("search", ("bm25_99", "full"))
    assert bare(config).tested_on("recommendation")[1] == ("neg99", "full")


def bare(config):
    """Returns the experiment of a config without its data, which these answers do not need."""
    run = object.__new__(experiment_class(config))
    run.config = config
    return run


def restored(config):
    run = bare(config)
    workdir = types.SimpleNamespace(path="W")
    return types.SimpleNamespace(experiment=run, workdir=workdir)


def test_named_protocols_are_taken_once_and_none_are_refused():
    config = baseline.get_config("sasrec,amazon_beauty")
    run = restored(config)
    assert evaluate.columns(run, None, None) == ["neg99", "full"]
    assert evaluate.columns(run, None, ["neg99pop", "neg99pop"]) == ["neg99pop"]
    with pytest.raises(UserError, match=r"expected task recommendation .* found 'search'"):
        evaluate.columns(run, "search", None)
    config.eval.protocols = ()
    with pytest.raises(UserError, match="the run in W has none of recommendation in its config"):
        evaluate.columns(run, None, None)


class Broken:
    def evaluate(self, *_):
        raise FloatingPointError("NaN scores in 1 of 2 examples")


def test_scores_that_are_nan_are_told_in_one_line():
    run = types.SimpleNamespace(experiment=Broken(), params={}, tables={}, stage="rl")
    with pytest.raises(NotFinite, match=r"found NaN scores in 1 .* in stage rl against full; pass"):
        evaluate.evaluate(run, "test", "full")
    with (
        pytest.raises(NotFinite, match=r"NaN scores .* in the test of stage rl_0 against search/"),
        results.testing("rl_0", "search/catalogue"),
    ):
        Broken().evaluate()
