"""Ids of pieces, behaviours and codes, and files that are none."""

import io

import numpy as np
import pytest
import sentencepiece
from damage import flipped_bits

from core import checksums
from core.errors import UserError
from gensar_jax import vocabulary
from gensar_jax.vocabulary import Vocabulary

TEXTS = [
    f"{colour} {thing} for {whom}"
    for colour in ("red", "blue", "green", "glow in the dark")
    for thing in ("nail polish", "shampoo", "lip balm", "eau de toilette")
    for whom in ("women", "men", "children", "dry hair")
]


@pytest.fixture(scope="module")
def model():
    return vocabulary.train_pieces(TEXTS, 330)


@pytest.fixture(scope="module")
def vocab(model):
    return Vocabulary(model, shared=(5, 6), semantic=(7,), collaborative=(8, 9))


def without_bytes(**settings):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS),
        model_writer=out,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=3,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, **settings},
    )
    return out.getvalue()


def test_ids_worked_by_hand(vocab):
    first = vocab.text_rows
    assert 259 < first <= 330
    assert vocab.behaviours == {"<R_I>": first, "<S_Q>": first + 1, "<S_I>": first + 2}
    assert vocab.code_token("M", 1, 0) == first + 3
    assert vocab.code_token("M", 2, 5) == first + 3 + 5 + 5
    assert vocab.code_token("S", 1, 0) == first + 3 + 11
    assert vocab.code_token("R", 2, 8) == vocab.size - 1
    assert vocab.size == first + 3 + 5 + 6 + 7 + 8 + 9
    names = [vocab.name(t) for t in range(first, vocab.size)]
    assert names[:5] == ["<R_I>", "<S_Q>", "<S_I>", "<M1_0>", "<M1_1>"]
    assert names[-1] == "<R2_8>" and len(set(names)) == len(names)
    with pytest.raises(IndexError):
        vocab.code_token("S", 1, 7)
    with pytest.raises(IndexError):
        vocab.name(vocab.size)


def test_identifiers_of_a_table_of_codes(vocab):
    first = vocab.text_rows
    semantic = vocab.identifiers(np.array([[0, 0, 0], [4, 5, 6]]), "semantic")
    assert semantic.tolist() == [
        [first + 3, first + 8, first + 14],
        [first + 7, first + 13, first + 20],
    ]
    collaborative = vocab.identifiers(np.array([[1, 2, 3, 4]]), "collaborative")
    assert [vocab.name(t) for t in collaborative[0]] == ["<M1_1>", "<M2_2>", "<R1_3>", "<R2_4>"]


def test_codes_of_another_table_are_refused(vocab):
    with pytest.raises(UserError, match="expected semantic identifiers of 3 codes"):
        vocab.identifiers(np.zeros((4, 4), int), "semantic")
    with pytest.raises(UserError, match=r"found 7 at level 3 of item 1"):
        vocab.identifiers(np.array([[0, 0, 0], [0, 0, 7]]), "semantic")


def test_text_goes_there_and_back_whatever_its_characters(vocab):
    for text in ("red nail polish for men", "☃ unheard of, 漢字"):
        assert vocab.text_of([*vocab.encode_text(text), 1, 5, 6]) == text
    tokens = [vocab.behaviours["<S_Q>"], *vocab.encode_text("lip balm"), vocab.text_rows + 3, 0]
    assert vocab.text_of(tokens) == "<S_Q> lip balm <M1_0>"
    assert vocab.encode_text("") == [] and len(vocab.separator()) >= 1


def test_training_is_deterministic_and_words_of_the_text_are_short(vocab, model):
    assert vocabulary.train_pieces(TEXTS, 330) == model
    assert len(vocab.encode_text("shampoo")) < len(vocab.encode_text("qzxwvjk"))


