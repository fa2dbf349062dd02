"""Errors of libraries are told in one line of ours, with all that they say."""

import pytest

from core.errors import reason_of


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "Validation failed:\n  no project\n  no region",
            "Validation failed: no project no region",
        ),
        ("\n\nlate", "late"),
        ("", "ValueError"),
        (" \n ", "ValueError"),
        ("a" * 300, "a" * 160),
    ],
)
def test_all_lines_count_and_make_one(text, reason):
    assert reason_of(ValueError(text)) == reason
