"""Defines the suites of `launch.benchmark`: what is timed, at which shapes, against which marks."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gensar_suites import identifiers_step, joint_step
from benchmarks.random_tasks import RandomTasks, TableSizes, unisar_task
from benchmarks.timing import (
    Timing,
    Update,
    copy_bandwidth,
    matmul_operations,
    matmul_rate,
    measure,
    measure_training,
)
from core import grpo, metrics
from core.task import Task
from input_pipelines.batches import BatchShape
from lcrsr import embedding, rollout
from lcrsr.evaluation import Evaluator
from lcrsr.model import LCRSER


@dataclasses.dataclass(frozen=True)
class Scale:
    """Shapes of a whole run.

    Attributes:
      batch, history, words, clicks: of training and scoring; histories of both kinds are full.
      candidates: scored a user.
      tables: rows; `more_items` is the larger catalogue of the growth suite.
      catalogue, ranked_users: of the full ranking, and users a call.
      steps: K of the sweep, 0 to here.
      grpo_batch: users of a GRPO step.
      repeats: timed calls behind every median.
      matmul, copy: size of the machine's own test product, and megabytes of its copy.
      marked: whether the marks, which hold for the full shapes, are held against the figures.
    """

    batch: int
    history: int
    words: int
    clicks: int
    candidates: int
    tables: TableSizes
    more_items: int
    catalogue: int
    ranked_users: int
    steps: int
    grpo_batch: int
    repeats: int
    matmul: int
    copy: int
    marked: bool


SCALES = {
    "full": Scale(
        batch=1024,
        history=30,
        words=5,
        clicks=5,
        candidates=100,
        tables=TableSizes(users=22_700, items=673_000, words=395_000),
        more_items=6_900_000,
        catalogue=12_101,
        ranked_users=64,
        steps=5,
        grpo_batch=128,
        repeats=7,
        matmul=2048,
        copy=256,
        marked=True,
    ),
    # Seconds: for tests, and to see that everything runs on a new machine.
    "tiny": Scale(
        batch=8,
        history=4,
        words=2,
        clicks=2,
        candidates=5,
        tables=TableSizes(users=20, items=50, words=30),
        more_items=500,
        catalogue=50,
        ranked_users=4,
        steps=2,
        grpo_batch=4,
        repeats=2,
        matmul=128,
        copy=1,
        marked=False,
    ),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """Holds one line of the table.

    Attributes:
      suite, name: what was measured.
      value, unit: the figure.
      mark: what it is held against, `at least X` or `at most X`; empty without one.
      met: whether the mark is met; None without one.
      share: of the machine's matmul rate, measured beside this suite; None where it says nothing.
      details: seconds a call, compile seconds, operations, planned bytes.
    """

    suite: str
    name: str
    value: float
    unit: str
    mark: str = ""
    met: bool | None = None
    share: float | None = None
    details: dict[str, float] = dataclasses.field(default_factory=dict)


class Bench:
    """Runs suites; the machine's own rates are taken anew beside each one."""

    def __init__(self, scale: Scale, dtype: str, config: Any):
        self.scale, self.dtype, self.config = scale, dtype, config
        self.rows: list[Row] = []
        self.skipped: dict[str, str] = {}
        self.rates: list[float] = []
        self._rate, self._suite = 0.0, ""

    def run(self, suite: str) -> None:
        self._suite = suite
        gc.collect()  # large tables of the suite before
        self._rate = matmul_rate(self.scale.matmul, self.scale.repeats)
        self.rates.append(self._rate)
        SUITES[suite](self)

    def bandwidth(self) -> float:
        return copy_bandwidth(self.scale.copy, self.scale.repeats)

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        timing: Timing | None = None,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        met, mark, share, details = None, "", None, {}
        if not self.scale.marked:
            at_least = at_most = None
        if at_least is not None:
            mark, met = f"at least {at_least:g}", value >= at_least
        if at_most is not None:
            mark, met = f"at most {at_most:g}", value <= at_most
        if timing is not None:
            share = timing.operations / timing.seconds / self._rate
            details = dataclasses.asdict(timing)
        self.rows.append(Row(self._suite, name, value, unit, mark, met, share, details))

    def add_share(self, name: str, timing: Timing, at_least: float) -> None:
        value = timing.operations / timing.seconds / self._rate
        self.add(name, value, "of matmul rate", at_least=at_least)

    def tasks(self, *, items: int | None = None, **model: Any) -> RandomTasks:
        s = self.scale
        sizes = s.tables if items is None else dataclasses.replace(s.tables, items=items)
        shape = BatchShape(
            rec_length=s.history,
            search_length=s.history,
            words=s.words,
            clicks=s.clicks,
            candidates=s.candidates,
        )
        return RandomTasks(self.config, shape, sizes, dtype=self.dtype, **model)

    def train_step(self, tasks: RandomTasks) -> Timing:
        task = tasks.train(self.scale.batch)
        return measure_training(task, task.random_state(), self.scale.repeats)


