"""Trains WebUltron's three stages on GenSAR's T5.

Paper: Zhou et al., "WebUltron: An Ultimate Retriever on Webpages Under the Model-Centric Paradigm"
(IEEE TKDE 2023). Identifiers are those of `webultron_identifiers.py`. Stages: `general` (text to
identifier, and the text's rarest words to identifier), `search` (pseudo-queries to identifier) and
`joint` (queries of the log to identifier).

Settled here: there is one kind of identifier, so that no stage translates one into another. A stage
has its released share of the updates (10, 20 and 10 epochs). Padding is no target (in the released
code it is). The head stays tied to the embedding.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import config_dict

from core.loop import LoopConfig
from core.settings import Section, Settings, Share, build
from core.workdir import Workdir
from gensar_jax.examples import GenSARExamples
from gensar_jax.experiment import GenSARExperiment
from gensar_jax.joint_task import JointTask

_GENERAL, _SEARCH = "general", "search"
# The tasks of the stages before the last.
_TASKS = {_GENERAL: ("desc2id", "pseudo_query"), _SEARCH: ("pseudo_search",)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings(Settings):
    """Holds the shares of all updates that the first two stages have; the third has the rest."""

    general: Share
    search: Share

    def check(self) -> None:
        if self.general + self.search >= 1:
            raise ValueError(
                f"expected shares of less than 1 in all, found {self.general} and {self.search}"
            )


class WebUltronExperiment(GenSARExperiment):
    """Trains a generator of search answers in three stages, of which the last is used."""

    stages = (JointTask.name, _SEARCH, _GENERAL)

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        return {**super().sections(config), "shares": Section((StageSettings,))}

    def run(self, workdir: Workdir) -> None:
        """Trains the stages, or continues, and reads the test split once for each."""
        self.begin(workdir)
        shares = build(StageSettings, self.config.shares.to_dict(), section="shares")
        total = self.task.max_steps
        before = {_GENERAL: round(shares.general * total), _SEARCH: round(shares.search * total)}
        params = None
        for name, updates in before.items():
            if updates:
                rates = {task: -1 for task in _TASKS[name]}
                params = self._stage(workdir, name, self.examples.mixed(rates), updates, params)
        self._stage(workdir, JointTask.name, self.examples, total - sum(before.values()), params)

    def _stage(
        self, workdir: Workdir, name: str, examples: GenSARExamples, updates: int, params: Any
    ) -> Any:
        """Trains a stage from the parameters of the one before; returns its best ones."""
        task = JointTask(
            self.network,
            dataclasses.replace(self.task.config, updates=updates),
            stream=examples.stream,
            examples_per_epoch=examples.mixture.examples_per_epoch,
            evaluate=self.validate,
            selection=self.selection,
            tables=self.constant_tables(),
            seed=self.config.seed,
            initial=self.first_params if params is None else lambda: params,
            partition=self.partition,
            name=name,
        )
        loop = LoopConfig.fixed_length(
            updates,
            evals=self.config.train.evals,
            checkpoint_every=self.config.loop.checkpoint_every,
            log_every=self.config.loop.log_every,
            learning_rate=self.config.train.learning_rate,
        )
        return self.train_and_test(workdir, task, loop)["params"]
