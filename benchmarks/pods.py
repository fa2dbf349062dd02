"""Compiles the steps of every method that a pod is compiled for; `PODS` names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import config_dict

from benchmarks import crs_pod_steps, pod_compile
from benchmarks.pod_compile import Compiled
from core.errors import UserError
from experiments.methods import check_settings


class Pod(NamedTuple):
    """Holds a config's steps compiled for a pod.

    Attributes:
      mesh: of the pod's chips.
      what: tells the size of what is compiled, in a few words.
      steps: as compiled.
    """

    mesh: Mesh
    what: str
    steps: list[Compiled]


# Of a config, the pod's devices, a batch size or None, and counts or None of items, users, words.
Compile = Callable[[config_dict.ConfigDict, Any, int | None, dict[str, int | None]], Pod]


def _lcr_ser(
    config: config_dict.ConfigDict, devices: Any, batch: int | None, counts: dict[str, int | None]
) -> Pod:
    partition = pod_compile.partition_for(config, devices)
    sizes = pod_compile.sizes_of(config, **counts)
    steps = pod_compile.compile_steps(config, partition, sizes, batch)
    return Pod(partition.mesh, f"{sizes.items:,} items", steps)


def _crs(
    config: config_dict.ConfigDict, devices: Any, batch: int | None, counts: dict[str, int | None]
) -> Pod:
    del counts
    mesh = crs_pod_steps.mesh_of(config, devices)
    # No table is cut by rows: there is no shard whose copies would be counted.
    steps = [
        pod_compile.compiled_step(name, step, (0,), *arguments)
        for name, step, arguments in crs_pod_steps.steps(config, mesh, batch)
    ]
    return Pod(mesh, f"decoder {config.model.size}", steps)


PODS: dict[str, Compile] = {"lcr_ser": _lcr_ser, "crs": _crs}


def compile_for(config: config_dict.ConfigDict) -> Compile:
    """Returns what compiles the steps of a config's method.

    Raises:
      UserError: nothing does, or a setting does not fit.
    """
    if config.method not in PODS:
        raise UserError(
            f"expected a config of {' or '.join(PODS)}, found one of {config.method!r}; pass "
            "another --config"
        )
    check_settings(config)
    return PODS[config.method]
