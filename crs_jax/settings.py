"""Describes the settings of CRS: what no task or network reads itself, and what sections share."""

from __future__ import annotations

import dataclasses
import string
from typing import Annotated, Any

from ml_collections import config_dict

from core.errors import UserError
from core.settings import (
    Count,
    CountOrNone,
    Named,
    NamesOnce,
    Place,
    Positive,
    Rule,
    RunPlace,
    Section,
    Settings,
    Weight,
    build,
    one_of,
)
from core.vectors import FactorConfig
from crs_jax.decoder import Decoder
from crs_jax.decoder_config import SIZES, DecoderConfig
from crs_jax.rl_task import RLConfig
from crs_jax.sft_task import SFTConfig
from crs_jax.subsets import TO_REINFORCE
from crs_jax.user_contexts import TIMES
from input_pipelines import search_protocol
from input_pipelines.settings import EvaluationSettings, UserSettings

# A letter names a level, the de-duplication level too.
_LEVELS = Rule(
    "of 1 or more for 1 to 25 levels",
    lambda codes: 0 < len(codes) < len(string.ascii_lowercase) and min(codes) > 0,
    "pass for instance 256,256,256",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextSettings(Settings):
    """Says what a user's context tells of the log.

    Attributes:
      clicks: of a search, at most.
      history: the latest interactions.
      times: whether times are told.
      query_time: whether the hour of the query is.
      unclicked: items of a search that were shown and not clicked, at most.
      profiles: whether the log's facts of a user are told.
      train_examples: clicks of training searches; 0 for all.
    """

    clicks: CountOrNone
    history: CountOrNone
    times: Annotated[str, one_of(*TIMES)]
    query_time: bool
    unclicked: CountOrNone
    profiles: bool
    train_examples: CountOrNone


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorSettings(Settings):
    """Names the source of the items' vectors, beside `core.vectors.FactorConfig`."""

    semantic: Named


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdSettings(Settings):
    """Says how many codes the levels of an id have, and of which run ids are kept.

    Attributes:
      codes: of each k-means level.
      last_codes: of the de-duplication level; 0 for as many as are needed.
      extend: the workdir of a run, or empty.
    """

    codes: Annotated[tuple[int, ...], _LEVELS]
    last_codes: CountOrNone
    extend: RunPlace


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularySettings(Settings):
    """Names a tokenizer, or says how large one is trained.

    Attributes:
      text_rows: of a run that is opened again (`recorded_inputs.reopened`).
    """

    tokenizer: Place
    size: Count
    text_rows: Count | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSettings(Settings):
    """Holds the tokens of a prompt and of an item's context, at most."""

    max_prompt: Count
    max_answer: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReasoningSettings(Settings):
    """Holds the tokens of a reasoning at most, </think> included."""

    max_reasoning: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSettings(Settings):
    """Names the decoder's size and, where it does not start from scratch, its checkpoint."""

    size: Annotated[str, one_of(*SIZES, called="a decoder size")]
    checkpoint: Place


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedSettings(Settings):
    """Says how long a stage of fine-tuning trains."""

    epochs: Positive
    learning_rate: Weight
    evals: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillSettings(Settings):
    """Says who writes the traces: a file, or a folder of a Qwen3; both empty: templates.

    Attributes:
      from_data: whether the file of traces is the one in the data's folder.
      examples: that a teacher is asked about; 0 for all.
    """

    traces: Place
    from_data: bool
    teacher: Place
    examples: CountOrNone


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforcedSettings(Settings):
    """Says how long a stage of reinforcement trains; `steps` are rollouts."""

    steps: Count
    evals: Count
    learning_rate: Weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvolveSettings(Settings):
    """Says how the self-evolving loop goes.

    Attributes:
      iterations: of the loop.
      corpus: training searches that cases are collected from; 0 for all.
      rl_cases: what reinforcement trains on, 'incorrect' cases (Eq. 2) or 'all'.
      rl_sample: of these cases; 0 for all of them.
      sft_only: whether the variant without RL is trained too.
    """

    iterations: CountOrNone
    corpus: CountOrNone
    rl_cases: Annotated[str, one_of(*TO_REINFORCE)]
    rl_sample: CountOrNone
    sft_only: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamSettings(Settings):
    """Says against what searches are ranked, and how wide a beam is."""

    search_protocols: Annotated[
        tuple[Annotated[str, one_of(*search_protocol.NAMES)], ...], NamesOnce(least=1)
    ]
    beam: Count


def _rows(config: config_dict.ConfigDict) -> dict[str, Any]:
    return {"text_rows": 1, "new_rows": 1, **SIZES[config.model.size]}


def _reasoning(config: config_dict.ConfigDict) -> dict[str, int]:
    return {"max_reasoning": config.prompts.max_reasoning}


# Of every method whose decoder is aligned.
SHARED_SECTIONS = {
    "vectors": Section((VectorSettings, FactorConfig), lambda config: {"seed": config.seed}),
    "semantic_ids": Section((IdSettings,)),
    "vocabulary": Section((VocabularySettings,)),
    "prompts": Section((PromptSettings,)),
    "model": Section((NetworkSettings, DecoderConfig), _rows),
    "sft": Section((SFTConfig,)),
    "align": Section((TunedSettings,)),
    "eval": Section((EvaluationSettings, BeamSettings, UserSettings)),
}
SECTIONS = {
    "prompts": Section((PromptSettings, ReasoningSettings)),
    "distill": Section((DistillSettings, TunedSettings)),
    "rl": Section((RLConfig, ReinforcedSettings), _reasoning),
    "evolve": Section((EvolveSettings, TunedSettings)),
}


def check_prompts(config: config_dict.ConfigDict) -> None:
    """Raises UserError where a row of fine-tuning is too short for a prompt with its answer."""
    prompts, levels = config.prompts, len(config.semantic_ids.codes)
    # With the de-duplication level and the end.
    answer = max(prompts.get("max_reasoning", 0) + levels + 2, prompts.max_answer)
    if config.sft.row_length < prompts.max_prompt + answer:
        raise UserError(
            f"expected config.sft.row_length of at least {prompts.max_prompt + answer}, a prompt "
            f"and its answer, found {config.sft.row_length}; raise it"
        )


def check_stages(config: config_dict.ConfigDict) -> None:
    """Checks what the stages of CRS must have in common with its ids and teachers.

    Raises:
      UserError: other weights than levels, or two sources of traces.
    """
    rl, levels = config.rl, len(config.semantic_ids.codes)
    if len(rl.accuracy_weights) != levels:
        raise UserError(
            f"expected config.rl.accuracy_weights for {levels} levels, found "
            f"{len(rl.accuracy_weights)}; give one a k-means level"
        )
    if config.distill.teacher and config.distill.traces:
        raise UserError(
            "expected config.distill.teacher or config.distill.traces, found both; leave one empty"
        )
    for name in ("teacher", "traces"):
        if config.distill.from_data and config.distill[name]:
            raise UserError(
                f"expected config.distill.from_data or config.distill.{name}, found both; leave "
                "the latter empty"
            )


def decoder_of(config: config_dict.ConfigDict, text_rows: int, new_rows: int) -> Decoder:
    """Makes the network of `config.model` with rows for text tokens and for codes.

    Raises:
      UserError: a setting that does not fit.
    """
    sizes = _rows(config) | {"text_rows": text_rows, "new_rows": new_rows}
    return Decoder(build(DecoderConfig, config.model.to_dict(), section="model", more=sizes))


def sft_settings(config: config_dict.ConfigDict) -> SFTConfig:
    """Returns the settings of fine-tuning. Raises UserError where one does not fit."""
    return build(SFTConfig, config.sft.to_dict(), section="sft")


def rl_settings(config: config_dict.ConfigDict) -> RLConfig:
    """Returns the settings of RL. Raises UserError where one does not fit."""
    return build(RLConfig, config.rl.to_dict(), section="rl", more=_reasoning(config))
