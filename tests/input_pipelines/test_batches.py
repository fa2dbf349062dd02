"""Batches by hand, exact positions, stateless negatives, saved candidate lists."""

import itertools
import time

import numpy as np
import pytest
from damage import flipped_bits

from core import checksums
from core.errors import UserError
from core.prefetch import ahead
from input_pipelines import batches, candidates, random_streams
from input_pipelines.log import RawEvents, build_log
from input_pipelines.search_task import training_searches
from input_pipelines.splits import split_log

SHAPE = batches.BatchShape(rec_length=3, search_length=2, words=2, clicks=1, candidates=2)


def tiny_log():
    """User a: clicks i1..i5 at 10..50; searches at 5, 25, 35. User b: one click, no search."""
    return build_log(
        "tiny",
        RawEvents(
            click_user=["a"] * 5 + ["b"],
            click_item=["i1", "i2", "i3", "i4", "i5", "i6"],
            click_time=[10, 20, 30, 40, 50, 10],
            search_user=["a", "a", "a"],
            search_time=[5, 25, 35],
            search_words=[["w1", "w2", "w3"], [], ["w2"]],
            search_clicks=[[], ["i7", "i8"], []],
        ),
    )


def random_log(users=40, items=300, seed=0):
    rng = np.random.default_rng(seed)
    clicks = [(u, int(rng.integers(items)), t) for u in range(users) for t in range(8)]
    return build_log(
        "random",
        RawEvents(
            click_user=[f"u{u}" for u, _, _ in clicks],
            click_item=[f"i{i}" for _, i, _ in clicks],
            click_time=[10 * t for _, _, t in clicks],
            search_user=[f"u{u}" for u in range(users)],
            search_time=[35] * users,
            search_words=[["w"]] * users,
            search_clicks=[[f"i{rng.integers(items)}"] for _ in range(users)],
            items=[f"i{i}" for i in range(items)],
        ),
    )


def test_histories_are_cut_and_padded_by_hand():
    log = tiny_log()
    examples = split_log(log, "leave_one_out", min_history=0)
    names = np.array(log.item_ids)
    words = np.array(log.words)
    # Test target of a: i5 at 50. The last 3 clicks, the last 2 searches, 2 words, 1 click.
    batch = batches.assemble(log, examples.test, np.array([0]), SHAPE, np.array([[5, 6]]))
    assert names[batch["rec_items"][0]].tolist() == ["i2", "i3", "i4"]
    assert words[batch["query_words"][0]].tolist() == [["", ""], ["w2", ""]]
    assert names[batch["clicked_items"][0]].tolist() == [["i7"], [""]]
    assert batch["labels"].tolist() == [[1.0, 0.0]] and batch["mask"].tolist() == [1.0]
    # Clicks at 20, 30, 40 and searches at 25, 35.
    assert batch["rec_order"].tolist() == [[0, 2, 4]]
    assert batch["search_order"].tolist() == [[1, 3]]
    # Training target i2 at 20: right-padded, and only what is strictly earlier.
    places = {names[log.rec_items[r]]: n for n, r in enumerate(examples.train.target_row)}
    batch = batches.assemble(
        log, examples.train, np.array([places["i2"], places["i6"]]), SHAPE, np.zeros((2, 2), int)
    )
    assert names[batch["rec_items"][0]].tolist() == ["i1", "", ""]
    assert words[batch["query_words"][0]].tolist() == [["w1", "w2"], ["", ""]]
    # The search at 5 comes before the click at 10; padding has place 0.
    assert batch["rec_order"][0].tolist() == [1, 0, 0]
    assert batch["search_order"][0].tolist() == [0, 0]
    # User b has no history of either kind.
    assert not batch["rec_items"][1].any() and not batch["query_words"][1].any()


