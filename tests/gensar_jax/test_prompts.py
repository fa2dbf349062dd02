"""Prompts and targets worked by hand, and what truncation keeps."""

import io
import string

import numpy as np
import pytest
import sentencepiece

from core.errors import UserError
from gensar_jax import phrasings, vocabulary
from gensar_jax.prompts import Catalogue, Example, Prompts, to_batch
from gensar_jax.vocabulary import Vocabulary

CODES = {
    "semantic": np.array([[0, 0, 0], [1, 2, 3], [4, 0, 1]]),
    "collaborative": np.array([[0, 0, 0, 0], [1, 2, 5, 6], [4, 0, 7, 8]]),
}
SEMANTIC = {1: "<M1_1> <M2_2> <S1_3>", 2: "<M1_4> <M2_0> <S1_1>"}
COLLABORATIVE = {1: "<M1_1> <M2_2> <R1_5> <R2_6>", 2: "<M1_4> <M2_0> <R1_7> <R2_8>"}
HISTORY = [("<S_Q>", "grand piano"), ("<S_I>", 1), ("<R_I>", 2)]


@pytest.fixture(scope="module")
def vocab():
    texts = [*phrasings.texts(), "grand piano", "artificial intelligence", "lip balm"]
    return Vocabulary(
        vocabulary.train_pieces(texts, 600), shared=(5, 6), semantic=(7,), collaborative=(8, 9)
    )


def prompts_of(vocab, max_inputs=400, **settings):
    catalogue = Catalogue(*(vocab.identifiers(CODES[k], k) for k in CODES))
    return Prompts(vocab, catalogue, max_inputs=max_inputs, max_targets=12, **settings)


def read(vocab, example):
    """Inputs and targets as text; both must end with the end."""
    assert example.inputs[-1] == example.targets[-1] == vocabulary.END
    assert vocabulary.END not in example.inputs[:-1] + example.targets[:-1]
    return tuple(vocab.text_of(t).replace(" ;", ";") for t in example)


WRITTEN = f"<S_Q> grand piano; <S_I> {SEMANTIC[1]}; <R_I> {COLLABORATIVE[2]}"


def test_the_tasks_read_as_in_the_paper(vocab):
    p = prompts_of(vocab)
    assert read(vocab, p.next_item(HISTORY, 1)) == (
        f"Below is the user's interaction history: {WRITTEN} . Please recommend the next item the "
        "user is likely to click.",
        f"<R_I> {COLLABORATIVE[1]}",
    )
    assert read(vocab, p.next_query(HISTORY, "lip balm")) == (
        f"Below is the user's interaction history: {WRITTEN} . Please predict the next query the "
        "user might want to search.",
        "<S_Q> lip balm",
    )
    assert read(vocab, p.next_searched_item(HISTORY[1:], "lip balm", 2)) == (
        f"Below is the user's interaction history: <S_I> {SEMANTIC[1]}; <R_I> {COLLABORATIVE[2]} . "
        "The user's search query is <S_Q> lip balm . Please predict the next item the user might "
        "click.",
        f"<S_I> {SEMANTIC[2]}",
    )
    for kind, names in (("semantic", SEMANTIC), ("collaborative", COLLABORATIVE)):
        inputs, targets = read(vocab, p.description_to_item("lip balm", 2, kind))
        assert inputs.startswith("Using the provided description") and "lip balm" in inputs
        assert targets == names[2]
        inputs, targets = read(vocab, p.item_to_description("lip balm", 2, kind))
        assert inputs == f"Please provide a description for the item {names[2]} ."
        assert targets == "lip balm"
    assert read(vocab, p.pseudo_query("lip balm", 1)) == (
        "The search query is <S_Q> lip balm . Please predict the item it leads to.",
        f"<S_I> {SEMANTIC[1]}",
    )