def train(bench: Bench) -> None:
    timing = bench.train_step(bench.tasks())
    rate = bench.scale.batch / timing.seconds
    bench.add("training", rate, "samples/s", timing=timing, at_least=1500)
    bench.add_share("training", timing, 0.2)


def windows(bench: Bench) -> None:
    """Measures a training step on windows against one on as many targets one by one, in turns."""
    scale, tasks = bench.scale, bench.tasks()
    pretraining = {targets: tasks.train(scale.batch, targets) for targets in (1, 8, 16)}
    _in_turns(bench, "training", pretraining, scale.batch, {8: 3.0, 16: 4.0})
    initial = pretraining[1].random_state()
    reinforcing = {
        targets: tasks.reinforce(scale.grpo_batch, initial, scale.candidates, targets)
        for targets in (1, 8)
    }
    _in_turns(bench, "GRPO", reinforcing, scale.grpo_batch, {})


def _in_turns(
    bench: Bench, title: str, tasks: Mapping[int, Task], targets: int, marks: Mapping[int, float]
) -> None:
    """Times tasks on windows of their keys' sizes against that of 1, an update of each in turn."""
    updates = {window: Update(task, task.init()) for window, task in tasks.items()}
    for _ in range(bench.scale.repeats):
        for update in updates.values():
            update.run()
    alone = updates[1].timing()
    for window, update in updates.items():
        timing = update.timing()
        name = f"{title}, " + ("one by one" if window == 1 else f"windows of {window}")
        bench.add(name, targets / timing.seconds, "targets/s", timing=timing)
        if window > 1:
            ratio = alone.seconds / timing.seconds
            bench.add(f"{name} over one by one", ratio, "times", at_least=marks.get(window))


def _scorer(tasks: RandomTasks) -> Callable[..., jax.Array]:
    def scores(params, tables, batch):
        rows = embedding.look_up(tables, batch)
        users = tasks.ranker.represent(params, batch, rows)
        return tasks.ranker.score(params, users, rows)

    return scores


def _scoring_arguments(bench: Bench, tasks: RandomTasks) -> tuple[Any, ...]:
    state = tasks.train(bench.scale.batch).random_state()
    batch = tasks.batch(bench.scale.batch, bench.scale.candidates)
    return state["params"], state["tables"], jax.device_put(batch)


def score(bench: Bench) -> None:
    tasks = bench.tasks()
    arguments = _scoring_arguments(bench, tasks)
    timing = measure(_scorer(tasks), *arguments, repeats=bench.scale.repeats)
    rate = bench.scale.batch / timing.seconds
    bench.add(
        f"scoring {bench.scale.candidates} candidates",
        rate,
        "users/s",
        timing=timing,
        at_least=1900,
    )
    bench.add_share("scoring", timing, 0.2)


