"""Users that a rollout scores in chunks: cut without moving between devices, the same gradients."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small_batches import config, ragged_batch, setup

from core.partitioning import Partition, make_mesh
from lcrsr import rollout
from lcrsr.embedding import PARTITION_RULES, look_up


def test_as_few_chunks_as_the_limit_allows():
    assert rollout.chunk_count(8, 100, 800) == 1
    assert rollout.chunk_count(9, 100, 800) == 3  # of 3 users: 2 chunks would not be equal
    assert rollout.chunk_count(512, 100, 800) == 64
    assert rollout.chunk_count(7, 1000, 800) == 7  # one user is over the limit already


def test_every_devices_users_are_in_every_chunk_and_stay_there():
    partition = Partition(make_mesh(2, 4), PARTITION_RULES)
    cut = jax.jit(
        lambda values: rollout.in_chunks(values, 2, partition),
        in_shardings=partition.batch_sharding,
    )
    whole = jax.jit(lambda values: rollout.out_of_chunks(values, partition))
    users = jnp.arange(32)
    # Device d holds users 4d to 4d + 3: the first two of them go first.
    first = [4 * device + i for device in range(8) for i in (0, 1)]
    np.testing.assert_array_equal(cut(users), [first, [user + 2 for user in first]])
    np.testing.assert_array_equal(whole(cut(users)), users)
    # Alone, users go in their order.
    np.testing.assert_array_equal(rollout.in_chunks(users, 4, None), np.arange(32).reshape(4, 8))
    for program, of in ((cut, users), (whole, cut(users))):
        text = program.lower(of).compile().as_text()
        assert "all-" not in text and "collective" not in text


@pytest.mark.slow
def test_chunks_give_the_same_loss_and_gradients():
    batch = ragged_batch(candidates=6)
    model, params, tables = setup(config(), batch)
    reference = rollout.Policy(jax.tree.map(lambda p: 1.1 * p, params), tables)
    rows = look_up(tables, batch)

    def gradients(most_scored):
        def value(params, rows):
            return rollout.grpo_loss(
                model,
                rollout.Policy(params, tables),
                rows,
                None,
                reference,
                batch,
                jax.random.key(0),
                active_steps=jnp.int32(3),
                num_trajectories=4,
                gamma=0.5,
                reward="ndcg@5",
                policy="softmax",
                kl_weight=0.1,
                clip_eps=None,
                most_scored=most_scored,
            )[0]

        traced = jax.jit(jax.value_and_grad(value, argnums=(0, 1))).lower(params, rows)
        return traced.as_text().count("stablehlo.while"), traced.compile()(params, rows)

    loops, expected = gradients(rollout.MOST_SCORED)
    more_loops, chunked = gradients(2 * 4 * 6)  # two of the six users at a time
    assert more_loops > loops
    for ours, theirs in zip(jax.tree.leaves(chunked), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
