"""Runs CRS from a config: alignment, distillation, the self-evolving loop, evaluation of every
stage.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from core import distributed, metrics, seeds
from core import trie as tries
from core.errors import UserError
from core.experiment import Experiment
from core.loop import LoopConfig, StageResult, run_stage
from core.partitioning import make_mesh
from core.settings import Section
from core.workdir import Workdir
from crs_jax import decoder_checkpoints, distillation, lora, recorded_inputs, self_evolve, sharding
from crs_jax.contexts import UserContext
from crs_jax.decoder import init_params
from crs_jax.examples import CRSExamples, fitted_prompts
from crs_jax.inference import Answers, Inference
from crs_jax.packing import Example, prompt_array
from crs_jax.rl_task import RLTask, Tokens
from crs_jax.self_evolve import rl_stage, sft_only_stage, sft_stage
from crs_jax.settings import (
    SECTIONS,
    ContextSettings,
    check_stages,
    decoder_of,
    stage_settings,
)
from crs_jax.sft_task import SFTTask
from crs_jax.subsets import Case, Subsets, collected, correct, incorrect, sampled
from input_pipelines import candidates, search_protocol
from input_pipelines.dataset import Dataset
from input_pipelines.search_protocol import PROTOCOL
from input_pipelines.search_task import SearchExamples
from input_pipelines.settings import sections_of_data

_LOG = logging.getLogger(__name__)
ALIGN, DISTILL = "align", sft_stage(0)
# Of answers to the corpus in a part of what is collected, which a kill loses at most.
_BATCHES = 32


class CRSExperiment(Experiment):
    """Stages align, sft_0 (distilled), rl_0, sft_1, ..., and sft_only_1, ...

    Args:
      config: a resolved config (`experiments.resolve.resolve`).
      data: the data it names.

    Raises:
      UserError: a setting that does not exist or fit, a checkpoint or tokenizer that does not, or
        data without texts or searches.
    """

    tasks = ("search",)
    data: Dataset

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        shared = super().sections(config)
        return {**shared, **sections_of_data(config, ContextSettings), **SECTIONS}

    @classmethod
    def check_settings(cls, config: config_dict.ConfigDict) -> None:
        super().check_settings(config)
        search_protocol.check(config)
        check_stages(config)

    def __init__(self, config: config_dict.ConfigDict, data: Dataset):
        self.check_settings(config)
        self.config, self.data = config, data
        self._mesh = make_mesh(config.mesh.data, config.mesh.model)
        if config.distill.teacher:
            distillation.check(config)
        rounds = range(config.evolve.iterations)
        evolved = [name for i in rounds for name in (rl_stage(i), sft_stage(i + 1))]
        alone = [sft_only_stage(i + 1) for i in rounds] if config.evolve.sft_only else []
        # The latest first, for whoever restores without naming one.
        self.stages: tuple[str, ...] = (*reversed([ALIGN, DISTILL, *evolved]), *reversed(alone))
        self.examples = CRSExamples(config, data, recorded_inputs.text_rows(config))
        words = self.examples.vocabulary
        self.network = decoder_of(config, words.text_rows, words.new_rows)
        self.partition = sharding.partition_of(self.network.config, self._mesh)
        if self.partition is not None:
            for section in ("rl", "eval"):
                size = config[section].batch_size
                self.partition.check_batch_size(size, f"config.{section}.batch_size")
        self._sft, self._rl = stage_settings(config)
        self._controls = Tokens(words.think, words.end_think, words.end)
        self._trie = tries.build(
            self.examples.item_tokens[1:], np.arange(1, len(self.examples.item_tokens))
        )
        self.inference = Inference(
            self.network,
            self._controls,
            self._trie,
            max_reasoning=config.prompts.max_reasoning,
            batch_size=config.eval.batch_size,
            partition=self.partition,
        )
        self._prompts: dict[tuple[str, bool], tuple[np.ndarray, np.ndarray]] = {}

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
                self._asked(split, reason)
            if search_protocol.IMPRESSIONS in search_protocol.evaluated(self.config):
                search_protocol.impressions(self.data.log, searches)
        self._asked("train", True)
        self.examples.check_room()
        distillation.check_data(self.config, self.examples)

    def _asked(self, split: str, reason: bool) -> tuple[np.ndarray, np.ndarray]:
        """Prompts of a split ('train' too) as an array, and their lengths."""
        if (split, reason) not in self._prompts:
            examples = self.examples.train if split == "train" else self.held_out(split)
            prompts = self.examples.prompts(examples, reason=reason)
            self._prompts[split, reason] = prompt_array(prompts, self.config.prompts.max_prompt)
        return self._prompts[split, reason]

    def answers(self, params: Any, split: str, rows: np.ndarray | None = None) -> Answers:
        """Runs two-step inference on a split, or on some rows of it."""
        prompts, lengths = self._asked(split, True)
        if rows is not None:
            prompts, lengths = prompts[rows], lengths[rows]
        return self.inference(params, prompts, lengths, width=self.config.eval.beam, reason=True)

    def evaluate(self, params: Any, tables: Any, split: str, protocol: str) -> metrics.Sums:
        """Measures a stage's parameters on a split's searches (`input_pipelines.search_protocol`).

        The aligned model answers at once, since nothing has told it to reason yet.

        Raises:
          UserError: no such protocol, or the parameters were trained with other ids.
        """
        self.columns("search", protocol.removeprefix("search/"))
        recorded_inputs.check_ids(self.examples, tables)
        reason = _reasons(tables)
        prompts, lengths = self._asked(split, reason)
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
        limit, reason = self.config.prompts.max_prompt, _reasons(tables)
        words = self.examples.vocabulary
        prompts = fitted_prompts(contexts_of, words, limit=limit, reason=reason)
        width = max(self.config.eval.beam, top_k)
        return self.inference(params, *prompt_array(prompts, limit), width=width, reason=reason)

    def abstract_state(self, stage: str) -> Any:
        """Returns shapes, dtypes and places of a stage's state, to restore a checkpoint into."""
        state = jax.eval_shape(lambda: self._any_task(stage).init())
        return state if self.partition is None else self.partition.abstract(state)

    def _any_task(self, stage: str) -> Any:
        initial = self._start_shapes
        if stage in [rl_stage(i) for i in range(self.config.evolve.iterations)]:
            prompts, lengths = np.zeros((1, 1), np.int32), np.ones(1, np.int32)
            targets = np.zeros((1, 1), np.int32)
            return self._rl_task(stage, prompts, lengths, targets, initial)
        return self._sft_task(stage, [Example([0], [0])], 1.0, initial)

    def _start_shapes(self) -> Any:
        flat = init_params(self.network.config, jax.random.key(0))
        return lora.split(flat, self.network.config.lora_rank > 0)

    def _start(self) -> Any:
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

    def _validate(self, params: Any, tables: Any) -> dict[str, float]:
        _, _, protocol = self.config.eval.selection.partition("/")
        means = self.evaluate(params, tables, "validation", protocol).means()
        return {metrics.full_name(name, protocol): value for name, value in means.items()}

    def _sft_task(
        self, stage: str, examples: Sequence[Example], epochs: float, initial: Any
    ) -> SFTTask:
        return SFTTask(
            stage,
            self.network,
            self._sft,
            examples=examples,
            epochs=epochs,
            initial=initial,
            evaluate=self._validate,
            selection=self.config.eval.selection,
            tables=self.tables(stage),
            seed=self.config.seed,
            partition=self.partition,
        )

    def _rl_task(
        self,
        stage: str,
        prompts: np.ndarray,
        lengths: np.ndarray,
        targets: np.ndarray,
        initial: Any,
    ) -> RLTask:
        return RLTask(
            stage,
            self.network,
            self._rl,
            self._controls,
            prompts=prompts,
            lengths=lengths,
            targets=targets,
            trie=self._trie,
            max_steps=self.config.rl.steps,
            initial=initial,
            evaluate=self._validate,
            selection=self.config.eval.selection,
            tables=self.tables(stage),
            seed=self.config.seed,
            partition=self.partition,
        )

    def _run(self, workdir: Workdir, task: SFTTask | RLTask, rate: float, evals: int) -> Any:
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
            "algorithm": self._rl.algorithm if stage.startswith("rl_") else None,
            "still_improving": finished.still_improving,
        }
        columns = search_protocol.evaluated(self.config)
        params, tables = state["params"], state["tables"]
        self.test_once(workdir, stage, finished.best_step, columns, params, tables, more)

    def groups(self, protocol: str, sums: metrics.Sums) -> dict[str, Any]:
        if protocol != PROTOCOL:
            return {}
        groups = search_protocol.user_groups(self.data, self.held_out("test"), sums)
        return {"user_groups": groups}

    def run(self, workdir: Workdir) -> None:
        """Trains every stage, or continues, and reads the test split once for each."""
        config = self.config
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
        subsets = Subsets(workdir.file("subsets", ""), words.decode)
        # Before alignment, which what cannot be distilled would cost.
        told = distillation.distilled(config, self.examples, subsets, DISTILL, self._mesh)
        aligning = self._sft_task(
            ALIGN, self.examples.alignment(), config.align.epochs, self._start
        )
        params = self._run(workdir, aligning, config.align.learning_rate, config.align.evals)
        distilled = self._fine_tune(workdir, config.distill, DISTILL, 0, told, params)
        fine_tune = functools.partial(self._fine_tune, workdir, config.evolve)
        early = self_evolve.evolve(
            distilled,
            config.evolve.iterations,
            subsets,
            incorrect=functools.partial(self._incorrect, subsets),
            correct=functools.partial(self._collected, subsets, correct),
            reinforce=functools.partial(self._reinforce, workdir),
            fine_tune=fine_tune,
        )
        alone = None
        if config.evolve.sft_only:
            alone = self_evolve.evolve_without_rl(
                distilled,
                config.evolve.iterations,
                subsets,
                correct=functools.partial(self._collected, subsets, correct),
                fine_tune=fine_tune,
            )
        recorded_inputs.note(workdir, subsets.hashes(), {"": early, "sft_only_": alone})

    def _collected(
        self,
        subsets: Subsets,
        choose: Callable[..., list[Case]],
        params: Any,
        stage: str,
        iteration: int,
    ) -> list[Case]:
        """Returns what `choose` takes of the training corpus, or of its first `evolve.corpus`."""
        del iteration

        def cases_of(rows: np.ndarray) -> list[Case]:
            answers, targets = self.answers(params, "train", rows), self.examples.train.item[rows]
            return choose(answers, targets, rows, self._controls.end_think)

        return collected(
            subsets,
            stage,
            len(self.examples.train),
            cases_of,
            most=self.config.evolve.corpus,
            size=_BATCHES * self.config.eval.batch_size,
        )

    def _incorrect(self, subsets: Subsets, params: Any, stage: str, iteration: int) -> list[Case]:
        cases = self._collected(subsets, incorrect, params, stage, iteration)
        chosen_by = seeds.stream(self.config.seed, "rl_sample", iteration)
        return sampled(cases, self.config.evolve.rl_sample, chosen_by)

    def _fine_tune(
        self, workdir: Workdir, settings: Any, stage: str, iteration: int, cases: Any, params: Any
    ) -> Any:
        del iteration
        prompts, lengths = self._asked("train", True)
        examples = [
            Example(
                prompts[case.example, : lengths[case.example]].tolist(),
                self.examples.answer(int(self.examples.train.item[case.example]), case.reasoning),
            )
            for case in cases
        ]
        task = self._sft_task(stage, examples, settings.epochs, lora.copies(params))
        return self._run(workdir, task, settings.learning_rate, settings.evals)

    def _reinforce(
        self, workdir: Workdir, stage: str, iteration: int, cases: list[Case], params: Any
    ) -> Any:
        rows = np.array([case.example for case in cases])
        prompts, lengths = self._asked("train", True)
        targets = self.examples.item_tokens[self.examples.train.item[rows]]
        asked = prompts[rows], lengths[rows]
        task = self._rl_task(stage, *asked, targets, lora.copies(params))
        return self._run(workdir, task, self.config.rl.learning_rate, self.config.rl.evals)


def _reasons(tables: Any) -> bool:
    """Tells whether a stage's model has been told to reason."""
    return bool(np.asarray(tables["reasons"])[0])
