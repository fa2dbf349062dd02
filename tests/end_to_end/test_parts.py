"""The parts of a training batch that several processes make are together that of one process."""

import dataclasses
import itertools

import numpy as np
import pytest

from core.errors import UserError
from experiments.resolve import resolve
from input_pipelines import batches
from input_pipelines.dataset import Dataset
from input_pipelines.search_task import SearchExamples


@pytest.fixture
def data(small_config, monkeypatch):
    # Threads make the same batches, without seconds for TensorFlow's import.
    monkeypatch.setattr(batches.importlib.util, "find_spec", lambda name: None)
    return Dataset(resolve(small_config))


def made_up_searches(data):
    """Examples of the search task: the made-up searches have no clicks, which these need."""
    chosen = data.splits.train.take(np.arange(35))
    fields = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
    fields["target_row"] = np.arange(35)
    return SearchExamples(**fields, item=np.arange(1, 36))


def first_batches(data, process, processes, tasks):
    stream, _ = data.training(
        batch_size=12,
        negatives=2,
        seed=3,
        tasks=tasks,
        searches=made_up_searches(data),
        processes=(process, processes),
    )
    return list(itertools.islice(stream(5), 3))


@pytest.mark.parametrize("tasks", [("recommendation",), ("recommendation", "search")])
def test_parts_make_the_batch_of_one_process(data, tasks):
    whole = first_batches(data, 0, 1, tasks)
    parts = [first_batches(data, i, 2, tasks) for i in range(2)]
    for step, batch in enumerate(whole):
        for name, rows in batch.items():
            pieces = [part[step][name] for part in parts]
            assert len(pieces[0]) == len(pieces[1]) < len(rows)
            np.testing.assert_array_equal(np.concatenate(pieces), rows)


def test_rows_that_do_not_divide_among_processes_are_refused(data):
    with pytest.raises(UserError, match="found 12"):
        first_batches(data, 0, 5, ("recommendation",))
    # 12 and 2 search examples a batch.
    with pytest.raises(UserError, match="divide among 3 processes, found 14"):
        first_batches(data, 0, 3, ("recommendation", "search"))
