"""python -m benchmarks.decoding: speed of CRS's sampled reasoning on this machine.

Random weights (the work does not depend on them) at a published decoder's shapes, one prompt and G
trajectories. A step of all trajectories must read every parameter once, so that the time of a read
of as many bytes, measured between the rounds, bounds it from below. Steps are timed by the
difference of two lengths, which leaves the prompt's pass out; every figure is the best of several
rounds.
"""

from __future__ import annotations

from absl import flags

from core import cli


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string("size", "0.6b", "a size of crs_jax.decoder_config")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the computation")
    flags.DEFINE_integer("count", 8, "G, trajectories", lower_bound=1)
    flags.DEFINE_integer("length", 256, "tokens of the prompt", lower_bound=1)
    flags.DEFINE_integer("tokens", 17, "of a trajectory", lower_bound=1)
    flags.DEFINE_integer("rounds", 3, "rounds of measuring", lower_bound=1)


cli.begin(__name__, define_flags)

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from crs_jax import generation
from crs_jax.decoder import Decoder, init_params
from crs_jax.decoder_config import QWEN3_ROWS, of_size
from crs_jax.generation import Sampling

_NEW_ROWS = 1024  # about as many id tokens as three levels of 256 and one more take
_READ_BYTES = 2**30


def seconds_of(call: Callable[[], jax.Array]) -> float:
    """Times one call by the clock."""
    start = time.perf_counter()
    call().block_until_ready()
    return time.perf_counter() - start


def measure(
    *,
    size: str,
    dtype: str,
    count: int,
    length: int,
    tokens: int,
    rounds: int,
    read_bytes: int = _READ_BYTES,
    seconds: Callable[[Callable[[], jax.Array]], float] = seconds_of,
) -> list[str]:
    """Measures sampling and reading; returns a line of each.

    Args:
      size, dtype, count, length, tokens, rounds: as the flags.
      read_bytes: of the array that is read alone.
      seconds: times a call.

    Raises:
      UserError: fewer than 2 tokens, which tell no step.
    """
    if tokens < 2:
        raise UserError(f"expected --tokens of 2 or more, found {tokens}; pass more")
    text_rows = QWEN3_ROWS if size != "tiny" else 512
    config = of_size(size, text_rows, _NEW_ROWS, dtype=dtype, remat=False)
    network = Decoder(config)
    params = init_params(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    prompts = jnp.asarray(rng.integers(1, text_rows, (1, length)), jnp.int32)

    def sampled(params, prompts, key, tokens):
        lengths = jnp.full(1, length, jnp.int32)
        prompted = generation.read_prompts(network, params, prompts, lengths)
        # No token ends a trajectory: all are as long as asked.
        samples = generation.sample(
            network, params, prompted, key, count, Sampling(max_tokens=tokens), ()
        )
        return samples.log_probs

    compiled = jax.jit(sampled, static_argnames="tokens")
    lengths = (1, tokens)
    calls = [
        functools.partial(compiled, params, prompts, jax.random.key(1), tokens=tokens)
        for tokens in lengths
    ]
    read = functools.partial(jax.jit(jnp.sum), jnp.ones(read_bytes // 4, jnp.float32))
    for call in (*calls, read):
        call().block_until_ready()
    taken = np.min([[seconds(call) for call in (*calls, read)] for _ in range(rounds)], axis=0)
    step = (taken[1] - taken[0]) / (lengths[1] - lengths[0])
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    bandwidth = read_bytes / taken[2]
    bound = held / bandwidth
    return [
        f"{size}, {dtype}, {count} trajectories, {length} tokens of a prompt: "
        f"{count / step:.1f} tokens/s, {1000 * step:.0f} ms a step",
        f"  {held / 1e9:.2f} GB of parameters at {bandwidth / 1e9:.1f} GB/s, read alone: "
        f"{1000 * bound:.0f} ms, {bound / step:.0%} of a step",
    ]


def main() -> None:
    """Prints two lines."""
    f = flags.FLAGS
    lines = measure(
        size=f.size,
        dtype=f.dtype,
        count=f.count,
        length=f.length,
        tokens=f.tokens,
        rounds=f.rounds,
    )
    print("\n".join(lines))


if __name__ == "__main__":
    cli.run(main)
