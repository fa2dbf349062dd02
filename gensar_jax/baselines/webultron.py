"""Trains WebUltron's three stages on GenSAR's T5.

Paper: Zhou et al., "WebUltron: An Ultimate Retriever on Webpages Under the Model-Centric Paradigm"
(IEEE TKDE 2023). Identifiers are those of `webultron_identifiers.py`. Stages: `general` (text to
identifier, and the text's rarest words to identifier), `pseudo_queries` (to identifier, asked as
real queries are) and `joint` (queries of the log to identifier).

Settled here: there is one kind of identifier, so that no stage translates one into another. A stage
has its released share of the updates (10, 20 and 10 epochs), and each goes on from the best state
of the one before. Padding is no target (in the released code it is). The head stays tied to the
embedding.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from ml_collections import config_dict

from core.errors import UserError
from core.loop import LoopConfig
from core.partitioning import own_copy
from core.settings import Section, Settings, Share, build
from core.workdir import Workdir
from gensar_jax.examples import GenSARExamples
from gensar_jax.experiment import GenSARExperiment
from gensar_jax.joint_task import JointTask

# The tasks of the stages before the last, in their order.
_TASKS = {"general": ("desc2id", "pseudo_query"), "pseudo_queries": ("pseudo_search",)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings(Settings):
    """Holds the shares of all updates that the first two stages have; the third has the rest."""

    general: Share
    pseudo_queries: Share

    def check(self) -> None:
        if self.general + self.pseudo_queries >= 1:
            raise ValueError(
                f"expected shares of less than 1 in all, found {self.general} and "
                f"{self.pseudo_queries}"
            )


def updates_of(total: int, settings: StageSettings) -> dict[str, int]:
    """Divides `total` updates among the stages, in their order; the last one has at least one."""
    shares = dataclasses.asdict(settings)
    before = {name: int(shares[name] * total) for name in _TASKS}
    return {**before, JointTask.name: total - sum(before.values())}


class WebUltronExperiment(GenSARExperiment):
    """Trains a generator of search answers in three stages, of which the last is used.

    Raises:
      UserError: as `GenSARExperiment`, or a stage that has updates and no examples.
    """

    stages = (JointTask.name, *reversed(_TASKS))

    @classmethod
    def sections(cls, config: config_dict.ConfigDict) -> dict[str, Section]:
        return {**super().sections(config), "shares": Section((StageSettings,))}

    @functools.cached_property
    def updates(self) -> dict[str, int]:
        """Returns the updates of each stage."""
        settings = build(StageSettings, self.config.shares.to_dict(), section="shares")
        return updates_of(self.task.max_steps, settings)

    def examples_of(self, stage: str) -> GenSARExamples:
        """Returns what a stage trains on."""
        if stage == JointTask.name:
            return self.examples
        return self.examples.mixed(dict.fromkeys(_TASKS[stage], -1))

    def _check_examples(self) -> None:
        super()._check_examples()
        for stage, tasks in _TASKS.items():
            empty = [task for task in tasks if not self.examples.sizes[task]]
            if self.updates[stage] and empty:
                raise UserError(
                    f"expected texts or pseudo-queries of items that training shows, for "
                    f"{' and '.join(empty)} of stage {stage}, found none; set "
                    f"--config.shares.{stage}=0"
                )

    def run(self, workdir: Workdir) -> None:
        """Trains the stages, or continues, and reads the test split once for each."""
        self.begin(workdir)
        params = None
        for stage, updates in self.updates.items():
            if updates:
                params = self._stage(workdir, stage, updates, params)

    def _stage(self, workdir: Workdir, name: str, updates: int, params: Any) -> Any:
        """Trains a stage from the parameters of the one before; returns its best ones."""
        examples = self.examples_of(name)
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
        trained = self.train_and_test(workdir, task, loop)["params"]
        return own_copy(self._ranker.place_params(trained))
