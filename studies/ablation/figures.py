"""Makes what a sweep shows beside its table: inference times, hidden states, the scores of every K.

Table 4, figures 4 and 5, and the second curve of figure 6 of LCR-SER. Each function takes the
finished runs by label and gives Markdown lines and values for the JSON.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from core import drawing, metrics
from core.errors import UserError
from core.results import device
from core.workdir import Workdir
from experiments.restored import Restored
from input_pipelines.dataset import Dataset
from lcrsr.embedding import look_up
from lcrsr.experiment import LCRSERExperiment
from lcrsr.losses import distance
from lcrsr.model import LCRSER
from studies.ablation.sweeps import Sweep
from studies.ablation.tables import Supplement, mean_text

_SIDES = {"rec": "recommendation", "search": "search"}
_BINS = np.linspace(0.0, 2.0, 41)
_DRAWN_USERS = 300
_PERPLEXITY = 30
_FEWEST_USERS = 2  # t-SNE starts from two principal components


def beside(
    sweep: Sweep,
    runs: Mapping[str, Sequence[str]],
    workdir: Workdir,
    config: config_dict.ConfigDict,
    data: Dataset,
    metric: str,
) -> Supplement | None:
    """Makes what a sweep has beside its table; None for most.

    Args:
      runs: the folders of a setting's finished runs, one a seed, by its label.
      config: the sweep's own, resolved.
    """
    if sweep.name == "table4":
        return inference_times(config, data, sweep.timed, workdir.file("table.png"))
    runs = {label: paths for label, paths in runs.items() if paths}
    if not runs:
        return None
    if sweep.name in ("figure4", "figure5"):
        # Opened one at a time, when the figure comes to them.
        hidden = {
            label: (hidden_states(Restored(path, "train")) for path in paths)
            for label, paths in runs.items()
        }
        draw = steps_figure if sweep.name == "figure4" else contrast_figure
        return draw(hidden, workdir.file(f"{sweep.name}.png"))
    if sweep.name == "figure6" and not metric.endswith("/full"):
        stages = ("train", "rl") if config.rl.enabled else ("train",)
        largest = max(sweep.settings, key=lambda s: s.value or 0).label
        of_stages = [
            every_k((Restored(path, stage) for path in runs[largest]), stage, metric)
            for stage in stages
            if largest in runs
        ]
        return Supplement(
            [line for one in of_stages for line in one.lines],
            {"every_k": [one.values for one in of_stages]},
            {name: curve for one in of_stages for name, curve in one.curves.items()},
        )
    return None


def check_users(sweep: Sweep, data: Dataset) -> None:
    """Refuses data with too few users for the figures of hidden states, before training.

    Raises:
      UserError: fewer than 2 test users have clicks and searches.
    """
    if sweep.name not in ("figure4", "figure5"):
        return
    users = 0
    for batch in data.sampled("test", "neg99"):
        words, clicks = (batch[name].any((1, 2)) for name in ("query_words", "clicked_items"))
        both = batch["rec_items"].any(1) & (words | clicks)
        users += int((both & (batch["mask"] > 0)).sum())
        if users >= _FEWEST_USERS:
            return
    raise UserError(
        f"expected at least {_FEWEST_USERS} test users with clicks and searches for {sweep.name}, "
        f"found {users} in {data.label}; bring more data or longer histories"
    )


def inference_times(
    config: config_dict.ConfigDict, data: Dataset, ks: Sequence[int], path: str, repeats: int = 5
) -> Supplement:
    """Measures Table 4: seconds to score the test split's 100 candidates with networks of K steps.

    Every K is a network of that many steps, with random parameters: time does not depend on them.
    Passes over the split take turns, after one that compiles; their median counts.

    Args:
      path: of the PNG.
      repeats: passes that are timed.
    """
    batches = list(data.sampled("test", "neg99"))
    passes = []
    for k in ks:
        changed = config_dict.ConfigDict(config.to_dict())
        changed.model.max_steps = changed.train.active_steps = k
        experiment = LCRSERExperiment(changed, data)
        state = experiment.train_task().init()
        passes.append((experiment.evaluator, state["params"], state["tables"]))
    taken: list[list[float]] = [[] for _ in ks]
    for repeat in range(repeats + 1):
        for (evaluator, params, tables), times in zip(passes, taken, strict=True):
            start = time.monotonic()
            evaluator.sampled(params, tables, batches)
            if repeat:
                times.append(time.monotonic() - start)
    medians = [statistics.median(times) for times in taken]
    increases = [100 * (one / medians[0] - 1) for one in medians]
    _draw_times(ks, taken, f"{data.label}, {device()}", path)
    lines = [
        "",
        "![](table.png)",
        "",
        f"Inference on the test split ({len(data.split('test'))} users, 100 candidates), median "
        f"of {repeats} passes that take turns.",
        "",
        "| | " + " | ".join(f"Step-{k}" for k in ks) + " |",
        "|---|" + "---:|" * len(ks),
        "| time (s) | " + " | ".join(f"{one:.3f}" for one in medians) + " |",
        "| increase (%) | " + " | ".join(f"{one:+.1f}" for one in increases) + " |",
    ]
    return Supplement(lines, {"steps": list(ks), "seconds": taken, "increase_percent": increases})


def _draw_times(ks: Sequence[int], taken: Sequence[Sequence[float]], title: str, path: str) -> None:
    """Seconds by K: a point a pass, a line through the medians with their increase in percent."""
    pyplot = drawing.pyplot()
    figure, axis = pyplot.subplots(figsize=(4.6, 3.4), constrained_layout=True)
    medians = [statistics.median(times) for times in taken]
    places = range(len(ks))
    for place, times in zip(places, taken, strict=True):
        axis.scatter([place] * len(times), times, s=6, color="grey")
    axis.plot(places, medians, marker="o")
    for place in places[1:]:
        text = f"{100 * (medians[place] / medians[0] - 1):+.1f}%"
        axis.annotate(
            text, (place, medians[place]), (0, 8), textcoords="offset points", ha="center"
        )
    axis.margins(x=0.1, y=0.2)
    axis.set_xticks(places, [f"Step-{k}" for k in ks])
    axis.set_ylabel("time (s)")
    axis.grid(alpha=0.3)
    axis.set_title(title, fontsize=10)
    drawing.save(figure, path, dpi=120)


@dataclasses.dataclass(frozen=True)
class Hidden:
    """States of the test users whose histories are both non-empty, for U of them.

    Attributes:
      target: vectors of their next items [U, D], as they are scored.
      cross, plain: h^(0..K) with and without cross-attention, by side [U, K+1, D].
    """

    target: np.ndarray
    cross: dict[str, np.ndarray]
    plain: dict[str, np.ndarray]


def hidden_states(run: Restored) -> Hidden:
    """Reasons over the test users of a run, up to its own K."""
    model, active = run.experiment.model, run.experiment.config.train.active_steps

    @jax.jit
    def of_batch(params, tables, batch):
        rows = look_up(tables, batch)
        outputs: Any = model.apply(
            {"params": params}, batch, rows, jnp.int32(active), deterministic=True
        )
        sides = {}
        for side in ("rec", "search"):
            start = getattr(outputs.histories, side).start[:, None]
            sides[side] = [
                jnp.concatenate([start, getattr(states, side)[:, :active]], 1)
                for states in (outputs.cross, outputs.plain)
            ]
        both = outputs.histories.rec.mask.any(-1) & outputs.histories.search.mask.any(-1)
        return rows["candidates"][:, 0], sides, both & (batch["mask"] > 0)

    targets, every = [], []
    for batch in run.data.sampled("test", "neg99"):
        batch = batch | {"candidates": batch["candidates"][:, :1]}
        target, sides, counts = jax.device_get(of_batch(run.params, run.tables_with_words, batch))
        targets.append(target[counts])
        every.append(jax.tree.map(lambda leaf, counts=counts: leaf[counts], sides))
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *every)
    return Hidden(
        np.concatenate(targets),
        {side: states[0] for side, states in joined.items()},
        {side: states[1] for side, states in joined.items()},
    )


def distances(target: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Returns cosine distances [U, K+1] of targets [U, D] to states [U, K+1, D]."""
    return np.asarray(distance(jnp.asarray(target[:, None]), jnp.asarray(states), "cosine"))


