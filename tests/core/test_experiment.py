"""Tests `Experiment`, the base of all methods: what it measures once, and what it refuses."""

import numpy as np
import pytest
from ml_collections import config_dict

from core import metrics
from core.errors import UserError
from core.experiment import Experiment
from core.workdir import open_workdir


class Data:
    def __init__(self):
        self.origin = {"data": "made up", "data_hash": "0" * 16}


class Searching(Experiment):
    """Answers searches of two users, and counts how often it is asked to."""

    stages = ("align",)
    tasks = ("search",)

    def __init__(self):
        values = {"method": "searching", "dataset": "d", "seed": 0}
        sections = {
            "eval": {"selection": "hr@1/catalogue", "search_protocols": ("catalogue",)},
            "data": {"split": "leave_one_out", "candidates_seed": 0},
        }
        self.config = config_dict.ConfigDict(values | sections)
        self.data = Data()
        self.measured = []

    def evaluate(self, params, tables, split, protocol):
        self.measured.append((split, protocol))
        sums = metrics.Sums(("hr@1",))
        sums.add(np.array([0, 3]), np.zeros(2, int), np.ones(2), np.zeros(2, bool))
        return sums

    def details(self, split, protocol):
        return {"users": np.array([1, 2]), "more": {"task": "search"}}

    def groups(self, protocol, sums):
        return {"user_groups": [sums.count]}


@pytest.fixture
def workdir(tmp_path):
    return open_workdir(str(tmp_path / "w"), Searching().config.to_dict())


def test_the_test_is_read_once_a_column_and_step(workdir):
    run = Searching()
    for columns, step in ((("search/a",), 5), (("search/a", "search/b"), 5), (("search/a",), 6)):
        run.test_once(workdir, "align", step, columns, None, None, {"still_improving": True})
    assert run.measured == [("test", f"search/{name}") for name in "aba"]
    # A row of another step takes the place of the one before.
    rows = {row["protocol"]: row for row in workdir.read_results()["rows"]}
    assert {name: row["step"] for name, row in rows.items()} == {"search/a": 6, "search/b": 5}
    row = rows["search/a"]
    assert row["metrics"] == {"hr@1/search/a": 0.5} and row["examples"] == 2
    assert row["data"] == "made up" and row["task"] == "search"
    assert row["user_groups"] == [2] and row["still_improving"] is True


def test_validation_rows_do_not_stand_for_the_test(workdir):
    run = Searching()
    run.test_once(workdir, "align", 5, ["search/a"], None, None)
    rows = workdir.read_results()["rows"]
    workdir.change_results(lambda _: [row | {"split": "validation"} for row in rows])
    run.test_once(workdir, "align", 5, ["search/a"], None, None)
    assert run.measured == [("test", "search/a")] * 2


def test_a_run_is_tested_on_its_first_task_with_protocols():
    run = Searching()
    assert run.tested_on(None) == run.tested_on("search") == ("search", ("catalogue",))
    run.tasks = ("recommendation", "search")
    assert run.tested_on(None) == ("search", ("catalogue",))
    assert run.tested_on("recommendation") == ("recommendation", ())


def test_what_a_method_cannot_do_is_one_line():
    run = Experiment()
    run.config = Searching().config
    for call, words in (
        (lambda: run.columns("search", "full"), "a model that ranks items, found one of searching"),
        (lambda: run.evaluate(None, None, "test", "full"), "a model that ranks items"),
        (lambda: run.abstract_state("align"), "a model that ranks items"),
        (lambda: run.predict(None, None, ["u"], 3), "the run of a ranker or of gensar"),
        (lambda: run.vectors({}, "item"), "a run with item vectors, found one of searching"),
    ):
        with pytest.raises(UserError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
