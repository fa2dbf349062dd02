"""python -m benchmarks.generation: speed of GenSAR's constrained beam search on this machine.

Random weights, prompts and identifiers (the work does not depend on them), PEERS' shapes by
default. Each figure is the best of several rounds, the matrix product's rate measured between them;
"per CPU second" counts the process's own time, which other work on the machine hardly changes.
"""

from __future__ import annotations

from absl import flags

from core import cli


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string("size", "t5-small", "a size of gensar_jax.t5.config")
    flags.DEFINE_list("items", ["12000", "1000000"], "catalogues to search")
    flags.DEFINE_integer("batch", 8, "users at once", lower_bound=1)
    flags.DEFINE_integer("length", 96, "tokens of a prompt", lower_bound=1)
    flags.DEFINE_integer("width", 30, "beams", lower_bound=1)
    flags.DEFINE_integer("rounds", 3, "rounds of measuring", lower_bound=1)


cli.begin(__name__, define_flags)

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core import trie as tries
from core.errors import UserError
from core.trie import Trie
from gensar_jax.generation import generate
from gensar_jax.t5.config import T5Config, of_size
from gensar_jax.t5.network import Transformer

_TEXT_ROWS, _CODES, _LEVELS = 32_000, 256, 4
# T5-small's pieces, three behaviour tokens, and M1, M2, S1, S2, R1, R2.
_WORDS = _TEXT_ROWS + 3 + 6 * _CODES


class Flops(NamedTuple):
    """Operations a user: of the network, and of the logits over the whole vocabulary."""

    network: float
    logits: float


class Rate(NamedTuple):
    """Seconds of a call, on the clock and of the process's CPU time."""

    wall: float
    cpu: float


def flops_of_a_user(config: T5Config, length: int, widths: tuple[int, ...], forced: int) -> Flops:
    """Multiplications and additions, each one operation, of `generate` for one user.

    Args:
      config: of the network.
      length: T, tokens of the prompt.
      widths: beams that read a token at each level; the first is 1.
      forced: P, tokens that one beam reads before the start of the identifier.
    """
    d, inner = config.emb_dim, config.num_heads * config.head_dim
    mlp = (1 + len(config.mlp_activations)) * d * config.mlp_dim
    # Scores and mixtures over T positions.
    attention = 2 * length * inner
    encoder = length * (4 * d * inner + mlp + attention) * config.num_encoder_layers
    contexts = length * 2 * d * inner * config.num_decoder_layers
    rows = forced + sum(widths)
    decoder = rows * (6 * d * inner + mlp + attention) * config.num_decoder_layers
    logits = sum(widths) * d * config.vocab_size
    return Flops(2.0 * (encoder + contexts + decoder), 2.0 * logits)


def random_trie(items: int, seed: int) -> Trie:
    """Makes distinct identifiers of four codes of 256, as <M1> <M2> <R1> <R2>."""
    rng = np.random.default_rng(seed)
    codes = np.unique(rng.integers(0, _CODES, (items, _LEVELS)), axis=0)
    starts = _TEXT_ROWS + 3 + _CODES * np.array([0, 1, 4, 5])
    return tries.build(codes + starts)


def best_of(call: Callable[[], jax.Array], rounds: int) -> Rate:
    """Returns the fastest of several calls."""
    wall, cpu = [], []
    for _ in range(rounds):
        begin = time.perf_counter(), time.process_time()
        call().block_until_ready()
        wall.append(time.perf_counter() - begin[0])
        cpu.append(time.process_time() - begin[1])
    return Rate(min(wall), min(cpu))


def main() -> None:
    """Prints one line a catalogue."""
    f = flags.FLAGS
    if not f.items or not all(count.isdecimal() and int(count) for count in f.items):
        raise UserError(
            f"expected --items of whole numbers above 0, found {','.join(f.items)!r}; for instance "
            "--items=12000,1000000"
        )
    config = of_size(f.size, _WORDS)
    network = Transformer(config)
    token = jnp.ones((1, 1), jnp.int32)
    init = jax.jit(functools.partial(network.init, enable_dropout=False))
    params = init(jax.random.key(0), token, token, token)["params"]
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.integers(1, _WORDS, (f.batch, f.length)), jnp.int32)
    forced = jnp.full((f.batch, 1), _TEXT_ROWS, jnp.int32)
    square = jnp.ones((2048, 2048))
    product = jax.jit(lambda a: a @ a)
    product(square).block_until_ready()
    for items in map(int, f.items):
        trie = random_trie(items, seed=0)
        widths = (1, *(min(f.width, level.shape[0]) for level in trie.tokens[:-1]))
        work = flops_of_a_user(config, f.length, widths, forced=1)
        run = jax.jit(functools.partial(generate, network, width=f.width))

        def call(run=run, trie=trie):
            return run(params, inputs, forced, trie).scores

        call().block_until_ready()
        rounds = [
            (best_of(functools.partial(product, square), 3), best_of(call, 2))
            for _ in range(f.rounds)
        ]
        matmul = Rate(*(min(r[0][i] for r in rounds) for i in range(2)))
        search = Rate(*(min(r[1][i] for r in rounds) for i in range(2)))
        print(
            f"{f.size}, {trie.items.shape[0]} items, {f.length} tokens, beam {f.width}, batch "
            f"{f.batch}: {f.batch / search.wall:.2f} users/s, "
            f"{work.network / 1e9:.1f} + {work.logits / 1e9:.1f} GFLOP a user (network + logits)"
        )
        for name, share, rate in (
            ("clock", search.wall, matmul.wall),
            ("CPU second", search.cpu, matmul.cpu),
        ):
            peak = 2 * square.shape[0] ** 3 / rate
            reached = [f.batch * w / share / peak for w in (work.network, sum(work))]
            print(
                f"  per {name}: matrix product {peak / 1e9:.1f} GFLOP/s, the search reaches "
                f"{reached[0]:.0%} of it (network alone) or {reached[1]:.0%} (with logits)"
            )


if __name__ == "__main__":
    cli.run(main)
