"""Files with one bit that is another, as a disk or a copy may leave them."""

import pathlib
from collections.abc import Iterator


def flipped_bits(path: pathlib.Path, places: int = 12) -> Iterator[str]:
    """Flips one bit at a time, spread over the file; the file is whole again afterwards.

    Yields:
      What has been flipped, for messages.
    """
    whole = path.read_bytes()
    assert whole
    for number in range(places):
        place = number * (len(whole) - 1) // (places - 1)
        content = bytearray(whole)
        content[place] ^= 1 << number % 8
        path.write_bytes(content)
        yield f"bit {number % 8} of byte {place} of {path.name}"
    path.write_bytes(whole)
