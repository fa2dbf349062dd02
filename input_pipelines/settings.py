"""Describes the settings that say what data is read, and what a run is evaluated on.

A method's experiment puts these into its sections `data`, `on_sample` and `eval`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from ml_collections import config_dict

from core.metrics import MetricNames
from core.settings import (
    Count,
    CountOrNone,
    NamesOnce,
    Section,
    Seed,
    Settings,
    at_least,
    one_of,
)
from input_pipelines import candidates, protocols, segmenters, splits, times
from input_pipelines.dataset import WHOLE
from input_pipelines.readers.csv_log import INFER

# Of searches: lists of candidates, or the whole catalogue.
_SEARCHED = (*WHOLE, *candidates.PROTOCOLS, candidates.BM25)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Says how a log is read and split, whatever the method.

    Attributes:
      kept_events: of each kind, the last events of every user that a run keeps; -1 keeps all.
      columns, time_unit: of CSV files alone.
      search_filter: of the runs of a sweep that keep some searches alone.
    """

    split: Annotated[str, one_of(*splits.SPLITS)]
    segmenter: Annotated[str, one_of(*segmenters.SEGMENTERS)]
    use_search: bool
    candidates_seed: Seed
    max_validation: Count
    kept_events: Annotated[int, at_least(-1)] = 0
    columns: str = ""
    time_unit: Annotated[str, one_of(INFER, *times.UNITS)] = INFER
    search_filter: dict | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistorySettings(Settings):
    """Says how much of a history is read; a method that reads no such thing has no such setting."""

    clicks: CountOrNone
    rec_length: CountOrNone = 0
    search_length: CountOrNone = 0
    words: CountOrNone = 0
    item_words: CountOrNone = 0
    train_negatives: CountOrNone = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSettings(Settings):
    """Says what a batch of a trained ranker holds; its axes cannot be empty."""

    clicks: Count
    rec_length: Count
    search_length: Count
    words: Count
    item_words: CountOrNone
    train_negatives: CountOrNone


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSettings(Settings):
    """Says what the embedded sample is like, and which settings a run on it has.

    Attributes:
      overrides: by section, the values of a run on the sample.
      replaced: by section, the values of the config's file; gone once a config is resolved.
    """

    users: Count
    seed: Seed
    shuffle_searches: bool
    hops: bool
    overrides: dict[str, dict]
    refinements: bool = False
    replaced: dict[str, dict] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """Says what is measured, and which metric selects a state."""

    metrics: MetricNames
    selection: str
    batch_size: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtocolSettings(Settings):
    """Says against which items recommendations are ranked."""

    protocols: Annotated[
        tuple[Annotated[str, one_of(*protocols.PROTOCOLS)], ...], NamesOnce(least=1)
    ]
    full_batch_size: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserSettings(Settings):
    """Says how many examples of a split are evaluated; 0 for all."""

    validation_users: CountOrNone
    test_users: CountOrNone


def sections_of_data(config: config_dict.ConfigDict, *more: type[Settings]) -> dict[str, Section]:
    """Returns the sections `data` and, where a config has one, `on_sample`.

    Args:
      more: what a method's section `data` has beside `DataSettings`.
    """
    sections = {"data": Section((DataSettings, *more))}
    if "on_sample" in config:
        sections["on_sample"] = Section((SampleSettings,))
    return sections