def test_events_of_one_time_are_ordered_clicks_first():
    log = build_log(
        "ties",
        RawEvents(
            click_user=["a"] * 3,
            click_item=["i1", "i2", "i3"],
            click_time=[10, 20, 30],
            search_user=["a", "a"],
            search_time=[10, 20],
            search_words=[["w1"], ["w2"]],
            search_clicks=[[], []],
        ),
    )
    test = split_log(log, "leave_one_out").test
    batch = batches.assemble(log, test, np.array([0]), SHAPE, np.array([[3, 1]]))
    assert batch["rec_order"].tolist() == [[0, 2, 0]]
    assert batch["search_order"].tolist() == [[1, 3]]


def test_the_merged_order_is_that_of_sorting_all_events():
    rng = np.random.default_rng(0)
    shape = batches.BatchShape(rec_length=4, search_length=3, words=1, clicks=1, candidates=1)
    users = [f"u{u}" for u in range(50)]
    clicks = [(u, t) for u in users for t in sorted(rng.choice(12, rng.integers(1, 7), False))]
    searches = [(u, t) for u in users for t in sorted(rng.choice(12, rng.integers(0, 6), False))]
    log = build_log(
        "random",
        RawEvents(
            click_user=[u for u, _ in clicks],
            click_item=[f"i{t}" for _, t in clicks],
            click_time=[t for _, t in clicks],
            search_user=[u for u, _ in searches],
            search_time=[t for _, t in searches],
            search_words=[["w"]] * len(searches),
            search_clicks=[[]] * len(searches),
        ),
    )
    test = split_log(log, "leave_one_out").test
    lists = np.ones((len(test), 1), np.int32)
    batch = batches.assemble(log, test, np.arange(len(test)), shape, lists)
    for row, user in enumerate(test.user):
        ends = {"rec": test.rec_end[row], "search": test.search_end[row]}
        events = []
        for kind, length in (("rec", 4), ("search", 3)):
            start = max(getattr(log, f"{kind}_offsets")[user], ends[kind] - length)
            times = getattr(log, f"{kind}_times")[start : ends[kind]]
            events += [(time, kind, place) for place, time in enumerate(times)]
        expected = {"rec": [0] * 4, "search": [0] * 3}
        for place, (_, kind, number) in enumerate(sorted(events)):
            expected[kind][number] = place
        assert batch["rec_order"][row].tolist() == expected["rec"]
        assert batch["search_order"][row].tolist() == expected["search"]


def test_the_validator_names_the_field():
    log = tiny_log()
    examples = split_log(log, "leave_one_out").test
    batch = batches.assemble(log, examples, np.array([0]), SHAPE, np.array([[5, 6]]))
    batches.validate_batch(batch, SHAPE, 1, log)
    for name, value, words in (
        ("candidates", batch["candidates"] + 100, "candidates from 0 to 8, found 106"),
        ("rec_items", batch["rec_items"] - 9, "rec_items from 0 to 8, found -"),
        ("user", batch["user"].astype(np.int64), "dtype int32"),
        ("rec_order", batch["rec_order"] + 1, "rec_order from 0 to 4, found 1 to 5"),
        ("labels", batch["labels"][:, :1], r"shape \(1, 2\)"),
    ):
        with pytest.raises(UserError, match=words):
            batches.validate_batch(batch | {name: value}, SHAPE, 1, log)
    with pytest.raises(UserError, match="difference in mask"):
        batches.validate_batch({k: v for k, v in batch.items() if k != "mask"}, SHAPE, 1, log)


@pytest.mark.parametrize("n", [1, 2, 5, 16, 17, 1000])
def test_the_permutation_is_a_bijection(n):
    for epoch in range(3):
        order = random_streams.permutation(n, random_streams.keys(0, epoch), np.arange(n))
        assert sorted(order) == list(range(n))


