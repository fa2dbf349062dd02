"""Names of axes become rules of a mesh."""

import jax
import numpy as np
from jax.sharding import PartitionSpec

from core.partitioning import DATA, MODEL, rules_of_axes


def test_an_axis_of_the_mesh_cuts_the_first_axis_of_its_names_that_it_divides():
    shapes = {"a/kernel": (6, 8), "a/scale": (6,), "words": (5, 6, 8), "b": (8, 4, 8)}
    axes = {
        "a/kernel": ("embed", "heads"),
        "a/scale": ("embed",),
        "words": ("vocab", "embed", "other"),
        "b": ("mlp", None, "heads"),
    }
    cut = {"embed": DATA, "vocab": MODEL, "heads": MODEL, "mlp": MODEL}
    arrays = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    assert rules_of_axes(arrays, axes, cut, {DATA: 2, MODEL: 4}) == (
        (r"(^|/)a/kernel$", PartitionSpec("data", "model")),
        (r"(^|/)a/scale$", PartitionSpec("data")),
        (r"(^|/)words$", PartitionSpec(None, "data")),
        (r"(^|/)b$", PartitionSpec("model")),
    )
    # What no axis divides has no rule.
    assert not rules_of_axes(arrays, axes, cut, {DATA: 5, MODEL: 3})
