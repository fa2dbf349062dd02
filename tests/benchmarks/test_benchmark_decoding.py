"""The decoding benchmark runs at the tiny size and gives its two lines."""

import re

import pytest

from benchmarks import decoding
from core.errors import UserError

TINY = {"size": "tiny", "dtype": "float32", "count": 2, "length": 8, "tokens": 5, "rounds": 2}


def test_it_tells_speed_and_bound():
    seconds = iter([1.0, 3.0, 0.5, 2.0, 4.0, 0.25])

    def timed(call):
        call().block_until_ready()
        return next(seconds)

    speed, bound = decoding.measure(**TINY, read_bytes=2**16, seconds=timed)
    # The best of two rounds: 1 s for a token and 3 s for five, so half a second a step of two.
    assert speed == (
        "tiny, float32, 2 trajectories, 8 tokens of a prompt: 4.0 tokens/s, 500 ms a step"
    )
    assert re.fullmatch(
        r"  \d+\.\d\d GB of parameters at 0\.0 GB/s, read alone: \d+ ms, \d+% of a step", bound
    )


def test_a_step_needs_two_lengths():
    with pytest.raises(UserError, match="expected --tokens of 2 or more, found 1; pass more"):
        decoding.measure(**TINY | {"tokens": 1})
