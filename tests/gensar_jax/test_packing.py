"""Packing loses nothing, mixes nothing, and leaves little padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gensar_jax.packing import rows_of, to_packed_batch
from gensar_jax.prompts import Example, to_batch
from gensar_jax.t5.config import of_size
from gensar_jax.t5.network import Transformer


def random_examples(count, seed=0, longest=(40, 8)):
    rng = np.random.default_rng(seed)
    return [
        Example(
            rng.integers(2, 30, rng.integers(8, longest[0] + 1)).tolist(),
            rng.integers(2, 30, rng.integers(4, longest[1] + 1)).tolist(),
        )
        for _ in range(count)
    ]


def test_a_batch_worked_by_hand():
    examples = [Example([5, 1], [7, 1]), Example([6, 6, 1], [8, 9, 1]), Example([4, 1], [3, 1])]
    rows = rows_of(examples, 5, 6)
    assert rows == [[1, 0], [2]]
    batch = to_packed_batch(examples, rows, 5, 6)
    assert {name: array.tolist() for name, array in batch.items()} == {
        "encoder_input_tokens": [[6, 6, 1, 5, 1], [4, 1, 0, 0, 0]],
        "encoder_segment_ids": [[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]],
        "decoder_input_tokens": [[0, 8, 9, 0, 7, 0], [0, 3, 0, 0, 0, 0]],
        "decoder_target_tokens": [[8, 9, 1, 7, 1, 0], [3, 1, 0, 0, 0, 0]],
        "decoder_segment_ids": [[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]],
    }
    # Targets may be what fills a row.
    assert rows_of(examples, 9, 3) == [[1], [0], [2]]


def test_every_example_is_in_one_row_and_no_row_is_too_long():
    examples = random_examples(200)
    rows = rows_of(examples, 96, 24)
    assert sorted(place for row in rows for place in row) == list(range(200))
    for row in rows:
        assert sum(len(examples[i].inputs) for i in row) <= 96
        assert sum(len(examples[i].targets) for i in row) <= 24
    assert rows == rows_of(examples, 96, 24)


def test_little_of_a_packed_batch_is_padding():
    examples = random_examples(500)
    rows = rows_of(examples, 96, 32)
    inputs = to_packed_batch(examples, rows, 96, 32)["encoder_input_tokens"]
    assert (inputs == 0).mean() < 0.1
    alone = to_batch(examples, 40, 8)["encoder_input_tokens"]
    assert (alone == 0).mean() > 0.3


def test_logits_of_packed_examples_are_those_of_each_alone():
    examples = random_examples(6, longest=(9, 5))
    rows = rows_of(examples, 24, 14)
    assert max(map(len, rows)) >= 2
    network = Transformer(of_size("tiny", 30))
    token = jnp.ones((1, 1), jnp.int32)
    init = jax.jit(functools.partial(network.init, enable_dropout=False))
    params = init(jax.random.key(0), token, token, token)
    apply = jax.jit(functools.partial(network.apply, enable_dropout=False))
    packed = to_packed_batch(examples, rows, 24, 14)
    logits = np.asarray(apply({"params": params["params"]}, **packed))
    alone = np.asarray(apply({"params": params["params"]}, **to_batch(examples, 9, 5)))
    for row, places in enumerate(rows):
        start = 0
        for place in places:
            length = len(examples[place].targets)
            np.testing.assert_allclose(
                logits[row, start : start + length], alone[place, :length], atol=1e-5
            )
            start += length


def test_an_example_longer_than_a_row_is_an_error():
    with pytest.raises(ValueError, match="at most 5 and 6 tokens, found 7 and 2"):
        rows_of([Example([3] * 7, [3, 1])], 5, 6)
