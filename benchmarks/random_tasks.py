"""Makes random batches and tasks at given shapes, for benchmarks and compile checks without
data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import config_dict

from core.errors import UserError
from core.partitioning import Partition
from core.settings import build
from input_pipelines.batches import Batch, BatchShape
from lcrsr.baselines import unisar
from lcrsr.lcr_ser import LCRSERRanker, LossConfig
from lcrsr.model import LCRSER, ModelConfig
from lcrsr.ranker_experiment import negatives_for
from lcrsr.ranker_task import RankerTask, TrainConfig
from lcrsr.reinforce import ReinforceConfig, ReinforceTask

# Of a stage whose rate falls; more than any benchmark makes.
_UPDATES = 10_000


@dataclasses.dataclass(frozen=True)
class TableSizes:
    """Ids of each kind, padding not counted."""

    users: int
    items: int
    words: int

    def as_arguments(self) -> dict[str, int]:
        return {"num_users": self.users, "num_items": self.items, "num_words": self.words}


def random_batch(shape: BatchShape, batch_size: int, sizes: TableSizes, seed: int = 0) -> Batch:
    """Makes a batch of full histories with uniform ids: the most distinct rows that a batch can
    touch.

    Its last `shape.search_rows` examples are of the search task.
    """
    rng = np.random.default_rng(seed)
    lengths = shape.sizes(batch_size)
    ids = {"user": sizes.users, "query_words": sizes.words, "query": sizes.words}
    batch: Batch = {}
    for name, (axes, dtype, _) in shape.fields().items():
        size = tuple(lengths[axis] for axis in axes.split())
        if dtype is np.int32:
            batch[name] = rng.integers(1, ids.get(name, sizes.items) + 1, size).astype(np.int32)
    merged = rng.random((batch_size, shape.rec_length + shape.search_length)).argsort(1)
    for name, part in zip(
        ("rec_order", "search_order"), np.split(merged, [shape.rec_length], axis=1), strict=True
    ):
        batch[name] = np.sort(part, axis=1).astype(np.int32)
    batch["labels"] = np.zeros((batch_size, shape.candidates), np.float32)
    batch["labels"][:, 0] = 1.0
    batch["mask"] = np.ones(batch_size, np.float32)
    return batch


def random_windows(
    shape: BatchShape, targets: int, targets_per_window: int, sizes: TableSizes, seed: int = 0
) -> Batch:
    """Makes a batch of windows of full histories with uniform ids, as `WindowBatches` makes them.

    Args:
      shape: of one target's history and candidates.
      targets: of the whole batch, a multiple of `targets_per_window`.
    """
    rows = targets // targets_per_window
    longer = dataclasses.replace(
        shape,
        rec_length=shape.rec_length + targets_per_window,
        search_length=shape.search_length + targets_per_window,
    )
    of_rows, of_targets = (
        random_batch(longer, rows, sizes, seed), random_batch(shape, targets, sizes, seed + 1)
    )  # fmt: skip
    batch = {name: of_rows[name] for name in ("rec_items", "query_words", "clicked_items")}
    batch |= {name: of_targets[name] for name in ("user", "candidates", "labels", "mask")}
    number = np.tile(np.arange(targets_per_window, dtype=np.int32), rows)
    for side, length in (("rec", shape.rec_length), ("search", shape.search_length)):
        columns = np.arange(length + targets_per_window, dtype=np.int32)
        places = np.maximum(columns - targets_per_window, 0)
        batch[f"{side}_sees"] = np.tile(np.maximum(columns - length + 1, 0), (rows, 1))
        batch[f"{side}_places"] = np.tile(places, (rows, 1))
        batch[f"{side}_first"], batch[f"{side}_end"] = number, number + np.int32(length)
    return batch


def require_lcr_ser(config: config_dict.ConfigDict) -> None:
    """Raises UserError for a config of another method."""
    if config.method != "lcr_ser":
        raise UserError(
            f"expected a config of lcr_ser, found one of {config.method!r}; pass "
            "--config=configs/lcr_ser.py:DATASET"
        )


class RandomTasks:
    """Makes LCR-SER's tasks at the settings of a config, over random batches.

    Args:
      config: of LCR-SER; its data and the sizes of its batches are not read.
      shape: of the batches; the candidates are the task's own.
      sizes: of the tables.
      partition: the mesh of the tasks, or None for one device.
      **model: settings that differ from the config's, such as `max_steps` or `dtype`.
    """

    def __init__(
        self,
        config: config_dict.ConfigDict,
        shape: BatchShape,
        sizes: TableSizes,
        partition: Partition | None = None,
        **model: Any,
    ):
        require_lcr_ser(config)
        lengths = {"rec_length": shape.rec_length, "search_length": shape.search_length}
        values = config.model.to_dict() | lengths | model
        self.config, self.shape, self.sizes = config, shape, sizes
        self.partition = partition
        self.model = LCRSER(build(ModelConfig, values, section="model"))
        self.active_steps = min(config.train.active_steps, self.model.config.max_steps)
        settings = config.train.to_dict() | {"active_steps": self.active_steps}
        self.ranker = LCRSERRanker(self.model, build(LossConfig, settings, section="train"))

    def batch(self, batch_size: int, candidates: int, seed: int = 0) -> Batch:
        shape = dataclasses.replace(self.shape, candidates=candidates)
        return random_batch(shape, batch_size, self.sizes, seed)

    def _training_batch(self, batch_size: int, candidates: int, targets_per_window: int) -> Batch:
        shape = dataclasses.replace(self.shape, candidates=candidates)
        if targets_per_window == 1:
            return random_batch(shape, batch_size, self.sizes)
        return random_windows(shape, batch_size, targets_per_window, self.sizes)

    def train(self, batch_size: int, targets_per_window: int = 1) -> RankerTask:
        negatives = self.config.data.train_negatives or negatives_for(batch_size)
        batch = self._training_batch(batch_size, 1 + negatives, targets_per_window)
        return RankerTask(
            name="train",
            ranker=self.ranker,
            config=build(TrainConfig, self.config.train.to_dict(), section="train"),
            table_sizes=self.sizes.as_arguments(),
            example_batch=self.batch(2, 2),
            max_steps=_UPDATES,
            partition=self.partition,
            **_forever(batch, batch_size),
        )

    def reinforce(
        self, batch_size: int, initial: Any, candidates: int, targets_per_window: int = 1
    ) -> ReinforceTask:
        settings = self.config.rl.to_dict() | {"active_steps": self.active_steps}
        return ReinforceTask(
            model=self.model,
            config=build(ReinforceConfig, settings, section="rl"),
            initial=initial,
            partition=self.partition,
            **_forever(
                self._training_batch(batch_size, candidates, targets_per_window), batch_size
            ),
        )


def unisar_task(shape: BatchShape, sizes: TableSizes, batch_size: int, searches: int) -> RankerTask:
    """Makes UniSAR's task at the sizes of its released code, over one random batch.

    Args:
      searches: examples of the search task beside the `batch_size` recommendations.
    """
    settings = unisar.Settings(
        width=32,
        hidden=64,
        layers=1,
        heads=2,
        dropout=0.1,
        init_scale=0.1,
        experts=4,
        expert_width=64,
        tower_widths=(128, 64, 200, 80),
        alignment_weight=1e-3,
        alignment_temperature=0.5,
        alignment_pairs=8192,
        transition_weight=0.1,
        transition_temperature=0.1,
        search_weight=0.1,
        rec_length=shape.rec_length,
        search_length=shape.search_length,
    )
    both = dataclasses.replace(shape, search_rows=searches)
    return RankerTask(
        name="train",
        ranker=unisar.ranker(settings),
        config=TrainConfig(lambda_l2=3e-5, user_dropout=0.01, table_update="touched_rows"),
        table_sizes=sizes.as_arguments(),
        example_batch=random_batch(shape, 2, sizes),
        **_forever(random_batch(both, batch_size + searches, sizes), batch_size),
    )


def _forever(batch: Batch, batch_size: int) -> dict[str, Any]:
    """Makes what a task needs beside a model: one batch again and again, and nothing evaluated."""

    def batches(start: int) -> Iterator[Batch]:
        del start
        while True:
            yield batch

    return {
        "batches": batches,
        "steps_per_epoch": 1,
        "batch_size": batch_size,
        "evaluate": lambda params, tables: {"ndcg@5/neg99": 0.0},
        "selection": "ndcg@5/neg99",
        "seed": 0,
    }
