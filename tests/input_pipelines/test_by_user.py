"""The split by user: nothing of a held-out user trains, neither clicks nor searches."""

import numpy as np

from input_pipelines import search_task, splits
from input_pipelines.log import RawEvents, build_log


def log_of(users=40):
    names = [f"u{i}" for i in range(users) for _ in range(3)]
    return build_log(
        "tiny",
        RawEvents(
            click_user=names,
            click_item=[f"i{i}" for i in range(3 * users)],
            click_time=[10, 20, 30] * users,
            search_user=[*names, "u0", "silent"],
            search_time=[*[5, 15, 25] * users, 35, 5],
            # The last search of u0 has no words, and cannot be a target.
            search_words=[*[[f"w{i}"] for i in range(3 * users)], [], ["w"]],
            search_clicks=[*[[f"s{i}"] for i in range(3 * users)], ["s0"], ["s1"]],
        ),
    )


def test_users_part_and_each_held_out_one_keeps_its_last_search():
    log = log_of()
    split = splits.split_log(log, "by_user", seed=3)
    splits.check_leakage(log, split)
    parts = [set(part.user.tolist()) for part in (split.train, split.validation, split.test)]
    assert [len(part) for part in parts] == [32, 4, 4]
    assert len(set.union(*parts)) == 40
    times = np.asarray(log.rec_times)
    assert times[split.test.target_row].tolist() == [30] * 4
    assert len(split.training_rows) == 32 * 3
    trained = search_task.training_searches(log, split)
    silent = log.user_ids.index("silent")
    assert set(trained.user.tolist()) == parts[0] | {silent} and len(trained) == 32 * 3 + 1
    for number, name in ((1, "validation"), (2, "test")):
        held_out = search_task.held_out_searches(log, split, name)
        assert set(held_out.user.tolist()) == parts[number] and len(held_out) == 4
        assert np.asarray(log.search_times)[held_out.target_row].tolist() == [25] * 4
        # The whole history of a user nobody trained on, strictly before.
        assert (held_out.rec_end - log.rec_offsets[held_out.user] == 2).all()
        assert (held_out.search_end - log.search_offsets[held_out.user] == 2).all()
    other = splits.split_log(log, "by_user", seed=4)
    assert set(other.test.user.tolist()) != parts[2]
