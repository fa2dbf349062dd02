"""The RQ-VAE's losses by hand, its straight-through gradient, and a problem it must solve."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gensar_jax import kmeans, quantizer
from gensar_jax.rqvae import RQVAE, RQVAEConfig, reconstruction_loss


def small(**changes):
    values = {"widths": (16,), "latent_width": 2, "shared_levels": 1, "specific_levels": 1}
    return RQVAEConfig(**(values | {"codes": 4} | changes))


def vectors_of(rows, seed=0):
    rng = np.random.default_rng(seed)
    widths = {"semantic": 5, "collaborative": 3}
    return {s: rng.normal(size=(rows, w)).astype(np.float32) for s, w in widths.items()}


def params_of(model, seed=0):
    rng = np.random.default_rng(seed)
    c, n = model.config, len(model.config.sources)
    books = {"shared": rng.normal(size=(c.shared_levels, c.codes, n * c.latent_width))}
    for source in c.sources:
        books[source] = rng.normal(size=(c.specific_levels, c.codes, c.latent_width))
    books = {name: jnp.asarray(book, jnp.float32) for name, book in books.items()}
    return {"network": model.init_network(jax.random.key(seed)), "codebooks": books}


def test_reconstruction_by_hand():
    # Semantic errors 1 and 3, collaborative 2: 1 + 9 + 4 as printed, 10 / 2 + 4 in the mean.
    vectors = {"semantic": jnp.asarray([[1.0, 3.0]]), "collaborative": jnp.asarray([[2.0]])}
    zeros = {name: jnp.zeros_like(rows) for name, rows in vectors.items()}
    assert float(reconstruction_loss(vectors, zeros, "sum")) == 14.0
    assert float(reconstruction_loss(vectors, zeros, "mean")) == 9.0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_eq_8_plus_eq_9_of_the_quantised_latents(reduction):
    model = RQVAE(small(reduction=reduction), (5, 3))
    params, vectors = params_of(model), vectors_of(6)
    output = model.loss(params, vectors, balanced=False)
    latents = model.encode(params["network"], vectors)
    levels = quantizer.quantize(latents, params["codebooks"], model.config.sources)
    found = quantizer.quantized_latents(levels, model.config.sources)
    decoded = model.network.apply(params["network"], found, method="decode")
    expected = 0.0
    for source, rows in vectors.items():
        squares = np.square(rows - np.asarray(decoded[source]))
        expected += (squares.mean(1) if reduction == "mean" else squares.sum(1)).mean()
    assert float(output.reconstruction) == pytest.approx(expected, rel=1e-5)
    rq = quantizer.rq_loss(levels, alpha=0.25, reduction=reduction)
    assert float(output.loss) == pytest.approx(expected + float(rq), rel=1e-5)


def test_the_decoders_gradient_passes_to_the_latents_and_not_to_the_codebooks():
    model = RQVAE(small(alpha=0.0), (5, 3))
    params, vectors = params_of(model), vectors_of(6)

    def reconstruction(params):
        return model.loss(params, vectors, balanced=False).reconstruction

    gradient = jax.grad(reconstruction)(params)
    encoder = gradient["network"]["params"]["encoders_0"]
    assert float(jnp.abs(encoder["Dense_0"]["kernel"]).max()) > 1e-4
    for book in jax.tree.leaves(gradient["codebooks"]):
        assert float(jnp.abs(book).max()) == 0.0


def test_widths_of_the_released_setting():
    model = RQVAE(RQVAEConfig(), (40, 20))
    shapes = jax.eval_shape(model.init_network, jax.random.key(0))["params"]
    kernels = [shapes["encoders_1"][f"Dense_{n}"]["kernel"].shape for n in range(5)]
    assert kernels == [(20, 512), (512, 256), (256, 128), (128, 64), (64, 32)]
    kernels = [shapes["decoders_0"][f"Dense_{n}"]["kernel"].shape for n in range(5)]
    assert kernels == [(32, 64), (64, 128), (128, 256), (256, 512), (512, 40)]


def test_k_means_finds_separated_clusters():
    rng = np.random.default_rng(0)
    truth = rng.permutation(8)[:, None] * np.array([10.0, -10.0])
    points = np.repeat(truth, 20, 0) + 0.1 * rng.normal(size=(160, 2))
    centres = kmeans.kmeans(jax.random.key(0), jnp.asarray(points, jnp.float32), 8, 10)
    gaps = np.abs(np.asarray(centres)[:, None] - truth).sum(-1)
    assert sorted(gaps.argmin(1)) == list(range(8)) and gaps.min(1).max() < 0.2


def test_codebooks_start_from_what_each_level_leaves():
    latents = jnp.asarray(np.random.default_rng(1).normal(size=(300, 4)), jnp.float32)
    sources = ("semantic", "collaborative")
    books = kmeans.start_codebooks(
        jax.random.key(0),
        latents,
        sources,
        shared_levels=2,
        specific_levels=2,
        num_codes=16,
        iterations=5,
    )
    assert {n: b.shape for n, b in books.items()} == {
        "shared": (2, 16, 4),
        "semantic": (2, 16, 2),
        "collaborative": (2, 16, 2),
    }
    levels = quantizer.quantize(latents, books, sources)
    # Squared errors fall level after level, as long as each was fitted to its own residuals.
    errors = [float(jnp.square(latents).sum(-1).mean())]
    errors += [float(jnp.square(r).sum(-1).mean()) for r in levels["shared"].inputs[1:]]
    rest = [levels[source].residual for source in sources]
    errors.append(float(sum(jnp.square(r).sum(-1).mean() for r in rest)))
    assert errors[1] < 0.5 * errors[0] and errors[2] < 0.3 * errors[1]


def test_it_learns_what_few_codes_can_hold():
    # 16 kinds of items, each with one semantic and one collaborative vector: 4 x 4 codes suffice.
    rng = np.random.default_rng(0)
    kinds = {"semantic": rng.normal(size=(16, 5)), "collaborative": rng.normal(size=(16, 3))}
    vectors = {s: jnp.asarray(np.repeat(rows, 8, 0), jnp.float32) for s, rows in kinds.items()}
    model = RQVAE(small(sinkhorn_epsilon=0.0, codes=8), (5, 3))
    network = model.init_network(jax.random.key(0))
    books = kmeans.start_codebooks(
        jax.random.key(1),
        model.encode(network, vectors),
        model.config.sources,
        shared_levels=1,
        specific_levels=1,
        num_codes=8,
        iterations=5,
    )
    params = {"network": network, "codebooks": books}
    optimizer = optax.adam(1e-2)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        loss, gradient = jax.value_and_grad(lambda p: model.loss(p, vectors, balanced=True).loss)(
            params
        )
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for _ in range(300):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"sources": ()}, "names in sources, found none"),
        ({"sources": ("semantic", "visual")}, "visual"),
        ({"sources": ("semantic", "semantic")}, "each of sources once"),
        ({"shared_levels": 0, "specific_levels": 0}, "at least one level"),
        ({"shared_levels": -1}, "0 or more"),
        ({"codes": 1}, "found 1"),
        ({"reduction": "max"}, "'max'"),
        ({"residual_gradient": "never"}, "'never'"),
    ],
)
def test_settings_that_do_not_exist(changes, found):
    with pytest.raises(ValueError, match=found):
        small(**changes)
