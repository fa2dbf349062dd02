"""Checkpoints whose files were damaged: found, said, and the one before is taken."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import flipped_bits

from core.checkpoints import Checkpoints, newest_progress
from core.errors import UserError

LIKE = {"w": jnp.zeros((50, 20)), "steps": jnp.zeros((), jnp.int32)}


def state(step):
    return {"w": jax.random.normal(jax.random.key(step), (50, 20)), "steps": jnp.int32(step)}


def saved(folder, steps=(1, 2)):
    checkpoints = Checkpoints(str(folder))
    for step in steps:
        checkpoints.save(step, state(step), {"step": step, "rate": 0.25}, None)
    checkpoints.wait()
    return checkpoints


def largest_file(folder):
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_a_flipped_bit_in_the_values_counts_as_unreadable(tmp_path, caplog):
    checkpoints = saved(tmp_path)
    for what in flipped_bits(largest_file(tmp_path / "2" / "state"), 40):
        restored, progress, step = checkpoints.restore(LIKE)
        assert progress["step"] == step
        # A bit that nobody reads changes nothing.
        np.testing.assert_array_equal(restored["w"], state(step)["w"], what)
        assert int(restored["steps"]) == step
    checkpoints.close()
    # TensorStore has read some of them without a word.
    assert "the values of w are not those that were saved" in caplog.text
    assert "trying the one before" in caplog.text


@pytest.mark.parametrize("part", ["progress", "digests"])
def test_a_flipped_bit_beside_the_values_counts_as_unreadable(tmp_path, part):
    checkpoints = saved(tmp_path)
    for what in flipped_bits(tmp_path / "2" / part / "metadata", 8):
        restored, progress, step = checkpoints.restore(LIKE)
        assert progress == newest_progress(str(tmp_path)) == {"step": step, "rate": 0.25}, what
        np.testing.assert_array_equal(restored["w"], state(step)["w"], what)
    assert checkpoints.restore(LIKE)[2] == 2
    os.unlink(tmp_path / "2" / part / "metadata")
    assert checkpoints.restore(LIKE)[2] == newest_progress(str(tmp_path))["step"] == 1
    checkpoints.close()


@pytest.mark.parametrize("part", ["progress", "digests"])
@pytest.mark.parametrize("content", ["null", "[1]", "3"])
def test_json_of_another_kind_beside_the_values_counts_as_unreadable(tmp_path, part, content):
    saved(tmp_path).close()
    (tmp_path / "2" / part / "metadata").write_text(content)
    assert newest_progress(str(tmp_path))["step"] == 1


def test_where_all_are_damaged_it_is_an_error(tmp_path, caplog):
    checkpoints = saved(tmp_path)
    for step in (1, 2):
        path = tmp_path / str(step) / "progress" / "metadata"
        path.write_text(path.read_text().replace("0.25", "0.75"))
    with pytest.raises(UserError, match="found 2 that cannot be read; restore the files"):
        checkpoints.restore(LIKE)
    checkpoints.close()
    assert caplog.text.count("its progress is not what was saved") == 2


def test_values_are_checked_on_another_mesh_too(tmp_path, caplog):
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))

    def on(*spec):
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    values = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, {"w": jax.device_put(values, on("a"))}, {}, None)
    checkpoints.wait()
    checkpoints.save(2, {"w": jnp.asarray(values[:300])}, {}, None)
    checkpoints.wait()

    def wanted(rows, sharding=None):
        return {"w": jax.ShapeDtypeStruct((rows, 64), np.float32, sharding=sharding)}

    # Cut otherwise, on one device, and with fewer or more rows of filling than were saved.
    for step, rows, sharding in (
        (1, 512, on("b", "a")),
        (1, 512, on()),
        (1, 300, None),
        (2, 512, on(("a", "b"))),
    ):
        restored = np.asarray(checkpoints.restore(wanted(rows, sharding), step)[0]["w"])
        same = 300 if step == 2 else rows
        assert restored.shape == (rows, 64) and not np.any(restored[same:])
        np.testing.assert_array_equal(restored[:same], values[:same])
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.restore(wanted(200), 1)
    path = largest_file(tmp_path / "1" / "state")
    unseen = 0
    for _ in flipped_bits(path, 8):
        try:
            restored = checkpoints.restore(wanted(512, on("b")), 1)[0]["w"]
            np.testing.assert_array_equal(restored, values)
            unseen += 1
        except UserError:
            pass
    assert unseen < 8 and "the values of w are not those that were saved" in caplog.text
    checkpoints.close()
