"""The quantiser by hand and against NumPy; each reading has a number that the other one misses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_quantizer import quantize_item, sinkhorn_plan

from gensar_jax import quantizer

SOURCES = ("semantic", "collaborative")


def one_number(*levels):
    """Codebooks [L, K, 1] from lists of numbers."""
    return jnp.asarray(levels, jnp.float32)[..., None]


def random_codebooks(seed, shared, specific, codes, width, sources=SOURCES):
    rng = np.random.default_rng(seed)
    books = {"shared": rng.normal(size=(shared, codes, width * len(sources)))}
    books |= {source: rng.normal(size=(specific, codes, width)) for source in sources}
    return {name: book.astype(np.float32) for name, book in books.items()}


@pytest.mark.parametrize(("shared", "specific"), [(2, 2), (0, 3), (3, 0), (1, 1)])
def test_codes_embeddings_and_loss_agree_with_numpy(shared, specific):
    books = random_codebooks(0, shared, specific, 5, 3)
    latents = np.random.default_rng(1).normal(size=(7, 6)).astype(np.float32)
    levels = quantizer.quantize(latents, books, SOURCES)
    ids = quantizer.identifiers(levels, SOURCES)
    found = quantizer.quantized_latents(levels, SOURCES)
    sums, means = [], []
    for item, row in enumerate(latents):
        expected, embedding, terms = quantize_item(row, books, SOURCES)
        for source in SOURCES:
            assert ids[source][item].tolist() == expected[source]
        np.testing.assert_allclose(found[item], embedding, atol=1e-5)
        losses = [1.25 * (r - e) ** 2 for r, e in terms]
        sums.append(sum(loss.sum() for loss in losses))
        means.append(np.mean([loss.mean() for loss in losses]))
    for reduction, each in (("sum", sums), ("mean", means)):
        loss = quantizer.rq_loss(levels, alpha=0.25, reduction=reduction)
        assert float(loss) == pytest.approx(np.mean(each), rel=1e-5)


def test_a_single_source_is_an_ordinary_residual_quantiser():
    books = random_codebooks(2, 2, 2, 4, 3, ("semantic",))
    latents = np.random.default_rng(3).normal(size=(6, 3)).astype(np.float32)
    ids = quantizer.identifiers(quantizer.quantize(latents, books, ("semantic",)), ("semantic",))
    flat = np.concatenate([books["shared"], books["semantic"]])
    codes = quantizer.quantize_levels(latents, flat).codes
    assert ids["semantic"].tolist() == codes.tolist()


def test_the_specific_halves_of_the_shared_residual():
    # [z_s; z_c] = [5, 1]; the nearer shared code is [4, 2], which leaves [1, -1].
    books = {
        "shared": jnp.asarray([[[0.0, 0.0], [4.0, 2.0]]]),
        "semantic": one_number([1.5, -1.0]),
        "collaborative": one_number([1.5, -1.0]),
    }
    levels = quantizer.quantize(jnp.asarray([[5.0, 1.0]]), books, SOURCES)
    ids = quantizer.identifiers(levels, SOURCES)
    assert ids["semantic"].tolist() == [[1, 0]]
    assert ids["collaborative"].tolist() == [[1, 1]]
    # Eq. 6: 4 + 1.5 and 2 - 1.
    assert quantizer.quantized_latents(levels, SOURCES).tolist() == [[5.5, 1.0]]


def gradients(residual_gradient, reduction="sum"):
    """Of Eq. 9 with alpha .25 at r_0 = 3 and codes 1, then 1.5."""

    def loss(start, books):
        levels = quantizer.quantize_levels(start, books, residual_gradient=residual_gradient)
        return quantizer.rq_loss({"shared": levels}, alpha=0.25, reduction=reduction)

    of_start, of_books = jax.grad(loss, (0, 1))(
        jnp.asarray([[3.0]]), one_number([1.0, 9.0], [1.5, -9.0])
    )
    return float(of_start[0, 0]), of_books[..., 0].tolist()


def test_the_alpha_term_reaches_the_encoder_from_every_level_and_no_earlier_codebook():
    # r_1 = 2. Encoder: 2 x .25 x (3 - 1) + 2 x .25 x (2 - 1.5) = 1.25. Codes: -2 (3 - 1) and
    # -2 (2 - 1.5); had r_1 kept its gradient to the first code, -4 would be -4 - .25 = -4.25.
    assert gradients("every_level") == (1.25, [[-4.0, 0.0], [-1.0, 0.0]])


def test_the_released_code_lets_no_gradient_past_the_first_level():
    assert gradients("as_released") == (1.0, [[-4.0, 0.0], [-1.0, 0.0]])


def test_as_released_the_specific_levels_send_nothing_back_past_shared_ones():
    books = {"shared": one_number([1.0, 9.0]), "semantic": one_number([1.5, -9.0])}

    def loss(start, residual_gradient):
        levels = quantizer.quantize(
            start, books, ("semantic",), residual_gradient=residual_gradient
        )
        return quantizer.rq_loss(levels, alpha=0.25, reduction="sum")

    of_start = jax.grad(loss)
    assert float(of_start(jnp.asarray([[3.0]]), "every_level")[0, 0]) == 1.25
    assert float(of_start(jnp.asarray([[3.0]]), "as_released")[0, 0]) == 1.0


def test_reductions_by_hand():
    # Two levels of width 2: r = [2, 0] to [1, 0], then [1, 0] to [0, 0].
    books = jnp.asarray([[[1.0, 0.0], [9.0, 9.0]], [[0.0, 0.0], [9.0, 9.0]]])
    levels = {"shared": quantizer.quantize_levels(jnp.asarray([[2.0, 0.0]]), books)}
    # Sums 1.25 + 1.25; means .625 and .625, averaged.
    assert float(quantizer.rq_loss(levels, alpha=0.25, reduction="sum")) == 2.5
    assert float(quantizer.rq_loss(levels, alpha=0.25, reduction="mean")) == 0.625


def test_no_level_at_all_costs_nothing():
    empty = quantizer.quantize_levels(jnp.ones((3, 2)), jnp.zeros((0, 4, 2)))
    assert empty.codes.shape == (3, 0)
    assert float(quantizer.rq_loss({"shared": empty}, alpha=0.25)) == 0.0


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 50), (0.05, 3), (0.003, 50)])
def test_sinkhorn_agrees_with_its_definition_in_float64(epsilon, iterations):
    distances = np.random.default_rng(4).random((40, 8)).astype(np.float32)
    plan = sinkhorn_plan(distances, epsilon, iterations)
    codes = quantizer.sinkhorn_assign(
        jnp.asarray(distances), quantizer.Balance(epsilon, iterations)
    )
    assert codes.tolist() == plan.argmax(1).tolist()


def test_sinkhorn_balances_what_the_nearest_code_does_not():
    # Every point is nearest to code 0; .003 would overflow float32 without absorption.
    rng = np.random.default_rng(5)
    points = rng.normal(size=(256, 4)).astype(np.float32)
    codebook = np.concatenate([np.zeros((1, 4)), 6 + rng.normal(size=(15, 4))]).astype(np.float32)
    distances = quantizer.squared_distances(points, codebook)
    assert np.bincount(np.argmin(distances, 1), minlength=16).max() > 200
    balanced = quantizer.sinkhorn_assign(distances, quantizer.Balance(0.003, 50))
    counts = np.bincount(balanced, minlength=16)
    assert counts.min() > 0 and counts.max() <= 64  # 16 in the limit of iterations


def test_only_the_last_specific_level_is_balanced():
    rng = np.random.default_rng(6)
    books = random_codebooks(6, 1, 2, 4, 2)
    latents = (0.01 * rng.normal(size=(64, 4))).astype(np.float32)
    plain = quantizer.quantize(latents, books, SOURCES)
    balanced = quantizer.quantize(
        latents, books, SOURCES, balance_last=quantizer.Balance(0.003, 50)
    )
    assert balanced["shared"].codes.tolist() == plain["shared"].codes.tolist()
    for source in SOURCES:
        first, last = np.asarray(balanced[source].codes).T
        assert first.tolist() == plain[source].codes[:, 0].tolist()
        assert len(set(np.asarray(plain[source].codes)[:, 1])) == 1
        assert len(set(last)) == 4


def test_usage_and_perplexity_by_hand():
    counts = quantizer.use_counts(jnp.asarray([[0, 3], [0, 3], [1, 3], [1, 3]]), 4)
    assert counts.tolist() == [[2, 2, 0, 0], [0, 0, 0, 4]]
    assert quantizer.usage(counts).tolist() == [0.5, 0.25]
    np.testing.assert_allclose(quantizer.perplexity(counts), [2.0, 1.0], rtol=1e-6)


def test_a_code_without_items_is_revived_after_so_many_batches_and_no_earlier():
    books = one_number([0.0, 100.0, 1.0])
    idle = jnp.zeros((1, 3), jnp.int32)
    start = jnp.asarray([[0.1], [1.1]])
    levels = quantizer.quantize_levels(start, books)
    for batch in range(2):
        books, idle = quantizer.revive(jax.random.key(batch), books, levels, idle, after=3)
        assert books[0, :, 0].tolist() == [0.0, 100.0, 1.0]
        assert idle.tolist() == [[0, batch + 1, 0]]
    books, idle = quantizer.revive(jax.random.key(2), books, levels, idle, after=3)
    assert float(books[0, 1, 0]) in (float(start[0, 0]), float(start[1, 0]))
    assert books[0, [0, 2], 0].tolist() == [0.0, 1.0]
    assert idle.tolist() == [[0, 0, 0]]