def test_behaviour_tokens_at_the_end_of_the_prompt_or_nowhere(vocab):
    p = prompts_of(vocab, behaviour_tokens="encoder")
    inputs, targets = read(vocab, p.next_searched_item(HISTORY, "lip balm", 2))
    assert inputs.endswith("might click. <S_I>") and targets == SEMANTIC[2]
    assert WRITTEN in inputs and p.forced("<S_I>") == []
    p = prompts_of(vocab, behaviour_tokens="none")
    inputs, targets = read(vocab, p.next_searched_item(HISTORY, "lip balm", 2))
    assert targets == SEMANTIC[2] and p.forced("<S_I>") == []
    assert not any(behaviour in inputs for behaviour in vocabulary.BEHAVIOURS)
    assert prompts_of(vocab).forced("<S_I>") == [vocab.behaviours["<S_I>"]]


def test_a_long_prompt_loses_its_oldest_events_whole(vocab):
    events = [("<R_I>", 1 + i % 2) if i % 3 else ("<S_Q>", "grand piano") for i in range(12)]
    whole = prompts_of(vocab, 1000)
    tokens = {i: whole.event(*event) for i, event in enumerate(events)}
    seen = set()
    for limit in range(50, 150):
        p = prompts_of(vocab, limit)
        for phrasing in (0, 3):
            example = p.next_searched_item(events, "lip balm", 2, phrasing)
            assert len(example.inputs) <= limit
            for kept in range(len(events) + 1):
                if whole.next_searched_item(events[kept:], "lip balm", 2, phrasing) == example:
                    break
            else:
                raise AssertionError(f"not a prompt of the latest events: {example.inputs}")
            seen.add(kept)
            if kept:
                # The next older event would not have fitted.
                one_more = whole.next_searched_item(events[kept - 1 :], "lip balm", 2, phrasing)
                assert len(one_more.inputs) > limit
    assert len(tokens[1]) == 5 and seen >= {0, 4, 8, 11}


def test_long_words_are_cut_and_identifiers_never(vocab):
    p = prompts_of(vocab, 60)
    long = "lip balm " * 50
    for example in (
        p.description_to_item(long, 1, "semantic"),
        p.pseudo_query(long, 1),
        p.next_query([], long),
        p.item_to_description(long, 1, "semantic"),
    ):
        assert len(example.inputs) <= 60 and len(example.targets) <= 12
        assert example.inputs[-1] == example.targets[-1] == vocabulary.END
    assert len(p.description_to_item(long, 1, "semantic").inputs) == 60
    assert len(p.next_query([], long).targets) == 12
    # Alone a query may fill the prompt; beside a history it leaves room for the latest events.
    assert len(p.next_searched_item([], long, 1).inputs) == 60
    p = prompts_of(vocab, 100)
    for phrasing in (0, 5):
        searched = p.next_searched_item(HISTORY, long, 1, phrasing)
        text = vocab.text_of(searched.inputs)
        assert len(searched.inputs) == 100 and COLLABORATIVE[2] in text and "lip balm" in text


def test_an_over_long_query_of_the_history_does_not_take_all_of_it(vocab):
    p = prompts_of(vocab, 100)
    long = ("<S_Q>", "lip balm " * 200)
    for place in range(len(HISTORY) + 1):
        events = [*HISTORY[:place], long, *HISTORY[place:]]
        example = p.next_item(events, 1)
        text = vocab.text_of(example.inputs)
        assert len(example.inputs) <= 100 and "<S_Q> lip balm lip balm" in text
        # Newer ones, and what is older, as far as it fits.
        assert SEMANTIC[1] in text and COLLABORATIVE[2] in text


def test_a_query_of_unknown_characters_is_the_unknown_piece():
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([*phrasings.texts(), "lip balm"]),
        model_writer=out,
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=3,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    )
    settings = {"shared": (5, 6), "semantic": (7,), "collaborative": (8, 9)}
    p = prompts_of(Vocabulary(out.getvalue(), **settings), 800)
    query = p.vocabulary.behaviours["<S_Q>"]
    for example in (p.next_searched_item(HISTORY[1:], "申请", 1), p.pseudo_query("申请", 1)):
        start = example.inputs.index(query)
        assert 2 in example.inputs[start : start + 3]
    # A zero-width space has no pieces at all.
    assert query in p.next_searched_item([], "\u200b", 1).inputs