def steps_figure(runs: Mapping[str, Iterable[Hidden]], path: str) -> Supplement:
    """Draws Figure 4: histograms of d(e, h^(k)) by step, and t-SNE of the states and targets.

    Args:
      runs: the states of a setting's runs, one a seed, by its label; the first setting is drawn.
      path: of the PNG.
    """
    from sklearn.manifold import TSNE

    pyplot = drawing.pyplot()
    hidden, cross, _ = _of_seeds(next(iter(runs.values())))
    figure, axes = pyplot.subplots(2, 2, figsize=(9.2, 7.2), constrained_layout=True)
    lines = ["", "![](figure4.png)", "", *_seeds_line([cross], "; t-SNE shows the first")]
    lines += ["| mean distance to the target | recommendation | search |", "|---|---:|---:|"]
    distances = {side: np.concatenate(per_seed) for side, per_seed in cross.items()}
    steps = distances["rec"].shape[1]
    for k in range(steps):
        means = [mean_text([one[:, k].mean() for one in cross[side]]) for side in distances]
        lines.append(f"| step {k} | {' | '.join(means)} |")
    chosen = np.random.default_rng(0).permutation(len(hidden.target))[:_DRAWN_USERS]
    for column, (side, states) in enumerate(hidden.cross.items()):
        for k in range(steps):
            axes[0, column].hist(
                distances[side][:, k], _BINS, histtype="step", density=True, label=f"step {k}"
            )
        axes[0, column].set_xlabel(f"cosine distance to the target, {_SIDES[side]}")
        axes[0, column].legend(fontsize=8)
        points = np.concatenate([*(states[chosen, k] for k in range(steps)), hidden.target[chosen]])
        # Directions, as the distances have them: rows of items are much shorter than states.
        points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-9)
        perplexity = min(_PERPLEXITY, (len(points) - 1) / 3)
        flat = TSNE(perplexity=perplexity, random_state=0, init="pca").fit_transform(points)
        names = [*(f"step {k}" for k in range(steps)), "target"]
        for name, part in zip(names, np.split(flat, steps + 1), strict=True):
            axes[1, column].scatter(*part.T, s=5, label=name)
        axes[1, column].set_xlabel(f"t-SNE, {_SIDES[side]}, {len(chosen)} users")
        axes[1, column].legend(fontsize=8)
    drawing.save(figure, path, dpi=120)
    values = {side: _summary(per_seed) for side, per_seed in cross.items()}
    return Supplement(lines, {"users": len(hidden.target), "distances": values})


