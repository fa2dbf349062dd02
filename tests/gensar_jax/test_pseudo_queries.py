"""Pseudo-queries from text and from files."""

import pytest

from core.errors import UserError
from gensar_jax import pseudo_queries


def test_the_rarest_words_in_their_order():
    texts = ["red pot of clay pot", "red pan of iron", "", "of red"]
    # In how many texts: red 3, of 3, and the others 1.
    queries = pseudo_queries.from_texts(texts, str.split)
    assert queries == [(1, "pot of clay"), (2, "pan of iron"), (4, "of red")]


def test_a_file_may_give_an_item_several(tmp_path):
    path = tmp_path / "queries.tsv"
    path.write_text("b\tclay pot\na\tiron pan \nb\tpots\n", encoding="utf-8")
    queries = pseudo_queries.read(str(path), {"a": 1, "b": 2})
    assert queries == [(2, "clay pot"), (1, "iron pan"), (2, "pots")]


def test_only_newlines_end_a_line_and_a_byte_order_mark_is_no_part_of_an_id(tmp_path):
    path = tmp_path / "queries.tsv"
    path.write_text("\ufeffa\tclay\u2028pot\x85\r\nb\tpan\n", encoding="utf-8", newline="")
    queries = pseudo_queries.read(str(path), {"a": 1, "b": 2})
    assert queries == [(1, "clay\u2028pot"), (2, "pan")]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a\tpan\nc\tpot\n", "line 2 of"),
        ("a pan\n", "line 1 of"),
        ("a\t \n", "line 1 of"),
        ("", "found none"),
        (None, "No such file"),
    ],
)
def test_mistakes(tmp_path, text, message):
    path = tmp_path / "queries.tsv"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        pseudo_queries.read(str(path), {"a": 1})
