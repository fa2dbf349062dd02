"""Checks what a CRS config asks of its decoder and its stages, before anything is trained."""

from __future__ import annotations

import string

from ml_collections import config_dict

from core.errors import UserError
from core.settings import build, positive
from crs_jax.decoder import Decoder
from crs_jax.decoder_config import of_size
from crs_jax.rl_task import RLConfig
from crs_jax.sft_task import SFTConfig

# Without these a stage could not begin, or not end.
_ABOVE_ZERO = (
    *("align.epochs", "align.evals", "distill.epochs", "distill.evals"),
    *("evolve.epochs", "evolve.evals", "rl.steps", "rl.evals"),
    *("eval.beam", "eval.batch_size", "loop.log_every", "loop.checkpoint_every"),
    *("prompts.max_prompt", "prompts.max_reasoning", "prompts.max_answer"),
)


def check_codes(config: config_dict.ConfigDict) -> None:
    """Raises UserError where `config.semantic_ids` describes no ids."""
    codes, last = config.semantic_ids.codes, config.semantic_ids.last_codes
    whole = all(isinstance(size, int) and size > 0 for size in codes)
    # A letter names a level, the de-duplication level too.
    if not whole or not 0 < len(codes) < len(string.ascii_lowercase):
        raise UserError(
            f"expected config.semantic_ids.codes of 1 or more for 1 to 25 levels, found "
            f"{tuple(codes)}; pass for instance 256,256,256"
        )
    if last < 0:
        raise UserError(
            f"expected config.semantic_ids.last_codes of 0 or more, found {last}; 0 takes as many "
            "as are needed"
        )


def decoder_of(config: config_dict.ConfigDict, text_rows: int, new_rows: int) -> Decoder:
    """Makes the network of `config.model` with rows for text tokens and for codes.

    Raises:
      UserError: a setting that does not exist or fit.
    """
    sizes = {k: v for k, v in config.model.to_dict().items() if k not in ("size", "checkpoint")}
    try:
        return Decoder(of_size(config.model.size, text_rows, new_rows, **sizes))
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model: {error}; see crs_jax/decoder_config.py") from None


def stage_settings(config: config_dict.ConfigDict, levels: int) -> tuple[SFTConfig, RLConfig]:
    """Returns the settings of fine-tuning and of RL.

    Args:
      levels: of the ids, the de-duplication level among them.

    Raises:
      UserError: a setting that does not fit, or rows too short for a prompt with its answer.
    """
    positive(config, *_ABOVE_ZERO)
    prompts = config.prompts
    sft = build(SFTConfig, config.sft.to_dict(), section="sft")
    rl = build(
        RLConfig, config.rl.to_dict() | {"max_reasoning": prompts.max_reasoning}, section="rl"
    )
    if len(rl.accuracy_weights) != levels - 1:
        raise UserError(
            f"expected config.rl.accuracy_weights for {levels - 1} levels, found "
            f"{len(rl.accuracy_weights)}; give one a k-means level"
        )
    longest = prompts.max_prompt + max(prompts.max_reasoning + levels + 1, prompts.max_answer)
    if sft.row_length < longest:
        raise UserError(
            f"expected config.sft.row_length of at least {longest}, a prompt and its answer, "
            f"found {sft.row_length}; raise it"
        )
    return sft, rl
