"""Makes random streams by name: from one seed, as many independent ones as it has uses.

Adding numbers to a seed does not make streams: iteration 1 of seed 0 would draw what iteration 0 of
seed 1 draws, and seeds that stand for independent runs would share their noise.
"""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, *names: str | int) -> np.random.SeedSequence:
    """Returns the random stream of a use: it depends on the seed and on every name, in order.

    Args:
      seed: of the run, not negative.
      names: what it is for, such as 'order', the name of a stage, the number of an epoch.
    """
    numbers = [zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names]
    # `spawn_key` and not further entropy, in which trailing zeros say nothing.
    return np.random.SeedSequence(seed, spawn_key=numbers)


def number(seed: int, *names: str | int) -> int:
    """Returns a seed in [0, 2^32) of the use that `stream` describes, for what takes integers."""
    return int(stream(seed, *names).generate_state(1)[0])
