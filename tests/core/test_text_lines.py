"""Lines of text files: what ends one and what does not, marks at the start, bytes of no text."""

import pytest

from core.errors import UserError
from core.text_lines import read_lines


def test_only_newlines_end_a_line_and_a_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "users.txt"
    # U+2028, U+2029, U+0085, vertical tab, form feed and a lone carriage return are text.
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\rg"
    path.write_bytes(f"\ufeff{odd}\r\nsecond\n\nlast\ufeff".encode())
    assert read_lines(path, "users", "mend it") == [odd, "second", "", "last\ufeff"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "expected users as UTF-8 text in .*x, found No such file or directory; mend it"),
        (b"a\n\xff", r"bytes that are not \(invalid start byte at byte 2\); mend it"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, content, found):
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=found) as error:
        read_lines(path, "users", "mend it")
    assert "\n" not in str(error.value)
