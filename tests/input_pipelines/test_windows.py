"""Windows hold every training target once, and each sees what it sees one by one."""

import numpy as np
import pytest
from windows_log import history, log_of, one_by_one, sources

from core.errors import UserError
from input_pipelines import windows


def every_batch(source, epochs=1):
    """The batches of whole epochs, and the rows that the last one has beyond them."""
    rows = len(source._starts) - 1
    steps = -(-epochs * rows // source._batch_rows)
    return [source.batch_at(step) for step in range(steps)], epochs * rows


@pytest.mark.parametrize("targets", [2, 5, 16])
@pytest.mark.parametrize("length", [4, 40])
def test_every_target_is_there_once_an_epoch(targets, length):
    log = log_of(30)
    source, _, examples = sources(log, length, targets)
    made, rows = every_batch(source)
    places = source.window_shape.targets
    user, item, mask = (
        np.concatenate([values(batch) for batch in made])[: rows * places]
        for values in (
            lambda batch: batch["user"],
            lambda batch: batch["candidates"][:, 0],
            lambda batch: batch["mask"],
        )
    )
    seen = sorted(zip(user[mask > 0], item[mask > 0], strict=True))
    wanted = sorted(zip(examples.user, log.rec_items[examples.target_row], strict=True))
    assert seen == wanted
    assert mask.sum() == len(examples)


@pytest.mark.parametrize("targets", [2, 5, 16])
@pytest.mark.parametrize("length", [3, 40])
def test_targets_see_their_own_histories(targets, length):
    log = log_of(30)
    source, _, examples = sources(log, length, targets)
    compared = 0
    for batch in every_batch(source)[0]:
        alone, _, filled = one_by_one(log, length, batch, examples)
        for number, target in enumerate(filled):
            for side, names in (
                ("rec", ("rec_items",)),
                ("search", ("query_words", "clicked_items")),
            ):
                for name, seen in zip(names, history(batch, target, side, names), strict=True):
                    wanted = alone[name][number]
                    np.testing.assert_array_equal(seen, wanted[: len(seen)])
                    assert not wanted[len(seen) :].any()
                    compared += len(seen)
    assert compared > 100


@pytest.mark.parametrize("length", [3, 40])
def test_events_see_their_own_windows_alone_and_not_too_far_back(length):
    log = log_of(30)
    source, _, _ = sources(log, length, 5)
    for batch in every_batch(source)[0]:
        windows_a_row = len(batch["mask"]) // len(batch["rec_items"])
        for side in ("rec", "search"):
            sees, places = batch[f"{side}_sees"], batch[f"{side}_places"]
            columns = np.arange(sees.shape[1])
            assert np.all(sees <= columns) and np.all(columns - sees < length)
            first = batch[f"{side}_first"].reshape(-1, windows_a_row)
            end = batch[f"{side}_end"].reshape(-1, windows_a_row)
            for row in range(len(sees)):
                for begin, stop in zip(first[row], end[row], strict=True):
                    if stop == begin:
                        assert sees[row, begin] == begin
                        continue
                    # The history's last event is encoded with all of it where it is short.
                    assert sees[row, stop - 1] == begin
                    assert np.all(np.diff(places[row, begin:stop]) >= 0)


def test_short_histories_have_the_positions_that_they_have_alone():
    log = log_of(30)
    source, _, _ = sources(log, 40, 16)
    for batch in every_batch(source)[0]:
        for target in np.flatnonzero(batch["mask"]):
            (places,) = history(batch, target, "rec", ["rec_places"])
            assert places.tolist() == list(range(len(places)))


def test_negatives_are_those_of_one_by_one():
    log = log_of(30)
    source, alone, examples = sources(log, 6, 5, batch_size=32)
    wanted = {}
    for step in range(alone.steps_per_epoch):
        batch = alone.batch_at(step)
        first = step * 32
        for place in range(min(32, len(examples) - first)):
            key = int(batch["user"][place]), int(batch["candidates"][place, 0])
            wanted[key] = batch["candidates"][place].tolist()
    made, rows = every_batch(source)
    places = source.window_shape.targets * rows
    found = 0
    for number, batch in enumerate(made):
        for target in np.flatnonzero(batch["mask"]):
            if number * len(batch["mask"]) + target >= places:
                continue  # of the next epoch, which draws others
            key = int(batch["user"][target]), int(batch["candidates"][target, 0])
            assert batch["candidates"][target].tolist() == wanted[key]
            found += 1
    assert found == len(examples)


def test_two_hosts_read_the_windows_of_one():
    log = log_of(30)
    whole, _, _ = sources(log, 6, 5)
    halves = [sources(log, 6, 5, process_index=i, process_count=2)[0] for i in range(2)]
    rows = halves[0]._batch_rows
    for step in (0, 3, 17):
        parts = [half.batch_at(step) for half in halves]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        positions = np.arange(step * rows, (step + 1) * rows)
        for offset, position in enumerate(positions):
            one = whole.batch_at(int(position) // whole._batch_rows)
            row = position % whole._batch_rows
            np.testing.assert_array_equal(one["rec_items"][row], joined["rec_items"][offset])


def test_many_searches_between_two_clicks_cut_a_window():
    log = log_of(30)
    examples = sources(log, 40, 16)[2]
    order = np.lexsort((examples.target_row, examples.user))
    cut = windows.cut_windows(log, examples.take(order), targets=8, rec_length=40, search_length=2)
    assert cut.searches.span.max() <= 2 + 8
    assert cut.targets.sum() == len(examples)
    assert cut.targets.min() >= 1


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("rec_end", lambda v: v + 1000, "rec_end from 0 to"),
        ("search_first", lambda v: v - 1, "search_first from 0 to"),
        ("rec_places", lambda v: v + 6, "rec_places from 0 to 5"),
        ("rec_sees", lambda v: v.astype(np.int64), "rec_sees of shape"),
        ("candidates", lambda v: v + 10_000, "candidates from 0 to 150"),
    ],
)
def test_batches_that_break_the_contract_are_refused(name, change, said):
    log = log_of(30)
    source, _, _ = sources(log, 6, 5)
    batch = source.batch_at(0)
    windows.validate_windows(batch, source.window_shape, log)
    with pytest.raises(UserError, match=said):
        windows.validate_windows(batch | {name: change(batch[name])}, source.window_shape, log)
