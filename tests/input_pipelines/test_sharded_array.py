"""An array in shards answers as the whole one, and opens the shards that it needs alone."""

import threading

import numpy as np
import pytest

from input_pipelines.sharded_array import ShardedArray

WHOLE = np.arange(100, 120, dtype=np.int32)


def sharded(starts, whole=WHOLE):
    opened = []

    def open_shard(number):
        opened.append(number)
        return whole[starts[number] : starts[number + 1]]

    return ShardedArray(starts, whole.dtype, open_shard), opened


@pytest.mark.parametrize("starts", [[0, 20], [0, 5, 5, 9, 20, 20], [0, 0, 1, 2, 19, 20]])
def test_it_answers_as_the_whole_array(starts):
    array, _ = sharded(starts)
    assert (len(array), array.shape, array.size, array.dtype) == (20, (20,), 20, np.int32)
    np.testing.assert_array_equal(np.asarray(array), WHOLE)
    np.testing.assert_array_equal(np.diff(array), np.diff(WHOLE))
    assert (array.min(), array.max()) == (100, 119)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 20, (3, 4, 2))
    for asked in (0, 19, -1, np.int64(7), slice(None), slice(3, 12), slice(8, 3), slice(-4, None),
                  slice(0, 20, 3), rows, rows[:0], rows[0, 0].tolist(), WHOLE > 107):  # fmt: skip
        answer, expected = array[asked], WHOLE[asked]
        np.testing.assert_array_equal(answer, expected)
        assert answer.dtype == expected.dtype and np.shape(answer) == np.shape(expected)


def test_it_opens_what_is_asked_for_and_that_once():
    array, opened = sharded([0, 5, 9, 20])
    assert array[6] == 106 and array[np.array([[5, 8]])].tolist() == [[105, 108]]
    assert opened == [1] and array.opened == [1]
    assert array[7:11].tolist() == [107, 108, 109, 110] and array[[0, 19]].tolist() == [100, 119]
    assert opened == [1, 2, 0]
    assert [part.tolist() for part in array.parts()] == [
        WHOLE[:5].tolist(), WHOLE[5:9].tolist(), WHOLE[9:].tolist()]  # fmt: skip
    assert len(opened) == 3


def test_rows_that_are_not_there():
    array, opened = sharded([0, 5, 20])
    for asked in (20, -21, [0, 20], [-1, 3], np.ones(19, bool)):
        with pytest.raises(IndexError):
            array[asked]
    assert not opened


def test_threads_read_the_same():
    array, _ = sharded([0, 3, 7, 11, 20])
    rows = np.random.default_rng(1).integers(0, 20, (8, 50))
    answers = [None] * 8

    def read(number):
        answers[number] = array[rows[number]]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.stack(answers), WHOLE[rows])
