"""Makes what `launch.compile_check` compiles of a CRS config: the SFT step and the RL step of its
size.

Parameters and moments are cut over the chips by their logical axes (`crs_jax.sharding`), batches by
rows. A mesh of one device becomes FSDP over every chip.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import config_dict

from core import trie as tries
from core.errors import UserError
from core.partitioning import Partition, make_mesh, random_bits_impl
from crs_jax import lora, sharding
from crs_jax.decoder import Decoder, init_params
from crs_jax.decoder_config import QWEN3_ROWS
from crs_jax.rl_task import Tokens, rl_step
from crs_jax.settings import decoder_of, rl_settings, sft_settings
from crs_jax.sft_task import first_state, sft_step

# Items of the trie, which lies whole on every chip, and codes of the de-duplication level.
_ITEMS, _LAST_CODES = 4096, 64
_CONTROLS = Tokens(think=151_667, end_think=151_668, end=151_645)


def mesh_of(config: config_dict.ConfigDict, devices: Any) -> Mesh:
    mesh = config.mesh
    data = -1 if (mesh.data, mesh.model) == (1, 1) else mesh.data
    return make_mesh(data, mesh.model, devices)


def abstract_state(network: Decoder, settings: Any, with_reference: bool) -> Any:
    """Returns the shapes of a stage's state before its first update, RL's with its reference."""

    def make():
        params = lora.split(
            init_params(network.config, jax.random.key(0)), network.config.lora_rank > 0
        )
        tables = {"identifiers": np.zeros(8, np.uint8), "reasons": np.zeros(1, np.uint8)}
        state = first_state(params, settings, tables, None)
        return state | ({"reference": params["trained"]} if with_reference else {})

    return jax.eval_shape(make)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, shardings
    )


def steps(
    config: config_dict.ConfigDict,
    mesh: Mesh,
    batch_size: int | None = None,
    text_rows: int = QWEN3_ROWS,
) -> list[tuple[str, Any, tuple[Any, ...]]]:
    """Returns (name, jitted step, abstract arguments) of both steps.

    Args:
      batch_size: packed rows, and prompts of a rollout; None takes the config's own.
      text_rows: of the checkpoint.

    Raises:
      UserError: a batch that does not divide over the chips, or settings that do not fit.
    """
    new_rows = sum(config.semantic_ids.codes) + (config.semantic_ids.last_codes or _LAST_CODES)
    network = decoder_of(config, text_rows, new_rows)
    partition = Partition(mesh, sharding.rules_of(network.config, mesh), whole=sharding.WHOLE)
    prompts, codes = config.prompts, len(config.semantic_ids.codes) + 1
    sft, rl = sft_settings(config), rl_settings(config)
    rows, asked = batch_size or sft.batch_size, batch_size or rl.batch_size
    for name, count in (("sft", rows), ("rl", asked)):
        if count % mesh.size:
            raise UserError(
                f"expected a batch of {name} that is a multiple of {mesh.size} chips, found "
                f"{count}; change it or --batch"
            )
    wide = np.zeros((rows, sft.row_length), np.int32)
    packed: dict[str, Any] = {"tokens": wide, "segments": wide, "positions": wide}
    packed |= {"answers": wide.astype(bool), "rate": np.float32(1)}
    identifiers = np.stack(np.unravel_index(np.arange(_ITEMS), (16, 16, 16, 1)), 1)
    trie = tries.build(identifiers)
    rollout = {
        "prompts": np.zeros((asked, prompts.max_prompt), np.int32),
        "lengths": np.ones(asked, np.int32),
        "targets": np.zeros((asked, codes), np.int32),
        "mask": np.ones(asked, np.float32),
        "trie": trie,
        "seed": np.uint32(0),
    }
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    impl, named_steps = random_bits_impl(partition), []
    for name, step, settings, batch in (
        ("sft", sft_step(network, sft), sft, packed),
        ("rl", rl_step(network, rl, _CONTROLS, impl), rl, rollout),
    ):
        state = abstract_state(network, settings, name == "rl")
        cut = _placed(batch, partition.batch_shardings(batch))
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(partition.shardings(state), None))
        arguments = (partition.abstract(state), cut, rate)
        named_steps.append((name, jitted, arguments))
    return named_steps