@pytest.mark.parametrize(
    "text",
    [
        "жук " * 600,  # 4,200 bytes
        "жук" * 2000,  # one word of 12,000 bytes
        "\u2585" + " жук" * 300,  # the trainer's own mark
    ],
)
def test_long_and_odd_texts_are_trained_on(text):
    trained = Vocabulary(
        vocabulary.train_pieces([*TEXTS, text], 340), shared=(5,), semantic=(), collaborative=(8,)
    )
    # The only text with these letters: they are spelt in bytes where it is not read.
    assert not any(trained.name(piece).startswith("<0x") for piece in trained.encode_text("жук"))


def test_lines_hold_all_words_and_none_is_too_long():
    text = " ".join(["\U0001f600" * 3000, *map(str, range(5000)), "end"])
    lines = list(vocabulary.lines_of(text))
    assert max(len(line.encode()) for line in lines) <= vocabulary.MOST_LINE_BYTES
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert list(vocabulary.lines_of("  a  b\n")) == ["a b"] and list(vocabulary.lines_of(" ")) == []


def test_a_query_of_unknown_characters_only():
    vocab = Vocabulary(without_bytes(), shared=(5,), semantic=(5,), collaborative=())
    with pytest.raises(UserError, match="found '☃ 漢字'; rephrase"):
        vocab.check_query("☃ 漢字")
    with pytest.raises(UserError, match="found ''"):
        vocab.check_query("")
    # One known word is enough; in a log the whole query may be unknown.
    vocab.check_query("☃ shampoo")
    assert vocab.encode_text("☃") != []


def test_a_saved_vocabulary_is_the_same(vocab, tmp_path):
    vocab.save(tmp_path / "v")
    again = Vocabulary.load(tmp_path / "v")
    assert again.size == vocab.size
    assert again.encode_text(TEXTS[5]) == vocab.encode_text(TEXTS[5])
    assert again.name(vocab.size - 1) == "<R2_8>"


def test_a_vocabulary_without_code_tokens_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="expected code tokens in the vocabulary"):
        Vocabulary(model, shared=(), semantic=(), collaborative=())
    (tmp_path / "pieces.model").write_bytes(model)
    with pytest.raises(UserError, match="expected code tokens beside the pieces"):
        Vocabulary.load(tmp_path)
    files = checksums.describe(str(tmp_path), ["pieces.model"])
    checksums.write_sealed(str(tmp_path / "codes.json"), {"sizes": {"M": [3]}, "files": files})
    with pytest.raises(UserError, match="expected the codebooks M, S and R"):
        Vocabulary.load(tmp_path)


def test_a_flipped_bit_of_a_saved_vocabulary_is_found(model, tmp_path):
    saved = Vocabulary(model, shared=(2,), semantic=(3,), collaborative=())
    saved.save(tmp_path)
    assert Vocabulary.load(tmp_path).digest == saved.digest
    for name in ("pieces.model", "codes.json"):
        for what in flipped_bits(tmp_path / name):
            with pytest.raises(UserError, match="; save the vocabulary again"):
                Vocabulary.load(tmp_path)
                pytest.fail(what)


def test_files_that_are_no_usable_model_are_refused(tmp_path):
    with pytest.raises(UserError, match="found no"):
        vocabulary.read_pieces(tmp_path / "none")
    (tmp_path / "text").write_text("these are no pieces")
    with pytest.raises(UserError, match="which is none"):
        vocabulary.read_pieces(tmp_path / "text")
    (tmp_path / "other").write_bytes(without_bytes(pad_id=-1, bos_id=0))
    with pytest.raises(UserError, match="padding 0 and end 1, found -1 and 1"):
        vocabulary.read_pieces(tmp_path / "other")


def test_nothing_to_train_on_is_refused():
    with pytest.raises(UserError, match="expected text of items or queries"):
        vocabulary.train_pieces(["", "   "], 300)
    with pytest.raises(UserError, match="size=100; raise it"):
        vocabulary.train_pieces(TEXTS, 100)