def steps(bench: Bench) -> None:
    scale, timings = bench.scale, []
    for k in range(scale.steps + 1):
        tasks = bench.tasks(max_steps=k)
        # The tasks' default K is 3; here every step counts.
        tasks = _with_active(tasks, k)
        arguments = _scoring_arguments(bench, tasks)
        timing = measure(_scorer(tasks), *arguments, repeats=scale.repeats)
        timings.append(timing)
        bench.add(f"K = {k}", 1e6 * timing.seconds / scale.batch, "us/user", timing=timing)
    none, last = timings[0], timings[-1]
    expected = (last.operations - none.operations) * none.seconds / none.operations
    ratio = (last.seconds - none.seconds) / expected
    bench.add(f"a step over its operations, K = 0..{scale.steps}", ratio, "times", at_most=1.5)
    bench.add(
        f"K = {scale.steps} over K = 0", 100 * (last.seconds / none.seconds - 1), "% more time"
    )
    tasks = bench.tasks(max_steps=scale.steps)

    def every_k(params, tables, batch):
        rows = embedding.look_up(tables, batch)
        users = tasks.ranker.represent(params, batch, rows)
        return tasks.model.apply(
            {"params": params},
            *users,
            rows.get("user"),
            rows["candidates"],
            method=LCRSER.score_every_k,
        )

    whole = measure(every_k, *_scoring_arguments(bench, tasks), repeats=scale.repeats)
    bench.add("every K from one pass", 1e6 * whole.seconds / scale.batch, "us/user", timing=whole)
    passes = sum(timing.seconds for timing in timings)
    bench.add("one pass over a pass for each K", whole.seconds / passes, "times", at_most=0.75)


def _with_active(tasks: RandomTasks, active_steps: int) -> RandomTasks:
    config = dataclasses.replace(tasks.ranker.config, active_steps=active_steps)
    tasks.ranker = type(tasks.ranker)(tasks.model, config)
    return tasks


def growth(bench: Bench) -> None:
    few, many = bench.scale.tables.items, bench.scale.more_items
    small = bench.train_step(bench.tasks())
    gc.collect()
    large = bench.train_step(bench.tasks(items=many))
    for items, timing in ((few, small), (many, large)):
        bench.add(f"step, {items:,} items", timing.seconds, "s", timing=timing)
        bench.add(f"planned memory, {items:,} items", timing.peak_bytes / 1e9, "GB")
    bench.add("step, more items over fewer", large.seconds / small.seconds, "times", at_most=1.3)
    tables = 3 * 4 * bench.tasks().model.config.width * (many - few)
    grown = (large.peak_bytes - small.peak_bytes) / tables
    bench.add("memory's growth over tables' and moments'", grown, "times", at_most=1.05)


def full_ranking(bench: Bench) -> None:
    scale = bench.scale
    tasks = bench.tasks(items=scale.catalogue)
    state = tasks.train(scale.ranked_users).random_state()
    batch = tasks.batch(scale.ranked_users, 1)
    seen = np.concatenate([batch["rec_items"], np.zeros_like(batch["rec_items"])], 1)
    seen[seen == batch["candidates"]] = 0  # the target is never among what was seen
    evaluator = Evaluator(tasks.ranker, ("ndcg@10",))

    def rank() -> None:
        evaluator.full(state["params"], state["tables"], [(batch, seen)])

    start = time.perf_counter()
    rank()
    compiling = time.perf_counter() - start
    seconds = []
    for _ in range(scale.repeats):
        start = time.perf_counter()
        rank()
        seconds.append(time.perf_counter() - start)
    call = statistics.median(seconds)

    def catalogue(params, tables, batch):
        rows = embedding.look_up(tables, batch)
        users = tasks.ranker.represent(params, batch, rows)
        return tasks.ranker.score_catalogue(params, users, rows, tables["item"])

    operations = matmul_operations(catalogue, state["params"], state["tables"], batch)
    bench.add(
        f"ranking {scale.catalogue:,} items",
        scale.ranked_users / call,
        "users/s",
        timing=Timing(call, compiling - call, operations, 0),
        at_least=150,
    )


