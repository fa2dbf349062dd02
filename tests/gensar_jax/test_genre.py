"""GENRE's titles as identifiers, its loss and its beams."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import trie as tries
from core.errors import UserError
from gensar_jax import vocabulary
from gensar_jax.baselines.genre import TitleSettings, title_codes
from gensar_jax.generation import generate
from gensar_jax.joint_task import token_losses
from gensar_jax.t5.config import of_size
from gensar_jax.t5.network import Transformer
from gensar_jax.vocabulary import END, Vocabulary

TITLES = ["red pot", "red pot lid", "green tea"]


@pytest.fixture(scope="module")
def vocab():
    texts = [f"{a} {b} lid (2) (3)" for a in ("red", "green") for b in ("pot", "tea")]
    model = vocabulary.train_pieces(texts, 300)
    return Vocabulary(model, shared=(), semantic=(), collaborative=(), of_pieces=True)


@pytest.fixture(scope="module")
def three(vocab):
    """A network, and the tokens of three titles, one of which begins another."""
    settings = TitleSettings(most_tokens=20, repeated="refused")
    codes, _ = title_codes(TITLES, TITLES, vocab.encode_text, settings)
    network = Transformer(of_size("tiny", vocab.size))
    token = jnp.ones((1, 1), jnp.int32)
    init = jax.jit(functools.partial(network.init, enable_dropout=False))
    return network, init(jax.random.key(0), token, token, token)["params"], vocab.sequences(codes)


def test_titles_end_and_then_are_padding(vocab, three):
    tokens = three[2]
    for title, row in zip(TITLES, tokens):
        length = len(vocab.encode_text(title))
        assert vocab.text_of(row[:length]) == title
        assert row[length] == END and not row[length + 1 :].any()


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_gives_exactly_the_titles_that_there_are(three, penalty):
    network, params, tokens = three
    inputs = jnp.array([[5, 6, 7, 1]], jnp.int32)
    run = jax.jit(functools.partial(generate, network, width=10, length_penalty=penalty))
    beams = run(params, inputs, jnp.zeros((1, 0), jnp.int32), tries.build(tokens))
    assert sorted(beams.items[0].tolist()) == [0, 1, 2]
    shifted = np.pad(tokens[:, :-1], ((0, 0), (1, 0)))
    logits = network.apply(
        {"params": params}, jnp.repeat(inputs, 3, 0), shifted, tokens, enable_dropout=False
    )
    expected = -token_losses(logits, jnp.asarray(tokens)).sum(1)
    expected = np.asarray(expected) / (tokens > 0).sum(1) ** penalty
    assert beams.items[0].tolist() == np.argsort(-expected).tolist()
    np.testing.assert_allclose(beams.scores[0], np.sort(expected)[::-1], atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_loss(smoothing):
    uniform = token_losses(jnp.zeros((1, 2, 7)), jnp.array([[3, 0]]), smoothing)
    np.testing.assert_allclose(uniform, [[np.log(7), 0.0]], rtol=1e-6)
    logits = jnp.array([[[0.3, -1.0, 2.0, 0.5]]])
    log_p = np.asarray(jax.nn.log_softmax(logits))[0, 0]
    shares = np.full(4, smoothing / 3)
    shares[2] = 1 - smoothing
    loss = token_losses(logits, jnp.array([[2]]), smoothing)
    np.testing.assert_allclose(loss[0, 0], -(shares * log_p).sum(), rtol=1e-5)


def test_equal_titles_are_numbered_or_refused(vocab):
    encode, most = vocab.encode_text, len(vocab.encode_text("red pot")) + 8
    titles = ["red pot", "red pot", "green tea", "red pot", "red pot (2)", ""]
    names = list("abcdef")
    numbered = TitleSettings(most_tokens=most, repeated="numbered")
    codes, count = title_codes(titles, names, encode, numbered)
    assert len(np.unique(codes, axis=0)) == 6 and codes.shape[1] < most
    texts = [vocab.text_of(row[row >= 0]) for row in codes]
    assert texts[:4] == ["red pot", "red pot (2)", "green tea", "red pot (3)"]
    assert count == 4
    refused = TitleSettings(most_tokens=most, repeated="refused")
    with pytest.raises(UserError, match="found items a and b with 'red pot'; raise") as error:
        title_codes(titles, names, encode, refused)
    assert "\n" not in str(error.value)
    # Titles that differ only after the cut are equal.
    long = ["pot " * 30 + "lid", "pot " * 30 + "tea"]
    assert title_codes(long, names, encode, numbered)[1] == 1
