"""Item vectors: the offline defaults, exported files, and the measures of meaning."""

import json

import numpy as np
import pytest
import scipy.sparse

from core.errors import UserError
from gensar_jax import meaning, vectors
from gensar_jax.vectors import FactorConfig


def factors(width=4, sketch_width=0, sketch_share=0.0, seed=0):
    return FactorConfig(
        width=width, sketch_width=sketch_width, sketch_share=sketch_share, seed=seed
    )


def test_texts_with_shared_words_are_near_and_an_item_without_text_is_0():
    texts = ["red pot", "red pot steel", "blue drum", "blue drum kit", ""]
    found = vectors.from_text(texts, str.split, factors())
    assert found.dtype == np.float32 and len(found) == 5
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 1, 1, 0], atol=1e-5)
    cosines = found @ found.T
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


def test_no_text_at_all_is_an_error():
    with pytest.raises(UserError, match="expected text on the items, found none on all 3"):
        vectors.from_text(["", " ", ""], str.split, factors())


def test_a_sentence_transformers_model_without_the_package_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(
        UserError, match=r"the package sentence-transformers .* found none"
    ) as error:
        vectors.from_sentence_transformer(["a pot"], "bge")
    assert "\n" not in str(error.value)


def test_items_of_the_same_users_are_near():
    clicks = np.zeros((7, 6))
    for user, items in enumerate([(1, 2), (1, 2), (1, 2), (3, 4), (3, 4), (2, 1)], 1):
        clicks[user, list(items)] = 1
    found = vectors.from_clicks(scipy.sparse.csr_array(clicks), factors(width=2))
    cosines = found @ found.T
    assert cosines[0, 1] > 0.99 and cosines[2, 3] > 0.99 and abs(cosines[0, 2]) < 0.01
    assert not found[4].any(), "item 5 was never clicked"


@pytest.mark.parametrize(
    "changes", [{"width": 0}, {"sketch_width": -1}, {"sketch_share": 1.0}, {"sketch_share": -0.1}]
)
def test_factor_settings_that_do_not_fit(changes):
    with pytest.raises(ValueError, match="expected width of 1 or more"):
        factors(**changes)


def export(folder, array, **meta):
    np.save(folder / "items.npy", array)
    (folder / "items.json").write_text(json.dumps({"data_hash": "d"} | meta))
    return str(folder / "items.npy")


def test_exported_vectors_are_read_at_length_1(tmp_path):
    path = export(tmp_path, np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]], np.float32))
    found = vectors.load_vectors(path, num_items=3, data_hash="d")
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, 1.0], [0.0, 0.0]], atol=1e-6)


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
    (tmp_path / "items.json").unlink()
    with pytest.raises(UserError, match=r"with items\.json beside"):
        vectors.load_vectors(path, num_items=3, data_hash="d")


def test_the_hash_covers_values_and_shape():
    array = np.arange(6, dtype=np.float32)
    hashes = {vectors.content_hash(a) for a in (array.reshape(2, 3), array.reshape(3, 2), array)}
    assert len(hashes) == 3


def test_shared_prefix_by_hand():
    first = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]])
    second = np.array([[1, 2, 3], [1, 2, 4], [1, 9, 3], [9, 2, 3]])
    assert meaning.shared_prefix(first, second).tolist() == [3, 2, 1, 0]


def clustered(seed=0):
    """12 clusters of 12 items: neighbours are those of the cluster."""
    rng = np.random.default_rng(seed)
    centres = np.eye(12)
    rows = np.repeat(centres, 12, 0) + 0.01 * rng.normal(size=(144, 12))
    return rows.astype(np.float32), np.repeat(np.arange(12), 12)


def test_codes_by_cluster_mean_something_and_random_ones_do_not():
    rows, cluster = clustered()
    good = np.stack([cluster, np.tile(np.arange(12), 12)], 1)
    random = np.random.default_rng(1).permutation(good)
    assert meaning.neighbours_kept(good, rows) == 1.0
    assert meaning.neighbours_kept(random, rows) < 0.2
    assert meaning.prefix_correlation(good, rows) > 0.4
    assert abs(meaning.prefix_correlation(random, rows)) < 0.05


def test_items_without_a_direction_are_left_out():
    rows, cluster = clustered()
    codes = np.stack([cluster, np.tile(np.arange(12), 12)], 1)
    rows, codes = (
        np.concatenate([rows, np.zeros((9, 12))]),
        np.concatenate([codes, 99 + 0 * codes[:9]]),
    )
    assert meaning.neighbours_kept(codes, rows) == 1.0


def test_residual_k_means_finds_the_clusters_and_splits_them():
    rows, cluster = clustered()
    found = meaning.residual_kmeans_codes(
        {"semantic": rows, "collaborative": rows[:, :4]},
        shared_levels=1,
        specific_levels=1,
        num_codes=12,
    )
    first = found["semantic"][:, 0]
    assert first.tolist() == found["collaborative"][:, 0].tolist()
    # scikit-learn started once finds at least 10 of the 12 clusters whole.
    purity = sum(np.bincount(cluster[first == code]).max() for code in set(first)) / 144
    assert purity > 0.8
    assert set(meaning.measure(found, {"semantic": rows, "collaborative": rows[:, :4]})) == {
        f"{name}/{part}"
        for name in ("prefix_correlation", "neighbours_kept")
        for part in ("semantic", "collaborative", "shared")
    }