_OfSides = dict[str, list[np.ndarray]]


def _of_seeds(runs: Iterable[Hidden]) -> tuple[Hidden, _OfSides, _OfSides]:
    """Returns the first run's states, and every run's distances [U, K+1] with and without MCA by
    side.
    """
    first: Hidden | None = None
    cross: _OfSides = {side: [] for side in _SIDES}
    plain: _OfSides = {side: [] for side in _SIDES}
    for hidden in runs:
        first = first or hidden
        for side in _SIDES:
            cross[side].append(distances(hidden.target, hidden.cross[side]).astype(float))
            plain[side].append(distances(hidden.target, hidden.plain[side]).astype(float))
    assert first is not None
    return first, cross, plain


def _seeds_line(settings: Iterable[_OfSides], more: str = "") -> list[str]:
    if all(len(per_seed) == 1 for sides in settings for per_seed in sides.values()):
        return []
    return [f"Means over seeds ± their deviation; histograms hold the users of all{more}.", ""]


def _summary(per_seed: Sequence[np.ndarray]) -> dict[str, Any]:
    """Means of columns and their histograms over seeds, of distances [U, C] a seed."""
    means = [one.mean(0).tolist() for one in per_seed]
    columns = np.concatenate(per_seed).T
    return {
        "means": np.mean(means, 0).tolist(),
        "per_seed": means,
        "bins": _BINS.tolist(),
        "counts": [np.histogram(column, _BINS)[0].tolist() for column in columns],
    }


