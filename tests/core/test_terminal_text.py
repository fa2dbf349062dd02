"""Text of data on a terminal: what steers it is shown, everything else stays."""

import io
import json

import pytest

from core.terminal_text import VisibleStream, visible, visible_line


@pytest.mark.parametrize(
    "character",
    [
        *map(chr, (*range(9), *range(11, 32), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F)),
        *map(chr, (*range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xD800, 0xDFFF)),
    ],
)
def test_every_steering_character_is_shown(character):
    assert visible(f"a{character}b") == f"a\\u{ord(character):04x}b"


def test_words_of_all_scripts_lines_and_tabs_stay():
    text = "tea\t茶\n\u0939\u093f\u0928\u094d\u0926\u0940 شاي \U0001f375 \xa0\xad é\u200d"
    assert visible(text) == text
    assert visible_line("a\tb\nc") == "a\\u0009b\\u000ac"


def test_json_on_a_terminal_stays_json():
    value = {"text": "\x9b31m \u202e \x1b[2J \x85 \u2028"}
    stream = io.StringIO()
    print(json.dumps(value, ensure_ascii=False), file=VisibleStream(stream))
    assert json.loads(stream.getvalue()) == value
    assert not set(stream.getvalue()) & set("\x9b\u202e\x1b\x85\u2028")
