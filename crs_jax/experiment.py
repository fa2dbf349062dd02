"""Runs CRS from a config: alignment, distillation, the self-evolving loop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import config_dict

from core import seeds
from core.settings import Section
from core.workdir import Workdir
from crs_jax import distillation, lora, recorded_inputs, self_evolve
from crs_jax.decoder_experiment import ALIGN, DecoderExperiment
from crs_jax.inference import Answers, Inference
from crs_jax.packing import Example
from crs_jax.rl_task import RLTask
from crs_jax.self_evolve import rl_stage, sft_only_stage, sft_stage
from crs_jax.settings import SECTIONS, check_stages, rl_settings
from crs_jax.subsets import TO_REINFORCE, Case, Subsets, collected, correct, sampled
from input_pipelines.dataset import Dataset

DISTILL = sft_stage(0)
# Of answers to the corpus in a part of what is collected, which a kill loses at most.
_BATCHES = 32


class CRSExperiment(DecoderExperiment):
    """Stages align, sft_0 (distilled), rl_0, sft_1, ..., and sft_only_1, ...

    Args and errors are those of `DecoderExperiment`.
    """

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        return {**super().sections(config), **SECTIONS}

    @classmethod
    def check_settings(cls, config: config_dict.ConfigDict) -> None:
        super().check_settings(config)
        check_stages(config)

    def __init__(self, config: config_dict.ConfigDict, data: Dataset):
        self.check_settings(config)
        if config.distill.teacher:
            distillation.check(config)
        rounds = range(config.evolve.iterations)
        evolved = [name for i in rounds for name in (rl_stage(i), sft_stage(i + 1))]
        alone = [sft_only_stage(i + 1) for i in rounds] if config.evolve.sft_only else []
        # The latest first, for whoever restores without naming one.
        self.stages: tuple[str, ...] = (*reversed([ALIGN, DISTILL, *evolved]), *reversed(alone))
        self._rl = rl_settings(config)
        super().__init__(config, data)
        if self.partition is not None:
            for section in ("rl", "eval"):
                size = config[section].batch_size
                self.partition.check_batch_size(size, f"config.{section}.batch_size")

    def made_inference(self) -> Inference:
        return Inference(
            self.network,
            self.controls,
            self.trie,
            max_reasoning=self.config.prompts.max_reasoning,
            batch_size=self.config.eval.batch_size,
            partition=self.partition,
        )

    def check_data(self) -> None:
        """Raises UserError as `DecoderExperiment.check_data`, or where distillation would."""
        super().check_data()
        distillation.check_data(self.config, self.examples)

    def answers(self, params: Any, split: str, rows: np.ndarray | None = None) -> Answers:
        """Runs two-step inference on a split, or on some rows of it."""
        prompts, lengths = self.asked(split, True)
        if rows is not None:
            prompts, lengths = prompts[rows], lengths[rows]
        return self.inference(params, prompts, lengths, width=self.config.eval.beam, reason=True)

    def any_task(self, stage: str) -> Any:
        initial = self.start_shapes
        if stage in [rl_stage(i) for i in range(self.config.evolve.iterations)]:
            prompts, lengths = np.zeros((1, 1), np.int32), np.ones(1, np.int32)
            targets = np.zeros((1, 1), np.int32)
            return self._rl_task(stage, prompts, lengths, targets, initial)
        return super().any_task(stage)

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
            self.controls,
            prompts=prompts,
            lengths=lengths,
            targets=targets,
            trie=self.trie,
            max_steps=self.config.rl.steps,
            initial=initial,
            evaluate=self.validate,
            selection=self.config.eval.selection,
            tables=self.tables(stage),
            seed=self.config.seed,
            partition=self.partition,
        )

    def algorithm_of(self, stage: str) -> str | None:
        return self._rl.algorithm if stage.startswith("rl_") else None

    def run(self, workdir: Workdir) -> None:
        """Trains every stage, or continues, and reads the test split once for each."""
        config = self.config
        self.begin(workdir)
        subsets = Subsets(workdir.file("subsets", ""), self.examples.vocabulary.decode)
        # Before alignment, which what cannot be distilled would cost.
        told = distillation.distilled(config, self.examples, subsets, DISTILL, self.mesh)
        params = self.aligned(workdir)
        distilled = self._fine_tune(workdir, config.distill, DISTILL, 0, told, params)
        fine_tune = functools.partial(self._fine_tune, workdir, config.evolve)
        early = self_evolve.evolve(
            distilled,
            config.evolve.iterations,
            subsets,
            to_reinforce=functools.partial(self._to_reinforce, subsets),
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
            return choose(answers, targets, rows, self.controls.end_think)

        return collected(
            subsets,
            stage,
            len(self.examples.train),
            cases_of,
            most=self.config.evolve.corpus,
            size=_BATCHES * self.config.eval.batch_size,
        )

    def _to_reinforce(
        self, subsets: Subsets, params: Any, stage: str, iteration: int
    ) -> list[Case]:
        choose = TO_REINFORCE[self.config.evolve.rl_cases]
        cases = self._collected(subsets, choose, params, stage, iteration)
        chosen_by = seeds.stream(self.config.seed, "rl_sample", iteration)
        return sampled(cases, self.config.evolve.rl_sample, chosen_by)

    def _fine_tune(
        self, workdir: Workdir, settings: Any, stage: str, iteration: int, cases: Any, params: Any
    ) -> Any:
        del iteration
        prompts, lengths = self.asked("train", True)
        examples = [
            Example(
                prompts[case.example, : lengths[case.example]].tolist(),
                self.examples.answer(int(self.examples.train.item[case.example]), case.reasoning),
            )
            for case in cases
        ]
        task = self.sft_task(stage, examples, settings.epochs, lora.copies(params))
        return self.train_and_test(workdir, task, settings.learning_rate, settings.evals)

    def _reinforce(
        self, workdir: Workdir, stage: str, iteration: int, cases: list[Case], params: Any
    ) -> Any:
        rows = np.array([case.example for case in cases])
        prompts, lengths = self.asked("train", True)
        targets = self.examples.item_tokens[self.examples.train.item[rows]]
        asked = prompts[rows], lengths[rows]
        task = self._rl_task(stage, *asked, targets, lora.copies(params))
        return self.train_and_test(
            workdir, task, self.config.rl.learning_rate, self.config.rl.evals
        )
