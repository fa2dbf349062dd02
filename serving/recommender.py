"""Recommends and searches for anyone with a trained run.

    model = Recommender.load("runs/lcr_ser_amazon_beauty")
    model.recommend(clicks=["B00..", "B01.."], searches=[("red lipstick", ["B02.."])], k=20)

Questions are scored in batches of three sizes, each compiled once: neither a second user nor
another history compiles anything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from serving.asking import Asking
from serving.exported import ExportedModel, is_export
from serving.histories import title_of
from serving.requests import RECOMMEND, SEARCH, Answer, Request

# An export is opened where what trains is not installed.
if TYPE_CHECKING:
    from experiments.restored import Restored
    from input_pipelines.log import Log
    from serving.generation import GeneratedAnswers
    from serving.new_items import WithNewItems, WithNewTexts
    from serving.ranking import RankerAnswers
    from serving.reasoned_search import ReasonedAnswers
    from serving.search_floors import SearchFloorAnswers

_LOG = logging.getLogger(__name__)
_TASKS = {"recommendation": RECOMMEND, "search": SEARCH}


class Recommender(Asking):
    """Answers requests with a restored run: `requests.Answers`.

    Args:
      restored: a run, or anything with its `experiment`, `params`, `tables` and
        `tables_with_words`.
      name: of the run, for people.

    Attributes:
      name: of the run and its method.
      tasks: of 'recommend' and 'search', what it answers.
      catalogue_size: V, the largest k.
      max_steps: the largest `reasoning_steps`; None where the method does not reason.
      titles: by item id, '' where there is none.
      time_unit: of times, that of the training log.

    Raises:
      UserError: the run answers neither recommendations nor searches.
    """

    def __init__(self, restored: Restored | WithNewItems | WithNewTexts, name: str = ""):
        from crs_jax.decoder_experiment import DecoderExperiment
        from gensar_jax.experiment import GenSARExperiment
        from lcrsr.ranker_experiment import RecommendationExperiment
        from lcrsr.search_baselines.experiment import SearchBaselineExperiment
        from serving.generation import GeneratedAnswers
        from serving.ranking import RankerAnswers
        from serving.reasoned_search import ReasonedAnswers
        from serving.search_floors import SearchFloorAnswers

        opened: Any = restored  # a run with new items has all that is read of a run
        experiment = opened.experiment
        self._answers: RankerAnswers | GeneratedAnswers | ReasonedAnswers | SearchFloorAnswers
        if isinstance(experiment, RecommendationExperiment):
            self._answers = RankerAnswers(opened)
        elif isinstance(experiment, GenSARExperiment):
            self._answers = GeneratedAnswers(opened)
        elif isinstance(experiment, DecoderExperiment):
            self._answers = ReasonedAnswers(opened)
        elif isinstance(experiment, SearchBaselineExperiment):
            self._answers = SearchFloorAnswers(opened)
        else:
            raise UserError(
                f"expected the run of a ranker, a floor of search, gensar or crs, found one of "
                f"{experiment.config.method}; pass another workdir"
            )
        self.name = name or experiment.config.method
        self.tasks = tuple(_TASKS[task] for task in self._answers.tasks)
        log = experiment.data.log
        self.catalogue_size = log.num_items
        self.max_steps = self._answers.max_steps
        self.time_unit = log.time_unit
        self.titles: Mapping[str, str] = Titles(log, self._answers.reader.items)

    @classmethod
    def load(
        cls, workdir: str, stage: str | None = None, items: Iterable[Any] | None = None
    ) -> Recommender | ExportedModel:
        """Opens a run by its folder alone, or with its data where they are and match; or an export.

        Where the folder has every event of the log, or the data are not where the run's config
        says, only the folder is read. Of users of the log it knows as much as it has kept
        (`config.data.kept_events`).

        Args:
          workdir: of a run of launch.train, or of launch.export.
          stage: of a run, as of `experiments.restored.Restored`.
          items: that joined after training, described as `serving.item_descriptions.NewItem`, for
            a model whose items have words, GenSAR, or a floor of search that compares texts.

        Raises:
          UserError: no run there, or neither its data nor what it keeps of them can be opened; or
            it cannot score new items.
        """
        if is_export(workdir):
            return ExportedModel(workdir, items)
        from core.workdir import Workdir
        from serving.new_items import with_new_items

        folder = Workdir(workdir)
        method = folder.read_setting("method", str)
        opened, name = restored_run(folder.path, stage), f"{method} of {folder.path}"
        if items is None:
            return cls(opened, name=name)
        return cls(with_new_items(opened, items), name=name)

    def answer(self, requests: Sequence[Request]) -> list[Answer | UserError]:
        return self._answers.answer(requests)

    def refusal(self, request: Request) -> UserError | None:
        asked = RECOMMEND if request.query is None else SEARCH
        if asked not in self.tasks:
            remedy = "ask without a query" if asked == SEARCH else "ask with a query"
            return UserError(
                f"expected a question that {self.name} can answer ({', '.join(self.tasks)}), found "
                f"one to {asked}; {remedy}"
            )
        return super().refusal(request)


def restored_run(workdir: str, stage: str | None) -> Restored:
    """Opens a run with the whole log if there is one, else with what its folder keeps."""
    from experiments.restored import Restored
    from input_pipelines import kept_data

    if kept_data.keeps_every_event(workdir):
        return Restored(workdir, stage, devices=1, kept=True)
    try:
        return Restored(workdir, stage, devices=1)
    except UserError as error:
        if not kept_data.is_kept(workdir):
            raise
        restored = Restored(workdir, stage, devices=1, kept=True)
        if not len(restored.data.log.rec_items):
            _LOG.warning(
                "%s keeps no events of users, and its data cannot be opened (%s): users of the log "
                "are known by their row and the events of a question alone",
                *(workdir, str(error)[:200]),
            )
        return restored


class Titles(Mapping[str, str]):
    """Reads the titles of a log's items by their ids.

    Args:
      numbers: of the items by id.
    """

    def __init__(self, log: Log, numbers: Mapping[str, int]):
        self._log, self._numbers = log, numbers

    def __getitem__(self, item: str) -> str:
        return title_of(self._log, self._numbers[item])

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)
