"""Answers searches with a decoder over users' contexts, whatever stages train it.

Ids, prompts, alignment, evaluation and predictions, which CRS and its baselines share.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from core import distributed, metrics
from core import trie as tries
from core.errors import UserError
from core.experiment import Experiment
from core.loop import LoopConfig, StageResult, run_stage
from core.partitioning import make_mesh
from core.settings import Section
from core.workdir import Workdir
from crs_jax import decoder_checkpoints, lora, recorded_inputs, sharding
from crs_jax.contexts import UserContext
from crs_jax.decoder import init_params
from crs_jax.examples import CRSExamples, fitted_prompts
from crs_jax.inference import Answers, Inference
from crs_jax.packing import Example, prompt_array
from crs_jax.rl_task import Tokens
from crs_jax.settings import (
    SHARED_SECTIONS,
    ContextSettings,
    check_prompts,
    decoder_of,
    sft_settings,
)
from crs_jax.sft_task import SFTTask
from input_pipelines import candidates, search_protocol
from input_pipelines.dataset import Dataset
from input_pipelines.search_protocol import PROTOCOL
from input_pipelines.search_task import SearchExamples
from input_pipelines.settings import sections_of_data

_LOG = logging.getLogger(__name__)
ALIGN = "align"


class DecoderExperiment(Experiment):
    """Trains a decoder from its alignment on; a method adds the stages after it.

    Args:
      config: a resolved config (`experiments.resolve.resolve`).
      data: the data it names.

    Raises:
      UserError: a setting that does not exist or fit, a checkpoint or tokenizer that does not, or
        data without texts or searches.

    Attributes:
      writes_reasoning: whether what comes before an answer is words, which prompts then ask for.
    """

    tasks = ("search",)
    data: Dataset
    writes_reasoning = True

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        shared = super().sections(config)
        return {**shared, **sections_of_data(config, ContextSettings), **SHARED_SECTIONS}

    @classmethod
    def check_settings(cls, config: config_dict.ConfigDict) -> None:
        super().check_settings(config)
        search_protocol.check(config)
        check_prompts(config)

    def __init__(self, config: config_dict.ConfigDict, data: Dataset):
        self.check_settings(config)
        self.config, self.data = config, data
        self.mesh = make_mesh(config.mesh.data, config.mesh.model)
        self.examples = CRSExamples(config, data, recorded_inputs.text_rows(config))
        words = self.examples.vocabulary
        self.network = decoder_of(config, words.text_rows, words.new_rows)
        self.partition = sharding.partition_of(self.network.config, self.mesh)
        self.controls = Tokens(words.think, words.end_think, words.end)
        self.trie = tries.build(
            self.examples.item_tokens[1:], np.arange(1, len(self.examples.item_tokens))
        )
        self.inference = self.made_inference()
        self._prompts: dict[tuple[str, bool], tuple[np.ndarray, np.ndarray]] = {}

    def made_inference(self) -> Inference:
        """Makes what answers prompts."""
        raise NotImplementedError

    def held_out(self, split: str) -> SearchExamples:
        """Returns the searches of a split that are evaluated."""
        return search_protocol.held_out(self.config, self.data, split)

    def check_data(self) -> None:
        """Raises UserError where a split has no searches, or these no impressions to rank.

        Or where a prompt has no room for any query, or what a later stage reads cannot be read:
        stages would be trained in vain.
        """
        if self.config.model.checkpoint:
            decoder_checkpoints.check(self.config.model.checkpoint, self.network.config)
        for split in ("validation", "test"):
            searches = self.held_out(split)
            for reason in (False, True):
                self.asked(split, reason)
            if search_protocol.IMPRESSIONS in search_protocol.evaluated(self.config):
                search_protocol.impressions(self.data.log, searches)
        self.asked("train", True)
        self.examples.check_room()

    def asked(self, split: str, reason: bool) -> tuple[np.ndarray, np.ndarray]:
        """Prompts of a split ('train' too) as an array, and their lengths."""
        reason = reason and self.writes_reasoning
        if (split, reason) not in self._prompts:
            examples = self.examples.train if split == "train" else self.held_out(split)
            prompts = self.examples.prompts(examples, reason=reason)
            self._prompts[split, reason] = prompt_array(prompts, self.config.prompts.max_prompt)
        return self._prompts[split, reason]

    def evaluate(self, params: Any, tables: Any, split: str, protocol: str) -> metrics.Sums:
        """Measures a stage's parameters on a split's searches (`input_pipelines.search_protocol`).

        The aligned model answers at once, since nothing has told it to reason yet.

        Raises:
          UserError: no such protocol, or the parameters were trained with other ids.
        """
        self.columns("search", protocol.removeprefix("search/"))
        recorded_inputs.check_ids(self.examples, tables)
        reason = reasons(tables)
        prompts, lengths = self.asked(split, reason)
        sums = metrics.Sums(tuple(self.config.eval.metrics))
        if protocol == search_protocol.IMPRESSIONS:
            shown = search_protocol.impressions(self.data.log, self.held_out(split))
            tokens = self.examples.item_tokens[shown]
            scores = self.inference.scores(params, prompts, lengths, tokens, reason=reason)
            search_protocol.add_impressions(sums, scores, shown)
            return sums
        width = self.config.eval.beam
        answers = self.inference(params, prompts, lengths, width=width, reason=reason)
        examples = self.held_out(split)
        others = candidates.other_clicks(self.data.log, examples)
        above, tied, broken = answers.ranks(examples.item, others)
        sums.add(above, tied, np.ones(len(above)), broken)
        return sums

    def columns(self, task: str, protocol: str) -> tuple[str, ...]:
        return search_protocol.columns(task, protocol)

    def details(self, split: str, protocol: str) -> dict[str, Any]:
        """Returns further arguments of `results.save` for a row."""
        initial = self.config.model.checkpoint or "from scratch"
        more = {"task": "search", "identifiers": self.examples.ids.hash, "initial": initial}
        examples = self.held_out(split)
        users = search_protocol.users(self.data.log, examples, protocol)
        # The clicks of a search are relevant items of one ranking of the catalogue.
        whole = protocol != search_protocol.IMPRESSIONS
        return {"users": users, "more": more} | ({"rankings": examples.target_row} if whole else {})

    @classmethod
    def reopened(
        cls, config: config_dict.ConfigDict, folder: str, *, training: bool
    ) -> config_dict.ConfigDict:
        return recorded_inputs.reopened(config, folder, training=training)

    def predict(
        self,
        params: Any,
        tables: Any,
        users: Sequence[str] | None,
        top_k: int,
        query: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Answers queries with everything their users have done before.

        Args:
          params, tables: of a stage; the aligned model answers without reasoning.
          users: 'USER TAB QUERY', or 'USER' for the user's latest query.
          query: must be None.

        Yields:
          user, query, rank, item, id, score (log-likelihood of the id in nats) and reasoning.

        Raises:
          UserError: an unknown user, or one without a query; or as `evaluate`.
        """
        if users is None or query is not None:
            raise UserError(
                "expected --users=FILE without --query of a run of CRS; write a query after its "
                "user and a TAB"
            )
        contexts_of = [self.examples.asked(line) for line in users]
        words = self.examples.vocabulary
        answers = self.answered(params, tables, [context for _, context in contexts_of], top_k)
        for row, (user, context) in enumerate(contexts_of):
            said = answers.reasoning[row, : answers.lengths[row]].tolist()
            if said and said[-1] in (words.end_think, words.end):
                said = said[:-1]
            ranked = zip(answers.items[row].tolist(), answers.scores[row].tolist(), strict=True)
            for rank, (item, score) in enumerate(list(ranked)[:top_k], start=1):
                if item > 0:
                    yield {
                        "user": user,
                        "query": context.query,
                        "rank": rank,
                        "item": str(self.data.log.item_ids[item]),
                        "id": self.examples.name(item),
                        "score": round(score, 6),
                        "reasoning": words.decode(said),
                    }

    def answered(
        self, params: Any, tables: Any, contexts_of: Sequence[UserContext], top_k: int
    ) -> Answers:
        """Runs two-step inference for users' contexts, with a beam of at least `top_k`.

        Raises:
          UserError: as `evaluate`, or a prompt has no room for its query.
        """
        recorded_inputs.check_ids(self.examples, tables)
        limit, reason = self.config.prompts.max_prompt, reasons(tables)
        words, in_words = self.examples.vocabulary, reason and self.writes_reasoning
        prompts = fitted_prompts(contexts_of, words, limit=limit, reason=in_words)
        width = max(self.config.eval.beam, top_k)
        return self.inference(params, *prompt_array(prompts, limit), width=width, reason=reason)

    def abstract_state(self, stage: str) -> Any:
        """Returns shapes, dtypes and places of a stage's state, to restore a checkpoint into."""
        state = jax.eval_shape(lambda: self.any_task(stage).init())
        return state if self.partition is None else self.partition.abstract(state)

    def any_task(self, stage: str) -> Any:
        """Makes the task of a stage over no data, for the shapes of its state."""
        return self.sft_task(stage, [Example([0], [0])], 1.0, self.start_shapes)

    def start_shapes(self) -> Any:
        flat = init_params(self.network.config, jax.random.key(0))
        return lora.split(flat, self.network.config.lora_rank > 0)

    def start(self) -> Any:
        shape = self.network.config
        key = jax.random.key(self.config.seed)
        path, partition = self.config.model.checkpoint, self.partition
        if path:
            params = decoder_checkpoints.from_hugging_face(path, shape, key, partition)
        else:
            params = init_params(shape, key, partition)
        return lora.split(params, shape.lora_rank > 0)

    def tables(self, stage: str) -> dict[str, np.ndarray]:
        """Tells a stage's ids and whether it reasons, which is kept with its parameters."""
        ids = np.frombuffer(bytes.fromhex(self.examples.ids.hash), np.uint8)
        return {"identifiers": ids, "reasons": np.array([stage != ALIGN], np.uint8)}

    def validate(self, params: Any, tables: Any) -> dict[str, float]:
        _, _, protocol = self.config.eval.selection.partition("/")
        means = self.evaluate(params, tables, "validation", protocol).means()
        return {metrics.full_name(name, protocol): value for name, value in means.items()}

    def sft_task(
        self, stage: str, examples: Sequence[Example], epochs: float, initial: Any
    ) -> SFTTask:
        return SFTTask(
            stage,
            self.network,
            sft_settings(self.config),
            examples=examples,
            epochs=epochs,
            initial=initial,
            evaluate=self.validate,
            selection=self.config.eval.selection,
            tables=self.tables(stage),
            seed=self.config.seed,
            partition=self.partition,
        )

    def train_and_test(self, workdir: Workdir, task: Any, rate: float, evals: int) -> Any:
        """Trains a stage or continues it, tests it once, and gives its parameters."""
        loop = LoopConfig.fixed_length(
            task.max_steps,
            evals=evals,
            checkpoint_every=self.config.loop.checkpoint_every,
            log_every=self.config.loop.log_every,
            learning_rate=rate,
        )
        finished = run_stage(task, loop, workdir)
        self.test_stage(workdir, task.name, finished)
        return finished.state["params"]

    def test_stage(self, workdir: Workdir, stage: str, finished: StageResult) -> None:
        """Reads the test split for a finished stage."""
        state = finished.state
        more = {
            "algorithm": self.algorithm_of(stage),
            "still_improving": finished.still_improving,
        }
        columns = search_protocol.evaluated(self.config)
        params, tables = state["params"], state["tables"]
        self.test_once(workdir, stage, finished.best_step, columns, params, tables, more)

    def algorithm_of(self, stage: str) -> str | None:
        """Names the algorithm of a stage of reinforcement for its row; None of other stages."""
        del stage
        return None

    def groups(self, protocol: str, sums: metrics.Sums) -> dict[str, Any]:
        if protocol != PROTOCOL:
            return {}
        groups = search_protocol.user_groups(self.data, self.held_out("test"), sums)
        return {"user_groups": groups}

    def begin(self, workdir: Workdir) -> None:
        """Records what a new run is trained with; holds one that continues to what it has."""
        words = self.examples.vocabulary
        _LOG.info(
            "ids of %s codes; %d tokens, %d of them codes; %d training searches",
            " x ".join(map(str, words.levels)),
            words.size,
            words.new_rows,
            len(self.examples.train),
        )
        with distributed.first_alone():
            recorded_inputs.record(workdir, self.examples)

    def aligned(self, workdir: Workdir) -> Any:
        """Aligns the decoder (3.1.2), or continues, and gives its parameters."""
        settings = self.config.align
        task = self.sft_task(ALIGN, self.examples.alignment(), settings.epochs, self.start)
        return self.train_and_test(workdir, task, settings.learning_rate, settings.evals)


def reasons(tables: Any) -> bool:
    """Tells whether a stage's model has been told to reason."""
    return bool(np.asarray(tables["reasons"])[0])