def test_an_empty_history_is_legal(vocab):
    inputs, targets = read(vocab, prompts_of(vocab).next_item([], 1))
    assert inputs.startswith("Below is the user's interaction history:") and targets
    assert "<" not in inputs


def test_ten_phrasings_with_the_places_of_their_task():
    places = {
        "nrip": {"history"},
        "nsqp": {"history"},
        "nsip": {"history", "query"},
        "desc2id": {"text"},
        "id2desc": {"identifier"},
        "pseudo_query": {"query"},
    }
    assert tuple(places) == phrasings.TASKS
    for task, expected in places.items():
        templates = phrasings.phrasings(task)
        assert len(set(templates)) == 10
        for template in templates:
            fields = [field for _, field, _, _ in string.Formatter().parse(template) if field]
            assert sorted(fields) == sorted(expected), template
    assert not any("{" in text for text in phrasings.texts())


def test_every_phrasing_writes_different_inputs_and_the_same_target(vocab):
    p = prompts_of(vocab)
    written = [p.next_item(HISTORY, 1, phrasing) for phrasing in range(10)]
    assert len({tuple(e.inputs) for e in written}) == 10
    assert len({tuple(e.targets) for e in written}) == 1
    assert all(WRITTEN in vocab.text_of(e.inputs).replace(" ;", ";") for e in written)


def test_mistakes_end_in_one_line(vocab):
    with pytest.raises(UserError, match=r"expected tasks of nrip, .* found 'ctr'"):
        phrasings.phrasings("ctr")
    with pytest.raises(UserError, match=r"expected an item in 1\.\.2, found 3"):
        prompts_of(vocab).next_item(HISTORY, 3)
    with pytest.raises(UserError, match=r"expected an item in 1\.\.2, found 0"):
        prompts_of(vocab).next_item([("<R_I>", 0)], 1)
    for write in (prompts_of(vocab).description_to_item, prompts_of(vocab).item_to_description):
        with pytest.raises(UserError, match="expected text of item 2, found none"):
            write("  ", 2, "semantic")
    with pytest.raises(UserError, match="expected behaviour_tokens of"):
        prompts_of(vocab, behaviour_tokens="both")
    with pytest.raises(UserError, match="max_targets of at least 6"):
        Prompts(vocab, prompts_of(vocab).catalogue, max_inputs=50, max_targets=5)


def test_a_limit_below_the_phrasing_is_refused_with_the_least_that_fits(vocab):
    for place in ("decoder", "encoder"):
        with pytest.raises(UserError, match="max_inputs of at least") as caught:
            prompts_of(vocab, 5, behaviour_tokens=place)
        least = int(str(caught.value).split("at least ")[1].split()[0])
        # Between the shortest and the longest phrasing too: no phrasing is refused later.
        with pytest.raises(UserError, match=f"at least {least} for every phrasing"):
            prompts_of(vocab, least - 1, behaviour_tokens=place)
        p = prompts_of(vocab, least, behaviour_tokens=place)
        written = [
            p.next_searched_item(HISTORY, "lip balm", 1, phrasing) for phrasing in range(10)
        ] + [p.item_to_description("lip balm", 1, "collaborative", n) for n in range(10)]
        assert max(len(example.inputs) for example in written) == least
        assert all(example.inputs[-1] == vocabulary.END for example in written)


def test_a_batch_is_padded_and_shifted():
    batch = to_batch([Example([5, 6, 1], [7, 8, 1]), Example([9, 1], [4, 1])], 4, 3)
    assert batch["encoder_input_tokens"].tolist() == [[5, 6, 1, 0], [9, 1, 0, 0]]
    assert batch["decoder_target_tokens"].tolist() == [[7, 8, 1], [4, 1, 0]]
    assert batch["decoder_input_tokens"].tolist() == [[0, 7, 8], [0, 4, 1]]
    assert all(array.dtype == np.int32 for array in batch.values())