def test_permutations_of_epochs_and_seeds_differ():
    orders = {
        tuple(random_streams.permutation(50, random_streams.keys(seed, epoch), np.arange(50)))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9
    # No position is favoured: over many epochs each example comes first about equally often.
    first = random_streams.permutation(
        4, random_streams.keys(0, np.arange(4000)), np.zeros(4000, np.int64)
    )
    assert np.bincount(first, minlength=4).min() > 850


def training(log, batch_size=16, **changes):
    splits = split_log(log, "leave_one_out")
    settings = {"batch_size": batch_size, "seed": 0, "negatives": 1} | changes
    return batches.TrainBatches(log, splits.train, SHAPE, **settings), splits.train


def test_each_epoch_has_each_example_once_across_batches():
    source, train = training(random_log(), batch_size=32)
    wanted = [(u, t) for u, t in zip(train.user, np.arange(len(train)), strict=True)]
    steps = -(-2 * len(train) // 32)
    users = np.concatenate([source.batch_at(s)["user"] for s in range(steps)])
    for epoch in range(2):
        part = users[epoch * len(train) : (epoch + 1) * len(train)]
        assert sorted(part) == sorted(u for u, _ in wanted)
    assert source.steps_per_epoch == -(-len(train) // 32)


def test_two_hosts_read_the_batch_of_one():
    log = random_log()
    whole, _ = training(log)
    halves = [training(log, process_index=i, process_count=2)[0] for i in range(2)]
    for step in (0, 5, 31):
        parts = [h.batch_at(step) for h in halves]
        for name, value in whole.batch_at(step).items():
            joined = np.concatenate([p[name] for p in parts])
            np.testing.assert_array_equal(joined, value, err_msg=name)
    with pytest.raises(UserError, match="divisible by 3 hosts"):
        training(log, process_count=3)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_together_read_each_example_once_an_epoch_in_one_order(hosts):
    users, clicks = 12, 7
    log = build_log(
        "own items",  # an example is known by its target
        RawEvents(
            click_user=[f"u{u}" for u in range(users) for _ in range(clicks)],
            click_item=[f"i{u}-{t}" for u in range(users) for t in range(clicks)],
            click_time=[t for _ in range(users) for t in range(clicks)],
            search_user=[],
            search_time=[],
            search_words=[],
            search_clicks=[],
        ),
    )
    sources = [
        training(log, batch_size=8, process_index=i, process_count=hosts)[0] for i in range(hosts)
    ]
    train = split_log(log, "leave_one_out").train
    assert len(train) == users * (clicks - 3)  # 48, six batches an epoch
    streams = [itertools.islice(source.stream(0), 12) for source in sources]
    targets = np.concatenate(
        [np.concatenate([batch["candidates"][:, 0] for batch in step]) for step in zip(*streams)]
    )
    wanted = sorted(np.asarray(log.rec_items)[train.target_row])
    first, second = targets[:48], targets[48:]
    assert sorted(first) == sorted(second) == wanted
    assert not np.array_equal(first, second)
    alone = training(log, batch_size=8)[0]
    order = np.concatenate([alone.batch_at(step)["candidates"][:, 0] for step in range(12)])
    np.testing.assert_array_equal(targets, order)


def test_a_stream_from_step_n_is_the_tail_of_the_whole_stream():
    source, _ = training(random_log())
    tail = list(itertools.islice(source.stream(3), 4))
    for step, batch in enumerate(tail, start=3):
        for name, value in source.batch_at(step).items():
            np.testing.assert_array_equal(batch[name], value, err_msg=name)


@pytest.mark.parametrize("searches", [False, True])
@pytest.mark.parametrize("host", [(0, 1), (1, 2)])
def test_threads_and_tf_data_give_the_same_batches(searches, host):
    pytest.importorskip("tensorflow", reason="threads make the batches without it")
    log = random_log()
    changes = {"process_index": host[0], "process_count": host[1]}
    if searches:
        changes["searches"] = training_searches(log, split_log(log, "leave_one_out"))
    source, _ = training(log, **changes)
    threads = itertools.islice(ahead(source.batch_at, 2, count=4, threads=2), 3)
    for ours, theirs in zip(threads, itertools.islice(source.stream(2), 3), strict=True):
        assert set(ours) == set(theirs) and ("query" in ours) == searches
        for name, value in ours.items():
            assert theirs[name].dtype == value.dtype, name
            np.testing.assert_array_equal(theirs[name], value, err_msg=name)


def test_negatives_are_distinct_untouched_and_repeatable():
    log = random_log()
    splits = split_log(log, "leave_one_out")
    touched = candidates.TouchedItems(log)
    examples = splits.train
    arguments = {
        "user": examples.user,
        "time": np.asarray(log.rec_times)[examples.target_row],
        "target": np.asarray(log.rec_items)[examples.target_row],
        "count": 50,
    }
    keys = random_streams.keys(0, np.arange(len(examples)))
    negatives = candidates.draw_negatives(touched, log.num_items, key=keys, **arguments)
    for row in range(len(examples)):
        user, time = int(examples.user[row]), int(arguments["time"][row])
        assert len(set(negatives[row])) == 50 and arguments["target"][row] not in negatives[row]
        assert not set(negatives[row]) & set(touched.of_user(user, earlier_than=time + 1).tolist())
        assert negatives[row].min() >= 1 and negatives[row].max() <= log.num_items
    part = slice(5, 9)
    alone = candidates.draw_negatives(
        touched,
        log.num_items,
        key=keys[part],
        **{k: v if k == "count" else v[part] for k, v in arguments.items()},
    )
    np.testing.assert_array_equal(alone, negatives[part])


def test_items_touched_later_may_be_negatives():
    log = tiny_log()
    touched = candidates.TouchedItems(log)
    user, i5 = np.array([1]), np.array([5])
    assert not touched.before(user, i5, np.array([49]))[0]
    assert touched.before(user, i5, np.array([50]))[0]
    # i7 was clicked in a search at 25.
    assert touched.before(user, np.array([7]), np.array([25]))[0]
    assert not touched.before(user, np.array([7]), np.array([24]))[0]


def test_evaluation_lists_drawn_in_parts_are_the_same(tmp_path):
    log = random_log()
    splits = split_log(log, "leave_one_out")
    whole = candidates.evaluation_candidates(log, splits, "test", "neg99", 0, str(tmp_path))
    (tmp_path / "b").mkdir()
    parts = candidates.evaluation_candidates(
        log, splits, "test", "neg99", 0, str(tmp_path / "b"), drawn_rows=7
    )
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("protocol", candidates.PROTOCOLS)
def test_evaluation_lists_are_drawn_once_and_saved(tmp_path, protocol):
    log = random_log()
    splits = split_log(log, "leave_one_out")
    lists = candidates.evaluation_candidates(log, splits, "test", protocol, 0, str(tmp_path))
    assert lists.shape == (40, 100)
    np.testing.assert_array_equal(lists[:, 0], log.rec_items[splits.test.target_row])
    for row, user in zip(lists, splits.test.user, strict=True):
        assert len(set(row)) == 100 and row.min() >= 1
        history = log.rec_items[log.rec_offsets[user] : log.rec_offsets[user + 1]]
        assert not set(row[1:]) & set(history)
    files = sorted(p.name for p in tmp_path.iterdir())
    again = candidates.evaluation_candidates(log, splits, "test", protocol, 0, str(tmp_path))
    np.testing.assert_array_equal(lists, again)
    assert files == sorted(p.name for p in tmp_path.iterdir()) and len(files) == 2
    other = candidates.evaluation_candidates(log, splits, "test", protocol, 1, str(tmp_path))
    assert not np.array_equal(lists, other)


def test_a_full_disk_leaves_no_lists_and_says_so(tmp_path, monkeypatch):
    log = random_log()
    splits = split_log(log, "leave_one_out")

    def full(file, array, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match=r"candidate lists into .*, found No space left on device"):
        candidates.evaluation_candidates(log, splits, "test", "neg99", 0, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_tampered_lists_are_refused(tmp_path):
    log = random_log()
    splits = split_log(log, "leave_one_out")
    candidates.evaluation_candidates(log, splits, "test", "neg99", 0, str(tmp_path))
    for kind in ("npy", "json"):
        for what in flipped_bits(next(tmp_path.glob(f"*.{kind}"))):
            with pytest.raises(UserError, match="to draw them again with the same seed"):
                candidates.evaluation_candidates(log, splits, "test", "neg99", 0, str(tmp_path))
                pytest.fail(what)
    hash_file = next(tmp_path.glob("*.json"))
    described = checksums.read_sealed(str(hash_file), "", "")
    checksums.write_sealed(str(hash_file), described | {"hash": "0"})
    with pytest.raises(UserError, match="saved hash"):
        candidates.evaluation_candidates(log, splits, "test", "neg99", 0, str(tmp_path))


def test_popular_items_are_drawn_more_often_by_popularity(tmp_path):
    rng = np.random.default_rng(0)
    users, items = 60, 400
    # Item 0 gets a third of all clicks of the first 30 users; the others never touch it.
    clicks = [
        (u, 0 if u < 30 and t == 0 else int(rng.integers(1, items)), t)
        for u in range(users)
        for t in range(6)
    ]
    log = build_log(
        "popular",
        RawEvents(
            [f"u{u}" for u, _, _ in clicks],
            [f"i{i}" for _, i, _ in clicks],
            [t for _, _, t in clicks],
            [],
            [],
            [],
            [],
            items=[f"i{i}" for i in range(items)],
        ),
    )
    splits = split_log(log, "leave_one_out", min_history=0)
    popular = log.item_ids.tolist().index("i0")
    late = np.array([int(str(log.user_ids[u])[1:]) >= 30 for u in splits.test.user])
    share = {
        p: (
            candidates.evaluation_candidates(log, splits, "test", p, 0, str(tmp_path))[late, 1:]
            == popular
        )
        .any(1)
        .mean()
        for p in candidates.PROTOCOLS
    }
    assert share["neg99"] < 0.5 and share["neg99pop"] > 0.9


def test_seen_items_are_strictly_before_and_never_the_target():
    log = tiny_log()
    seen = candidates.seen_items(log, split_log(log, "leave_one_out").test)
    names = sorted(log.item_ids[i] for i in seen[0] if i)
    assert names == ["i1", "i2", "i3", "i4", "i7", "i8"]


def test_evaluation_batches_pad_the_last():
    log = random_log()
    test = split_log(log, "leave_one_out").test
    lists = np.tile(np.arange(1, 3), (40, 1))
    padded = list(batches.evaluation_batches(log, test, lists, SHAPE, 16))
    assert [b["mask"].sum() for b in padded] == [16, 16, 8]
    assert all(len(b["user"]) == 16 for b in padded)
    users = np.concatenate([b["user"][b["mask"] > 0] for b in padded])
    np.testing.assert_array_equal(users, test.user)


def test_a_stream_has_no_tuner_that_its_end_would_wait_for(monkeypatch):
    tensorflow = pytest.importorskip("tensorflow", reason="threads make the batches without it")
    prefetch, tuned = tensorflow.data.Dataset.prefetch, []

    def noted(dataset, *arguments):
        tuned.append(dataset.options().autotune.enabled)
        return prefetch(dataset, *arguments)

    monkeypatch.setattr(tensorflow.data.Dataset, "prefetch", noted)
    source, _ = training(random_log())
    stream = source.stream(0)
    next(stream)
    stream.close()
    assert tuned == [False]


def test_values_made_ahead_that_nobody_wants_are_not_waited_for():
    began, made = time.monotonic(), []

    def make(number):
        made.append(number)
        time.sleep(0.05)
        return number

    stream = ahead(make, 0, count=100, threads=1)
    assert next(stream) == 0
    stream.close()
    assert len(made) < 10 and time.monotonic() - began < 2.0
