"""Item vectors: the offline defaults and exported files."""

import numpy as np
import pytest
import scipy.sparse
from damage import flipped_bits

from core import checksums, vectors
from core.errors import UserError
from core.vectors import FactorConfig


def factors(width=4, sketch_width=0, sketch_share=0.0, seed=0):
    return FactorConfig(
        width=width, sketch_width=sketch_width, sketch_share=sketch_share, seed=seed
    )


def test_texts_with_shared_words_are_near_and_an_item_without_text_is_0():
    texts = ["red pot", "red pot steel", "blue drum", "blue drum kit", ""]
    rows = vectors.from_text(texts, str.split, factors())
    assert rows.dtype == np.float32 and len(rows) == 5
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 1, 1, 1, 0], atol=1e-5)
    cosines = rows @ rows.T
    assert cosines[0, 1] > 0.7 and cosines[2, 3] > 0.7 and abs(cosines[0, 2]) < 0.1


def test_the_sketch_tells_apart_what_the_singular_vectors_do_not():
    # Pots differ in a word of their own, which one singular vector a topic cannot hold.
    texts = [f"red pot x{n}" for n in range(20)] + [f"blue drum y{n}" for n in range(20)]
    plain = vectors.from_text(texts, str.split, factors(width=2))
    assert plain[0] @ plain[1] > 0.9999
    sketched = vectors.from_text(
        texts, str.split, factors(width=2, sketch_width=32, sketch_share=0.2)
    )
    assert sketched.shape == (40, 34)
    assert 0.6 < sketched[0] @ sketched[1] < 0.97
    assert abs(sketched[0] @ sketched[20]) < 0.2


def test_equal_texts_have_equal_vectors_where_nothing_is_left_to_sketch():
    texts = [f"kind{n % 12} no{n % 12} of{n % 5}" for n in range(60)]
    rows = vectors.from_text(texts, str.split, factors(width=64, sketch_width=16, sketch_share=0.1))
    distinct = {text: rows[place] for place, text in enumerate(texts)}
    np.testing.assert_allclose(rows, np.stack([distinct[text] for text in texts]), atol=1e-5)


def test_no_text_at_all_is_an_error():
    with pytest.raises(UserError, match="expected text on the items, found none on all 3"):
        vectors.from_text(["", " ", ""], str.split, factors())


def test_items_of_the_same_users_are_near():
    clicks = np.zeros((7, 6))
    for user, items in enumerate([(1, 2), (1, 2), (1, 2), (3, 4), (3, 4), (2, 1)], 1):
        clicks[user, list(items)] = 1
    rows = vectors.from_clicks(scipy.sparse.csr_array(clicks), factors(width=2))
    cosines = rows @ rows.T
    assert cosines[0, 1] > 0.99 and cosines[2, 3] > 0.99 and abs(cosines[0, 2]) < 0.01
    assert not rows[4].any(), "item 5 was never clicked"


@pytest.mark.parametrize(
    "changes", [{"width": 0}, {"sketch_width": -1}, {"sketch_share": 1.0}, {"sketch_share": -0.1}]
)
def test_factor_settings_that_do_not_fit(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"expected {name} (of|from) [01] .*, found "):
        factors(**changes)


def export(folder, array, **meta):
    np.save(folder / "items.npy", array)
    files = checksums.describe(str(folder), ["items.npy"])
    checksums.write_sealed(str(folder / "items.json"), {"data_hash": "d", "files": files} | meta)
    return str(folder / "items.npy")


def test_exported_vectors_are_read_at_length_1(tmp_path):
    path = export(tmp_path, np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]], np.float32))
    rows = vectors.load_vectors(path, num_items=3, data_hash="d")
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 1.0], [0.0, 0.0]], atol=1e-6)


def test_exported_vectors_that_do_not_belong_here(tmp_path):
    array = np.ones((3, 2), np.float32)
    path = export(tmp_path, array)
    with pytest.raises(UserError, match=r"vectors of the log e in .* found those of d"):
        vectors.load_vectors(path, num_items=3, data_hash="e")
    with pytest.raises(UserError, match=r"float32 \[4, D\].* found float32 \[3, 2\]"):
        vectors.load_vectors(path, num_items=4, data_hash="d")
    array[1, 0] = np.nan
    with pytest.raises(UserError, match="NaN or infinity for 1 items, first item 2"):
        vectors.load_vectors(export(tmp_path, array), num_items=3, data_hash="d")
    archive = tmp_path / "items.npz"
    np.savez(archive, array)
    with pytest.raises(UserError, match=r"bytes in .*items\.npz, found \d+ bytes; export"):
        vectors.load_vectors(str(archive), num_items=3, data_hash="d")
    (tmp_path / "items.npy").write_bytes(archive.read_bytes())
    files = checksums.describe(str(tmp_path), ["items.npy"])
    checksums.write_sealed(str(tmp_path / "items.json"), {"data_hash": "d", "files": files})
    with pytest.raises(UserError, match=r"expected item vectors at .*items\.npy, found"):
        vectors.load_vectors(path, num_items=3, data_hash="d")
    for files in (1, ["items.npy"], "items.npy", {"items.npy": None}):
        checksums.write_sealed(str(tmp_path / "items.json"), {"data_hash": "d", "files": files})
        with pytest.raises(UserError, match=r"expected sizes and checksums .*; export"):
            vectors.load_vectors(path, num_items=3, data_hash="d")
    for content in (b"", b"[]", b"{", b"\xe9", b"[" * 100_000):
        (tmp_path / "items.json").write_bytes(content)
        with pytest.raises(UserError, match=r"description of the item vectors .* at .*, found"):
            vectors.load_vectors(path, num_items=3, data_hash="d")
    (tmp_path / "items.json").unlink()
    with pytest.raises(UserError, match=r"items\.json, found no such file; export"):
        vectors.load_vectors(path, num_items=3, data_hash="d")


def test_a_flipped_bit_of_exported_vectors_is_found(tmp_path):
    path = export(tmp_path, np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32))
    for name in ("items.npy", "items.json"):
        for what in flipped_bits(tmp_path / name):
            with pytest.raises(UserError, match="; export them again"):
                vectors.load_vectors(path, num_items=9, data_hash="d")
                pytest.fail(what)
    # Both files may have another name.
    for kind in ("npy", "json"):
        (tmp_path / f"items.{kind}").rename(tmp_path / f"mine.{kind}")
    assert len(vectors.load_vectors(str(tmp_path / "mine.npy"), num_items=9, data_hash="d")) == 9


def test_the_hash_covers_values_and_shape():
    array = np.arange(6, dtype=np.float32)
    hashes = {vectors.content_hash(a) for a in (array.reshape(2, 3), array.reshape(3, 2), array)}
    assert len(hashes) == 3


def test_what_lies_at_a_path_has_a_hash(tmp_path):
    assert vectors.source_hash("click_svd") == ""
    path = tmp_path / "model" / "weights"
    path.parent.mkdir()
    hashes = []
    for content in (b"one", b"two", b"one"):
        path.write_bytes(content)
        hashes.append((vectors.source_hash(str(path)), vectors.source_hash(str(path.parent))))
    assert hashes[0] == hashes[2]
    assert all(len({before, after}) == 2 for before, after in zip(*hashes[:2], strict=True))
