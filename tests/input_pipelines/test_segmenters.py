"""Words of queries in the scripts of the world: marks stay, forms of one character are one."""

import re
import unicodedata

import pytest

from core import scripts
from crs_jax import traces
from input_pipelines import bm25, segmenters


@pytest.mark.parametrize(
    "words",
    [
        ["हिन्दी", "किताब"],  # Devanagari: vowel signs and virama
        ["كِتَاب", "عَرَبِيّ"],  # Arabic with points
        ["שָׁלוֹם", "עולם"],  # Hebrew with points
        ["தமிழ்", "நூல்"],  # Tamil
        ["ภาษาไทย", "ที่นี่"],  # Thai: vowels above, tones
        ["বাংলা", "বই"],  # Bengali
        ["မြန်မာ", "စာ"],  # Burmese
    ],
)
def test_a_word_keeps_its_marks(words):
    # Forms that Unicode holds for the same come out in one of them.
    expected = [unicodedata.normalize("NFKC", word) for word in words]
    for form in ("NFC", "NFD"):
        assert segmenters.characters(unicodedata.normalize(form, ", ".join(words))) == expected


def test_words_that_differ_in_marks_alone_are_different():
    for one, other in (("की", "कि"), ("कला", "कली"), ("ที่", "ที้"), ("عَلَم", "عِلْم"), ("கி", "கு")):
        assert len({tuple(segmenters.characters(text)) for text in (one, other)}) == 2


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (unicodedata.normalize("NFD", "Tiếng Việt"), ["tiếng", "việt"]),
        (unicodedata.normalize("NFD", "한국어 책"), ["한국어", "책"]),  # conjoining Jamo
        ("ｶﾞｷﾞ か\u3099あ\u3099", ["ガ", "ギ", "が", "あ\u3099"]),  # half-width, decomposed kana
        ("葛\U000e0100城\ufe00", ["葛", "城"]),  # forms of one ideograph
        ("İstanbul ISTANBUL I\u0307", ["istanbul", "istanbul", "i"]),  # the dotted I
        ("J\u030c", ["\u01f0"]),  # which are one only when small
        ("Straße STRASSE", ["straße", "strasse"]),
        ("ＡＢＣ ™ Ⅻ ℌ", ["abc", "tm", "xii", "h"]),
        ("می\u200cخواهم क्\u200dष", ["میخواهم", "क्ष"]),  # joiners
        ("1\ufe0f\u20e3 \u0301a", ["1", "a"]),  # a keycap; a mark on nothing
    ],
)
def test_forms_of_one_text(query, words):
    assert segmenters.characters(query) == words


def test_a_word_is_cut_at_its_longest():
    assert segmenters.cut("é" * 60_000) == "é" * segmenters.LONGEST_WORD
    assert segmenters.cut("short") == "short"


def test_jieba_sees_ideographs_and_ascii_alone():
    seen = []

    def spelt_out(text):
        seen.append(text)
        return text.split()

    words = segmenters.with_jieba("绿茶 t恤 naïve café हिन्दी usb", spelt_out)
    assert words == ["绿茶", "t恤", "naïve", "café", "हिन्दी", "usb"]
    assert "".join(seen).isascii() is False and not set("ïéह") & set("".join(seen))


def test_bm25_and_traces_tell_words_with_marks_apart():
    index = bm25.ItemTextIndex(["की", "कि"], segmenters.characters, seed=0)
    assert index.scores(segmenters.characters("कि")).argmax() == 1
    title = "हिन्दी की किताब"
    assert traces.leaks(f"यह {unicodedata.normalize('NFD', title)} है", title)
    assert not traces.leaks("हन्द का कतब", title)
    told = traces.TemplateTeacher().reasoning("हिन्दी", [], title, 0)
    assert told == "It is about हिन्दी."


def test_marks_are_those_of_unicode():
    marks = [chr(n) for n in range(0x11_0000) if unicodedata.category(chr(n)) in ("Mn", "Mc")]
    assert all(re.fullmatch(f"[{scripts.MARKS}]", mark) for mark in marks)
    assert not re.search(f"[{scripts.MARKS}]", "aZ5 _-绿か\u20e3\u200d")
