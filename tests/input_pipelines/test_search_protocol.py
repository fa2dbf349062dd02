"""What is ranked in a held-out search, on searches counted by hand."""

import numpy as np
import pytest
from ml_collections import config_dict

from core import metrics
from core.errors import UserError
from input_pipelines import search_protocol
from input_pipelines.log import RawEvents, build_log
from input_pipelines.search_task import SearchExamples


def log_of(unclicked):
    """Ann's searches at 1, 2 and 3; items a, b, c, d are 1 to 4."""
    return build_log(
        "tiny",
        RawEvents(
            click_user=["ann"],
            click_item=["a"],
            click_time=[9],
            search_user=["ann"] * 3,
            search_time=[1, 2, 3],
            search_words=[["tea"], ["cup"], ["pot"]],
            search_clicks=[["a", "b"], ["c"], ["d"]],
            items=["a", "b", "c", "d"],
            search_unclicked=unclicked,
        ),
    )


def examples():
    """Both clicks of the first search, and those of the others."""
    rows = np.array([0, 0, 1, 2])
    item = np.array([1, 2, 3, 4], np.int32)
    return SearchExamples(np.array([1, 1, 1, 1], np.int32), rows, rows * 0, rows, item)


def test_the_target_is_ranked_among_what_was_not_clicked():
    log = log_of([["d", "c"], ["b"], []])
    lists = search_protocol.impressions(log, examples())
    assert lists.tolist() == [[1, 4, 3], [2, 4, 3], [3, 2, 0], [4, 0, 0]]
    scores = np.array([[5, 9, 1], [5, 5, 5], [5, 4, 99], [5, 99, np.nan]], np.float32)
    sums = metrics.Sums(("hr@1", "hr@2"))
    search_protocol.add_impressions(sums, scores, lists)
    # One above; a tie of three; first, whatever padding scores; the last has nothing to rank.
    assert sums.count == 3
    assert sums.per_example()["hr@1"].tolist() == pytest.approx([0, 1 / 3, 1])
    assert sums.per_example()["hr@2"].tolist() == pytest.approx([1, 2 / 3, 1])
    users = search_protocol.users(log, examples(), search_protocol.IMPRESSIONS)
    assert users.tolist() == [1, 1, 1]
    assert len(search_protocol.users(log, examples(), search_protocol.PROTOCOL)) == 4


def test_a_score_that_is_no_number_is_refused_where_it_counts():
    lists = search_protocol.impressions(log_of([["d"], ["b"], []]), examples())
    scores = np.ones(lists.shape, np.float32)
    scores[1, 1] = np.nan
    with pytest.raises(FloatingPointError, match="NaN scores in 1 of 3"):
        search_protocol.add_impressions(metrics.Sums(("hr@1",)), scores, lists)


@pytest.mark.parametrize("unclicked", [None, [[], [], []]])
def test_a_log_without_impressions_is_refused(unclicked):
    with pytest.raises(UserError, match="not clicked in the searches of tiny, found none"):
        search_protocol.impressions(log_of(unclicked), examples())


def test_the_protocols_of_a_run():
    config = config_dict.ConfigDict(
        {"eval": {"metrics": ("hr@1",), "selection": "hr@1/search/catalogue"}}
    )
    config.eval.search_protocols = ("catalogue",)
    assert search_protocol.evaluated(config) == ("search/catalogue",)
    search_protocol.check(config)
    config.eval.selection = "hr@1/search/impressions"
    with pytest.raises(UserError, match="selection of hr@1/search/catalogue, found"):
        search_protocol.check(config)
    config.eval.search_protocols = ("catalogue", "impressions")
    search_protocol.check(config)
    assert search_protocol.evaluated(config) == ("search/catalogue", "search/impressions")
    config.eval.search_protocols = ("neg99",)
    with pytest.raises(UserError, match="--protocol=catalogue or impressions of this run, found"):
        search_protocol.check(config)


def test_users_are_grouped_by_what_they_asked_before():
    asked = [["tea"], ["tea"], [], ["tea"], ["cup"], ["tea"]]
    log = build_log(
        "tiny",
        RawEvents(
            click_user=["ann"],
            click_item=["a"],
            click_time=[9],
            search_user=["ann"] * 6 + ["bob"],
            search_time=[1, 2, 3, 4, 5, 6, 1],
            search_words=[*asked, ["cup"]],
            search_clicks=[["a"]] * 7,
            items=["a"],
        ),
    )
    ends = np.arange(7)
    user = np.array([1] * 6 + [2], np.int32)
    ends[6] = 6
    searches = SearchExamples(user, ends, ends * 0, ends, np.ones(7, np.int32))
    # tea, tea again as another click-out, none, tea: only what is new since the row before counts.
    assert search_protocol.asked_before(log, searches).tolist() == [0, 1, 1, 1, 2, 3, 0]
