"""Gives every user a number of reasoning steps: calibrated on validation, measured on test."""

from __future__ import annotations

import json
import math
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core import metrics
from core.errors import UserError
from core.files import write_atomically
from core.results import device
from core.stages import stage_title
from core.workdir import check_mounted, commit_id
from experiments.restored import Restored
from lcrsr.adaptive import AdaptiveScorer, Calibration, Head, calibrate, ranking_losses
from lcrsr.lcr_ser import LCRSERRanker

_BATCH, _BLOCK = 1024, 128
_REPEATS = 7


def metrics_of_every_k(
    run: Restored, scorer: AdaptiveScorer, split: str, name: str
) -> list[np.ndarray]:
    """Returns features [E, F], losses [E, K+1] and values of the metric [E, K+1] of a split."""
    metric = metrics.metric(name)

    @jax.jit
    def of_batch(params, tables, batch):
        x, logits = scorer.every_k(params, tables, batch)
        above, tied = jax.vmap(metrics.target_ranks)(logits)
        return x, ranking_losses(logits).T, metric(above, tied).T

    outputs_of = []
    for batch in run.data.sampled(split, "neg99"):
        outputs = jax.device_get(of_batch(run.params, run.tables_with_words, batch))
        outputs_of.append([array[batch["mask"] > 0] for array in outputs])
    return [np.concatenate(arrays) for arrays in zip(*outputs_of, strict=True)]


def _large_batch(run: Restored) -> dict[str, np.ndarray]:
    """Makes a batch of 1,024 test users, the same ones again where there are fewer."""
    batches = list(run.data.sampled("test", "neg99"))
    whole = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    places = np.resize(np.flatnonzero(whole["mask"] > 0), _BATCH)
    return {name: array[places] for name, array in whole.items()}


def _times(run: Restored, scorer: AdaptiveScorer, head: Head, price: Any) -> dict[str, float]:
    """Seconds a batch takes, medians of passes that take turns."""
    batch = jax.device_put(_large_batch(run))
    arguments = (run.params, run.tables_with_words, batch)
    steps = scorer.model.config.max_steps
    passes: dict[str, Any] = {
        str(k): lambda k=k: scorer.fixed(*arguments, steps=k) for k in range(steps + 1)
    }
    passes["adaptive"] = lambda: scorer.adaptive(*arguments, head, price)
    # Everybody at K through the same blocks: what is saved is not saved by the blocks.
    all_steps = Head(jnp.zeros_like(head.weights), -jnp.arange(steps + 1.0))
    passes[f"{steps} in blocks"] = lambda: scorer.adaptive(*arguments, all_steps, jnp.float32(0))
    taken: dict[str, list[float]] = {name: [] for name in passes}
    for repeat in range(_REPEATS + 1):
        for name, run_pass in passes.items():
            start = time.perf_counter()
            jax.block_until_ready(run_pass())
            if repeat:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _users(run: Restored, split: str) -> np.ndarray:
    """Returns the users of the examples that neg99 ranks, [E]."""
    return run.data.split(split).user[run.data.counted(split, "neg99")]


def origin_of(run: Restored) -> dict[str, Any]:
    """Tells where the numbers come from; `commit` and `device` are those that measure."""
    config = run.experiment.config
    rows = run.workdir.read_results()["rows"]
    return {
        "data": run.data.label,
        "data_split": config.data.split,
        "examples": len(_users(run, "test")),
        "seed": config.seed,
        "trained_commit": next((r["commit"] for r in rows if r["stage"] == run.stage), "unknown"),
        "commit": commit_id(),
        "device": device(),
        "stage": run.stage,
    }


def heading_of(origin: dict[str, Any]) -> str:
    """Tells an `origin_of` in a line, above the table."""
    return (
        f"{origin['data']}, test split ({origin['data_split']}), {origin['examples']} examples, "
        f"seed {origin['seed']}, {stage_title(origin['stage'])}, trained at commit "
        f"{origin['trained_commit']}, measured at commit {origin['commit']}, {origin['device']}; "
        "calibrated on validation"
    )


