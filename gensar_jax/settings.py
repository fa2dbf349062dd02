"""Describes the settings of GenSAR's prompts, mixture, pieces and evaluation.

What a task or a network reads is described beside it: `joint_task.JointConfig`,
`identifier_task.TrainingConfig`, `rqvae.RQVAEConfig`, `t5.config.T5Config`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from ml_collections import config_dict

from core.settings import (
    Count,
    Named,
    NamesOnce,
    Place,
    Rule,
    RunPlace,
    Settings,
    Weight,
    from_to,
    one_of,
)
from gensar_jax import phrasings
from gensar_jax.prompts import BEHAVIOUR_TOKENS
from gensar_jax.t5.config import SIZES
from input_pipelines import candidates
from input_pipelines.dataset import WHOLE
from input_pipelines.mixtures import ALL, check_rates
from input_pipelines.protocols import PROTOCOLS

KINDS = ("semantic", "collaborative")
BLIND = ("nothing", "query", "history")
# Lists of candidates, the last of searches alone.
SAMPLED = (*candidates.PROTOCOLS, candidates.BM25)
_EXAMPLES = Rule(
    "of examples an epoch, 0 for none or -1 for all", lambda rate: rate >= ALL, "correct it"
)
Rate = Annotated[int, _EXAMPLES]
# By name of a section, what describes its settings.
Described = dict[str, tuple[type[Settings], ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSettings(Settings):
    """Says where identifiers come from.

    Attributes:
      identifiers: folder of an identifier table; empty where it is made first.
      identifier_method: what makes it (`gensar_jax.identifier_methods`).
    """

    identifiers: RunPlace
    identifier_method: Named = "gensar_identifiers"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextVectorSettings(Settings):
    """Names the source of vectors of items' texts, beside `core.vectors.FactorConfig`."""

    semantic: Named


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorSettings(TextVectorSettings):
    """Names the sources of item vectors, beside `core.vectors.FactorConfig`."""

    collaborative: Named


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateSettings(Settings):
    """Says at which rate a stage of fixed length trains, and how often it looks at itself."""

    learning_rate: Weight
    evals: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularySettings(Settings):
    """Names a SentencePiece model, or says how many pieces one is trained with."""

    pieces_model: Place
    pieces: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSettings(Settings):
    """Says how prompts are written.

    Attributes:
      max_inputs, max_targets: tokens.
      behaviour_tokens: where behaviours are told.
      identifiers: 'both', or one of KINDS for both tasks.
      search_without: what search prompts lack, of BLIND.
      phrasings: of each task.
      pseudo_queries: a file; empty: rare words of the titles.
    """

    max_inputs: Count
    max_targets: Count
    behaviour_tokens: Annotated[str, one_of(*BEHAVIOUR_TOKENS)]
    identifiers: Annotated[str, one_of("both", *KINDS)]
    search_without: Annotated[str, one_of(*BLIND)]
    phrasings: Annotated[int, from_to(1, len(phrasings.phrasings("nrip")))]
    pseudo_queries: Place


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureSettings(Settings):
    """Holds the rates of each task (`input_pipelines.mixtures`); the last three are baselines'."""

    nrip: Rate
    nsqp: Rate
    nsip: Rate
    pseudo_query: Rate
    desc2id: Rate
    id2desc: Rate
    pseudo_search: Rate = 0
    next_text: Rate = 0
    told_history: Rate = 0

    def check(self) -> None:
        check_rates(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSettings(Settings):
    """Names the network's size and, where it does not start from scratch, its checkpoint."""

    size: Annotated[str, one_of(*SIZES, called="a T5 size")]
    checkpoint: Place


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings(Settings):
    """Says against which items both tasks are ranked, and how wide a beam is.

    Attributes:
      length_penalty: power of an identifier's tokens by which its log-likelihood is divided.
    """

    protocols: Annotated[tuple[Annotated[str, one_of(*PROTOCOLS)], ...], NamesOnce()]
    search_protocols: Annotated[tuple[Annotated[str, one_of(*WHOLE, *SAMPLED)], ...], NamesOnce()]
    beam: Count
    full_batch_size: Count
    length_penalty: Weight = 0.0


def network_values(config: config_dict.ConfigDict) -> dict[str, Any]:
    """Returns what `config.model.size` says of a `T5Config`; its vocabulary is left open."""
    return {"vocab_size": 1, **SIZES[config.model.size]}
