"""Makes GenSAR's identifiers from a config: item vectors, the joint RQ-VAE, and the identifier
table.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from ml_collections import config_dict

from core import distributed, results, vectors
from core.errors import UserError
from core.experiment import Experiment
from core.loop import LoopConfig, StageResult, restore_best, run_stage
from core.settings import Section, build
from core.workdir import Workdir, commit_id
from gensar_jax import identifiers, meaning
from gensar_jax.identifier_task import Assignment, IdentifierTask, TrainingConfig, scaled
from gensar_jax.quantizer import SHARED
from gensar_jax.rqvae import RQVAE, SOURCES, RQVAEConfig
from gensar_jax.settings import Described, RateSettings, VectorSettings
from input_pipelines import segmenters
from input_pipelines.dataset import Dataset
from input_pipelines.settings import (
    EvaluationSettings,
    HistorySettings,
    ProtocolSettings,
    sections_of_data,
)
from text_encoders import named
from text_encoders.sentence_settings import EncoderSettings

_LOG = logging.getLogger(__name__)
TFIDF, CLICKS = "tfidf_svd", "click_svd"
SPLIT = "catalogue"


def text_vectors(
    config: config_dict.ConfigDict, data: Dataset, factors: vectors.FactorConfig
) -> np.ndarray:
    """Returns the vectors float32 [V, D] of the items' texts, by `config.vectors.semantic`.

    Raises:
      UserError: as `item_vectors`.
    """
    texts, name = data.log.item_texts(), config.vectors.semantic
    if name != TFIDF:
        return named.item_vectors(texts, name, key="vectors.semantic")
    return vectors.from_text(texts, segmenters.segmenter(config.data.segmenter), factors)


def item_vectors(config: config_dict.ConfigDict, data: Dataset) -> dict[str, np.ndarray]:
    """Vectors [V, D] of each source that the model reads, rows of length 1 or 0.

    Raises:
      UserError: no texts, a model or file that cannot be read or is of another log or split.
    """
    settings, log = config.vectors, data.log
    factors = build(
        vectors.FactorConfig, settings.to_dict(), section="vectors", more={"seed": config.seed}
    )
    of_source = {}
    for source in config.model.sources:
        if source == "semantic":
            vectors.check_texts(
                log.item_texts(), ", or set --config.model.sources to ('collaborative',)"
            )
            of_source[source] = text_vectors(config, data, factors)
        elif settings.collaborative == CLICKS:
            of_source[source] = vectors.from_clicks(data.training_clicks(), factors)
        else:
            of_source[source] = vectors.load_vectors(
                settings.collaborative, num_items=log.num_items, data_hash=log.hash
            )
            _check_split(settings.collaborative, data)
        missing = int((~of_source[source].any(1)).sum())
        if missing:
            what = "text" if source == "semantic" else "training clicks"
            _LOG.info(
                "%d of %d items have no %s: their %s vector is 0",
                missing,
                log.num_items,
                what,
                source,
            )
    return of_source


def vectors_of_texts(
    config: config_dict.ConfigDict, data: Dataset, texts: Sequence[str]
) -> np.ndarray:
    """Returns the semantic vectors float32 [n, D] of texts that the catalogue does not have.

    Raises:
      UserError: as `item_vectors`.
    """
    settings = config.vectors
    if settings.semantic != TFIDF:
        encoder = named.open_named(settings.semantic, EncoderSettings(), key="vectors.semantic")
        return encoder.documents(texts)
    factors = build(
        vectors.FactorConfig, settings.to_dict(), section="vectors", more={"seed": config.seed}
    )
    split = segmenters.segmenter(config.data.segmenter)
    return vectors.TextVectors(data.log.item_texts(), split, factors).of(texts)


def _check_split(path: str, data: Dataset) -> None:
    recorded = vectors.read_description(path).get("training_split")
    data.check_training_split(recorded, f"item vectors in {path}")


class IdentifierExperiment(Experiment):
    """Trains one stage, `identifiers`, which writes identifiers.npz and identifiers.json.

    Args:
      config: a resolved config (`experiments.resolve.resolve`).
      data: the data it names.

    Raises:
      UserError: a setting that does not exist, a catalogue smaller than a codebook, or as
        `item_vectors`.

    Attributes:
      own_sections, shared_sections: as of
        `fitted_identifier_experiment.FittedIdentifierExperiment`.
    """

    stages: tuple[str, ...] = (IdentifierTask.name,)
    data: Dataset
    own_sections: ClassVar[Described] = {
        "vectors": (VectorSettings, vectors.FactorConfig),
        "model": (RQVAEConfig,),
        "train": (TrainingConfig, RateSettings),
    }
    shared_sections: ClassVar[Described] = {}

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        def seed(config: config_dict.ConfigDict) -> dict[str, int]:
            return {"seed": config.seed}

        return {
            **super().sections(config),
            **sections_of_data(config, HistorySettings),
            **{name: Section(classes, seed) for name, classes in cls.own_sections.items()},
            "eval": Section((EvaluationSettings, ProtocolSettings)),
        }

    @classmethod
    def check_settings(cls, config: config_dict.ConfigDict) -> None:
        super().check_settings(config)
        if config.eval.selection != IdentifierTask.selection:
            raise UserError(
                f"expected config.eval.selection {IdentifierTask.selection!r}, found "
                f"{config.eval.selection!r}; set it"
            )

    def __init__(self, config: config_dict.ConfigDict, data: Dataset):
        self.config, self.data = config, data
        model = build(RQVAEConfig, config.model.to_dict(), section="model")
        training = build(TrainingConfig, config.train.to_dict(), section="train")
        if data.log.num_items < model.codes:
            raise UserError(
                f"expected at least {model.codes} items, the codes of a level, in {data.label}, "
                f"found {data.log.num_items}; set --config.model.codes to fewer"
            )
        if data.log.num_items > model.codes**model.levels:
            raise UserError(
                f"expected at most as many items in {data.label} as there are identifiers, "
                f"found {data.log.num_items} of {model.codes**model.levels} identifiers; set more "
                "codes or levels in config.model"
            )
        self.item_vectors = item_vectors(config, data)
        widths = tuple(self.item_vectors[source].shape[1] for source in model.sources)
        self.task = IdentifierTask(
            RQVAE(model, widths), training, scaled(self.item_vectors), seed=config.seed
        )

    def joined(
        self, workdir: Workdir, table: identifiers.IdentifierTable, texts: Sequence[str]
    ) -> identifiers.IdentifierTable:
        """Returns a table with identifiers of items that nobody has clicked yet after its own.

        Their semantic vectors are quantized, and zeros as collaborative ones, as of items without
        training clicks. Where such an identifier is taken the new item has the nearest free one.

        Args:
          workdir: of this run, which has trained.
          table: that it wrote.
          texts: of the new items.

        Raises:
          UserError: identifiers of clicks alone, no trained state, or no identifier is free.
        """
        model = self.task.model.config
        if "semantic" not in model.sources:
            raise UserError(
                f"expected identifiers with semantic vectors in {workdir.path} to add items to, "
                "found those of clicks alone; train on data with these items"
            )
        state, _ = restore_best(workdir, IdentifierTask.name, self.task.abstract_state())
        # In the unit of the catalogue's vectors.
        mean_square = np.square(self.item_vectors["semantic"]).mean()
        semantic = vectors_of_texts(self.config, self.data, texts) / np.sqrt(mean_square)
        rows = {
            s: np.zeros((len(texts), v.shape[1]), np.float32) for s, v in self.item_vectors.items()
        }
        rows["semantic"] = semantic.astype(np.float32)
        assignment = self.task.assign(state["params"], rows)
        codes: dict[str, np.ndarray] = {}
        for source in model.sources:
            if not model.specific_levels and codes:
                codes[source] = codes[model.sources[0]]
                continue
            books = state["params"]["codebooks"][source if model.specific_levels else SHARED]
            codes[source] = identifiers.join(
                table.codes[source],
                assignment.codes[source],
                assignment.residuals[source],
                np.asarray(books),
            )
        every = {name: codes.get(name, codes[model.sources[0]]) for name in SOURCES}
        joined = dataclasses.replace(table, codes=every)
        identifiers.validate_table(joined, "the table with new items")
        return joined

    def run(self, workdir: Workdir) -> None:
        """Trains, or continues; then assigns, resolves, measures and writes the table once.

        Of several processes all train, and the first does the rest.
        """
        finished = run_stage(self.task, self._loop(), workdir)
        distributed.by_first(lambda: self._write_once(workdir, finished))

    def _write_once(self, workdir: Workdir, finished: StageResult) -> None:
        rows = workdir.read_results()["rows"]
        if not any(row["step"] == finished.best_step for row in rows):
            self._write(workdir, finished)

    def _loop(self) -> LoopConfig:
        config, loop = self.config.train, self.config.loop
        return LoopConfig.fixed_length(
            self.task.max_steps,
            evals=config.evals,
            checkpoint_every=loop.checkpoint_every,
            log_every=loop.log_every,
            learning_rate=config.learning_rate,
        )

    def _resolve(self, assignment: Assignment, codebooks: Any) -> dict[str, identifiers.Resolution]:
        model = self.task.model.config
        resolved: dict[str, identifiers.Resolution] = {}
        for source in model.sources:
            if not model.specific_levels and resolved:
                # Without own levels both identifiers are the shared codes.
                resolved[source] = resolved[model.sources[0]]
                continue
            resolved[source] = identifiers.resolve(
                assignment.codes[source],
                assignment.residuals[source],
                np.asarray(codebooks[source if model.specific_levels else SHARED]),
                epsilon=model.sinkhorn_epsilon,
                iterations=model.sinkhorn_iterations,
            )
        return resolved

    def _write(self, workdir: Workdir, finished: StageResult) -> None:
        model, data = self.task.model.config, self.data
        assignment = self.task.assign(finished.state["params"])
        resolved = self._resolve(assignment, finished.state["params"]["codebooks"])
        codes = {source: resolution.codes for source, resolution in resolved.items()}
        values = self.task.describe(assignment)
        for source in model.sources:
            values[f"collision_rate_after/{source}"] = identifiers.collision_rate(codes[source])
            values[f"moved/{source}"] = resolved[source].moved / data.log.num_items
            values[f"spare_codes/{source}"] = resolved[source].spares / data.log.num_items
        # With one source both of an item's identifiers are that source's.
        table = identifiers.IdentifierTable(
            {name: codes.get(name, codes[model.sources[0]]) for name in SOURCES},
            model.shared_levels if len(model.sources) > 1 else model.levels,
            model.codes,
            data.log.hash,
            data.training_split,
        )
        written = {
            "seed": self.config.seed,
            "commit": commit_id(),
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        report = {
            "data": data.label,
            "step": finished.best_step,
            "sources": list(model.sources),
            "vectors": {source: vectors.content_hash(v) for source, v in self.item_vectors.items()},
            "resolution_rounds": {
                source: resolution.rounds for source, resolution in resolved.items()
            },
        }
        # At once, because measuring takes minutes and a table can be used without; again with it.
        identifiers.save_table(workdir.path, table, {**report, "metrics": values, **written})
        values |= self._meaning(codes)
        identifiers.save_table(workdir.path, table, {**report, "metrics": values, **written})
        workdir.write_result_row(
            {
                "stage": IdentifierTask.name,
                "split": SPLIT,
                "protocol": SPLIT,
                "step": finished.best_step,
                "examples": data.log.num_items,
                "metrics": values,
                "selected_on": f"{IdentifierTask.selection} of all items",
                "data": data.label,
                "data_hash": data.log.hash,
                "data_split": self.config.data.split,
                "identifiers": table.hash,
                "device": results.device(),
                **written,
            }
        )
        _LOG.info("identifier table %s in %s", table.hash, os.path.join(workdir.path, ""))

    def _meaning(self, codes: dict[str, np.ndarray]) -> dict[str, float]:
        """Measures what the codes keep of the vectors, beside residual k-means of the same
        vectors.
        """
        model = self.task.model.config
        _LOG.info("measuring the codes' meaning against residual k-means of the same vectors")
        values = meaning.measure(codes, self.item_vectors)
        baseline = meaning.residual_kmeans_codes(
            self.item_vectors,
            shared_levels=model.shared_levels,
            specific_levels=model.specific_levels,
            num_codes=model.codes,
            seed=self.config.seed,
        )
        for name, value in meaning.measure(baseline, self.item_vectors).items():
            values[f"kmeans_{name}"] = value
        for source in model.sources:
            rate = identifiers.collision_rate(baseline[source])
            values[f"kmeans_collision_rate/{source}"] = rate
            sharing = identifiers.colliding_items(baseline[source])
            values[f"kmeans_colliding_items/{source}"] = sharing
        return values