def to_markdown(
    name: str,
    table: dict[str, dict[str, float]],
    calibration: Calibration,
    difference: list[float | None],
    heading: str,
) -> str:
    """Tables what was measured.

    Args:
      name: of the metric.
      table: by row, K or 'adaptive' or 'K in blocks', its metrics, mean steps and seconds.
      found: what was calibrated on validation.
      difference: mean of the test metric against the best fixed K, and half its 95% interval,
        None of one user.
      heading: the line above the table.
    """
    base = table["adaptive"]
    lines = [
        heading,
        "",
        f"| K | {name}/neg99, validation | {name}/neg99, test | steps | ms for {_BATCH:,} users |",
        "|---|---:|---:|---:|---:|",
    ]
    for label, row in table.items():
        cells = [
            f"{row[key]:{form}}" if key in row else ""
            for key, form in (("validation", ".4f"), ("test", ".4f"), ("steps", ".2f"))
        ]
        lines.append(f"| {label} | {' | '.join(cells)} | {1000 * row['seconds']:.1f} |")
    mean, half = difference
    interval = "of one user, so without an interval" if half is None else f"± {half:.4f} (95%)"
    most = max(int(label) for label in table if label.isdecimal())
    # Blocks alone may be faster, since they stay in caches.
    fixed = min(row["seconds"] for label, row in table.items() if label.startswith(str(most)))
    saved = 1 - base["seconds"] / fixed
    lines += [
        "",
        f"Adaptive minus the best fixed K on validation ({calibration.best_fixed}), on test: "
        f"{mean:+.4f} {interval}. Against K = {most}: {most - base['steps']:.2f} of {most} "
        f"steps saved, and {100 * saved:.0f}% of the time of the faster of its two rows. Price of "
        f"a step: {calibration.price:.2g} nats.",
        "",
    ]
    return "\n".join(lines)


def adapt(workdir: str, stage: str | None, name: str, tolerance: float) -> str:
    """Calibrates steps for every user, measures them and writes the table, returned as Markdown.

    Raises:
      UserError: an address, not a run of LCR-SER with steps, too few users, or a tolerance that
        is below 0 or not finite.
    """
    if not 0 <= tolerance < math.inf:
        raise UserError(f"expected --tolerance of 0 or more, found {tolerance:g}; correct it")
    metrics.metric(name)
    check_mounted(workdir, "--workdir")  # the table goes into it
    run = Restored(workdir, stage)
    ranker = getattr(run.experiment, "ranker", None)
    if not isinstance(ranker, LCRSERRanker) or not ranker.model.config.max_steps:
        raise UserError(
            f"expected a run of lcr_ser with model.max_steps of 1 or more in {workdir}, found "
            "another; only LCR-SER takes reasoning steps"
        )
    trained, most = run.experiment.config.train.active_steps, ranker.model.config.max_steps
    if trained < most:
        raise UserError(
            f"expected a run trained with all of its {most} steps, found active_steps of "
            f"{trained}; train one with both the same"
        )
    if run.experiment.partition is not None:
        raise UserError(
            "expected one device, found the mesh that the run was trained on; start with fewer "
            "devices than it has"
        )
    scorer = AdaptiveScorer(ranker.model, _BLOCK)
    x, losses, values = metrics_of_every_k(run, scorer, "validation", name)
    try:
        users = _users(run, "validation")
        head, calibration = calibrate(x, losses, values, users, tolerance)
    except ValueError as error:
        raise UserError(f"{error} in {run.data.label}; bring more data") from None
    price = jnp.float32(calibration.price)
    test_x, _, test = metrics_of_every_k(run, scorer, "test", name)
    own = np.asarray(head.steps(jnp.asarray(test_x), price))
    reached = test[np.arange(len(own)), own]
    seconds = _times(run, scorer, head, price)
    table: dict[str, dict[str, float]] = {
        str(k): {
            "validation": float(values[:, k].mean()),
            "test": float(test[:, k].mean()),
            "steps": float(k),
            "seconds": seconds[str(k)],
        }
        for k in range(test.shape[1])
    }
    table["adaptive"] = {
        "validation": calibration.metric,
        "test": float(reached.mean()),
        "steps": float(own.mean()),
        "seconds": seconds["adaptive"],
    }
    blocks = f"{test.shape[1] - 1} in blocks"
    table[blocks] = {"seconds": seconds[blocks]}
    gains = reached - test[:, calibration.best_fixed]
    gain = metrics.means_of_users(gains, _users(run, "test"))
    half = metrics.half_interval(gain) if len(gain) > 1 else None
    difference = [float(gain.mean()), half]
    origin = origin_of(run)
    text = to_markdown(name, table, calibration, difference, heading_of(origin))
    values_out = {
        **origin,
        "metric": name,
        "tolerance": tolerance,
        "price": calibration.price,
        "best_fixed": calibration.best_fixed,
        "difference": difference,
        "users_by_steps": np.bincount(own, minlength=test.shape[1]).tolist(),
        "rows": table,
    }
    write_atomically(run.workdir.file("adaptive.json"), json.dumps(values_out, indent=2) + "\n")
    write_atomically(run.workdir.file("adaptive.md"), text)
    return text
