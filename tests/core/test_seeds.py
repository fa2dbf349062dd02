"""Random streams by name: none repeats another's."""

import itertools

import numpy as np

from core import seeds


def test_streams_differ_by_seed_and_by_every_name():
    uses = [
        (seed, *names)
        for seed in (0, 1, 97)
        for names in itertools.product(("rl_0", "rl_1", "sft_1"), ("order", "rollouts"), (0, 1))
    ]
    uses += [(seed, name) for seed in (0, 1, 97) for name in ("rl_0", "rl_1")]
    numbers = {seeds.number(*use) for use in uses}
    assert len(numbers) == len(uses)
    drawn = {
        tuple(np.random.default_rng(seeds.stream(*use)).integers(1000, size=4)) for use in uses
    }
    assert len(drawn) == len(uses)


def test_a_stream_stays_what_it_is():
    # Stored: a run that is resumed in another process draws what it would have drawn before.
    assert seeds.number(0, "rl_0", "rollouts") == 1825124996
    assert seeds.number(1, "rl_0", "order", 2) == 3729104035
