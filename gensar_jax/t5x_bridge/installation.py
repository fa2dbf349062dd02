"""Imports T5X under the current JAX."""

from __future__ import annotations

import importlib.util

from core.errors import UserError


def prepare() -> None:
    """Makes `import t5x` work; call it before that import.

    Raises:
      UserError: T5X, or what it needs, is not installed.
    """
    for name in ("t5x", "seqio", "gin", "airio", "jestimator"):
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"expected T5X and what it needs, found no package {name}; run "
                "gensar_jax/t5x_bridge/install.sh"
            )
    import jax
    import jax.experimental.pjit as pjit

    # jestimator 0.3.3, which T5X imports, still looks for it here.
    pjit.PartitionSpec = jax.sharding.PartitionSpec  # type: ignore[attr-defined]