def grpo_step(bench: Bench) -> None:
    scale = bench.scale
    tasks = bench.tasks()
    initial = tasks.train(scale.grpo_batch).random_state()
    task = tasks.reinforce(scale.grpo_batch, initial, scale.candidates)
    rl = tasks.config.rl
    batch = jax.device_put(next(task.batches(0)))
    params, tables = initial["params"], initial["tables"]

    def roll_out(params, tables, batch, key):
        rows = embedding.look_up(tables, batch)
        histories = rollout.encode(tasks.model, params, batch, rows)
        noise = rollout.draw_noise(key, histories, trajectories=rl.trajectories, gamma=rl.gamma)
        return rollout.trajectories(
            tasks.model, params, histories, noise, rows, jnp.int32(tasks.active_steps)
        )

    def reward(logits):
        return grpo.advantages(metrics.metric(rl.reward)(*metrics.target_ranks(logits)))

    arguments = (params, tables, batch, jax.random.key(0))
    rolled = measure(roll_out, *arguments, repeats=scale.repeats)
    logits = jax.jit(roll_out)(*arguments)
    rewarded = measure(reward, logits, repeats=scale.repeats)
    whole = measure(
        task.train_step, task.init(), batch, jnp.float32(1e-4), repeats=scale.repeats, carry=True
    )
    n = scale.grpo_batch
    title = f"N = {rl.trajectories}, {scale.candidates} candidates"
    bench.add(f"step, {title}", n / whole.seconds, "users/s", timing=whole)
    bench.add("rollout", 1e3 * rolled.seconds, "ms", timing=rolled)
    bench.add("reward and advantage", 1e3 * rewarded.seconds, "ms")
    update = whole.seconds - rolled.seconds - rewarded.seconds
    bench.add("update (the rest of the step)", 1e3 * update, "ms")


def reading(bench: Bench) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        bench.skipped["reading"] = "TensorFlow is not installed; it reads the data"
        return
    from experiments.resolve import resolve
    from input_pipelines.dataset import Dataset
    from lcrsr.experiment import LCRSERExperiment

    config = resolve(bench.config)
    experiment = LCRSERExperiment(config, Dataset(config))
    task = experiment.train_task()
    count = 4 * bench.scale.repeats
    stream = task.batches(0)
    held = [next(stream) for _ in range(count)]
    step = jax.jit(task.train_step, donate_argnums=0)
    rate = jnp.float32(1e-3)
    state = task.random_state()
    for batch in held[:2]:
        state, _ = step(state, batch, rate)

    def steps_over(state, batches):
        start = time.perf_counter()
        for _ in range(count):
            state, _ = step(state, next(batches), rate)
        jax.block_until_ready(state)
        return state, (time.perf_counter() - start) / count

    ratios, memory = [], []
    # In turns, so that a neighbour's load falls on both.
    for _ in range(3):
        state, in_memory = steps_over(state, iter(held))
        state, read = steps_over(state, stream)
        ratios.append(read / in_memory)
        memory.append(in_memory)
    bench.add("steps on batches in memory", 1e3 * statistics.median(memory), "ms")
    bench.add("steps on batches as they are read", statistics.median(ratios), "times", at_most=1.1)


def unisar_step(bench: Bench) -> None:
    """Measures UniSAR's step; the released PyTorch code's 108 samples/s are of recommendation
    alone.
    """
    scale = bench.scale
    shape = BatchShape(
        rec_length=scale.history,
        search_length=scale.history,
        words=scale.words,
        clicks=scale.clicks,
        candidates=5,
    )
    for name, searches, mark in (
        ("recommendation", 0, 5 * 108),
        ("both tasks", scale.batch, None),
    ):
        task = unisar_task(shape, scale.tables, scale.batch, searches)
        timing = measure_training(task, task.random_state(), scale.repeats)
        rate = (scale.batch + searches) / timing.seconds
        bench.add(f"UniSAR, {name}", rate, "samples/s", timing=timing, at_least=mark)


SUITES: dict[str, Callable[[Bench], None]] = {
    "train": train,
    "windows": windows,
    "score": score,
    "steps": steps,
    "growth": growth,
    "full": full_ranking,
    "grpo": grpo_step,
    "reading": reading,
    "unisar": unisar_step,
    "identifiers": identifiers_step,
    "gensar": joint_step,
}