def contrast_figure(runs: Mapping[str, Iterable[Hidden]], path: str) -> Supplement:
    """Draws Figure 5: d(e, h^(K)) and d(e, h~^(K)), with and without the contrastive loss.

    Args:
      runs: the states of a setting's runs, one a seed, by its label; each setting is a column.
      path: of the PNG.
    """
    pyplot = drawing.pyplot()
    figure, axes = pyplot.subplots(
        len(_SIDES),
        len(runs),
        figsize=(4.6 * len(runs), 6.4),
        sharex=True,
        sharey=True,
        squeeze=False,
        constrained_layout=True,
    )
    settings = {label: _of_seeds(hidden)[1:] for label, hidden in runs.items()}
    lines = ["", "![](figure5.png)", "", *_seeds_line(cross for cross, _ in settings.values())]
    lines += ["| | side | d(e, h) | d(e, h~) | difference |", "|---|---|---:|---:|---:|"]
    values: dict[str, Any] = {}
    for column, (label, (cross, plain)) in enumerate(settings.items()):
        for row, side in enumerate(_SIDES):
            # [U, 2] a seed: at the last step, with and without cross-attention.
            last = zip(cross[side], plain[side], strict=True)
            per_seed = [np.stack([one[:, -1], other[:, -1]], 1) for one, other in last]
            for name, one in zip(("d(e, h)", "d(e, h~)"), np.concatenate(per_seed).T, strict=True):
                axes[row, column].hist(one, _BINS, histtype="step", density=True, label=name)
            axes[row, column].set_title(f"{label}, {_SIDES[side]}", fontsize=9)
            axes[row, column].legend(fontsize=8)
            near, far = np.transpose([each.mean(0) for each in per_seed])
            cells = [mean_text(near), mean_text(far), mean_text(near - far, "+.4f")]
            lines.append(f"| {label} | {_SIDES[side]} | {' | '.join(cells)} |")
            values.setdefault(label, {})[side] = _summary(per_seed)
        axes[-1, column].set_xlabel("cosine distance to the target")
    drawing.save(figure, path, dpi=120)
    return Supplement(lines, {"distances": values})


def every_k(runs: Iterable[Restored], stage: str, metric: str) -> Supplement:
    """Makes Figure 6's other curve: scores of 0..K active steps from the model of the largest K.

    Args:
      runs: that model's runs, one a seed, opened at `stage`.
      metric: a name with a sampled protocol.
    """
    name, _, protocol = metric.partition("/")
    per_seed = []
    for run in runs:
        ranker = run.experiment.ranker

        @jax.jit
        def ranks(params, tables, batch, ranker=ranker):
            rows = look_up(tables, batch)
            users = ranker.represent(params, batch, rows)
            scores = ranker.model.apply(
                {"params": params},
                *users,
                rows.get("user"),
                rows["candidates"],
                method=LCRSER.score_every_k,
            )
            return *jax.vmap(metrics.target_ranks)(scores), jnp.isnan(scores).any(-1)

        steps = run.experiment.config.train.active_steps + 1  # no K that it has not trained
        sums = [metrics.Sums((name,)) for _ in range(steps)]
        tables = run.tables_with_words
        for batch in run.data.sampled("test", protocol):
            above, tied, broken = map(np.asarray, ranks(run.params, tables, batch))
            for k in range(steps):
                sums[k].add(above[k], tied[k], batch["mask"], broken[k])
        per_seed.append([one.means()[name] for one in sums])
    means = np.mean(per_seed, 0)
    lines = [
        "",
        f"{metric} of every K from the model of the largest K ({stage}), seeds averaged:",
        "",
        "| K | " + " | ".join(map(str, range(len(means)))) + " |",
        "|---|" + "---:|" * len(means),
        f"| {metric} | " + " | ".join(f"{one:.4f}" for one in means) + " |",
    ]
    curve = [(float(k), float(mean)) for k, mean in enumerate(means)]
    name = f"one model of the largest K ({stage})"
    return Supplement(
        lines, {"stage": stage, "metric": metric, "per_seed": per_seed}, {name: curve}
    )
