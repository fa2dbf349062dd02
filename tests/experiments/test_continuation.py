"""A run goes on from a finished one, on newer data; rows are found by the user's own ids."""

import csv
import json
import os
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from configs import lcr_ser, popularity, sasrec
from core.checkpoints import Checkpoints
from core.errors import Preempted, UserError
from core.termination import watched
from core.workdir import Workdir
from experiments import continued
from experiments.restored import Restored, open_run
from experiments.train import train
from input_pipelines.dataset import Dataset

SHARED = {
    "data.rec_length": 6,
    "data.search_length": 4,
    "data.words": 3,
    "data.clicks": 2,
    "train.batch_size": 32,
    "train.max_epochs": 3.0,
    "train.evals_per_epoch": 1.0,
    "eval.batch_size": 32,
    "eval.full_batch_size": 16,
    "eval.protocols": ("full",),
    "eval.metrics": ("ndcg@5",),
    "eval.selection": "ndcg@5/full",
    "loop.checkpoint_every": 1,
    "loop.writers": (),
}
SASREC = SHARED | {"model.width": 8, "train.batch_size": 16}
FITTED = {"eval.protocols": ("full",), "eval.metrics": ("ndcg@5",)}
LCR_SER = SHARED | {
    "model.width": 8,
    "model.ffn_width": 8,
    "model.max_steps": 2,
    "model.mlp_widths": (16, 8),
    "model.scorer": "mlp",  # which reads users' rows
    "train.active_steps": 2,
    "train.recommendation": "bce",
    "data.train_negatives": 4,
    "train.max_epochs": 1.0,
    "rl.enabled": False,
}


def write_log(folder, users, places, reverse=False):
    """Users with a click and a search at each of some places, the same ones in every log."""
    folder.mkdir()
    clicks, searches = [], []
    for user in users:
        rng = np.random.default_rng(user)
        for place in range(10):
            item, word = f"i{rng.integers(10 + 4 * place)}", f"word{rng.integers(2 + place)}"
            if place in places:
                clicks.append([f"u{user}", item, 100 * place + 50])
                searches.append([f"u{user}", f"s{user}-{place}", 100 * place + 20, word, item])
    order = slice(None, None, -1 if reverse else 1)
    with open(folder / "clicks.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["user", "item", "time"], *clicks[order]])
    with open(folder / "searches.csv", "w", newline="", encoding="utf-8") as file:
        columns = ["user", "session", "time", "query", "clicked_items"]
        csv.writer(file).writerows([columns, *searches[order]])


def config_of(module, folder, data, values, **changes):
    config = module.get_config("csv_log")
    config.update_from_flattened_dict(values)
    config.data_dir, config.cache_dir = str(folder / data), str(folder / "cache")
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two logs, 'old' and 'new', where other users, items and words come and one user goes."""
    folder = tmp_path_factory.mktemp("continued")
    write_log(folder / "old", range(40), range(5))
    write_log(folder / "new", range(1, 50), range(10), reverse=True)
    train(config_of(sasrec, folder, "old", SASREC), str(folder / "earlier"))
    return folder


def state_of(workdir, stage="train", step=None):
    experiment = open_run(Workdir(str(workdir)), 1)
    checkpoints = Checkpoints(os.path.join(str(workdir), "checkpoints", stage))
    state, progress, _ = checkpoints.restore(experiment.abstract_state(stage), step)
    checkpoints.close()
    return jax.device_get(state), progress


def alike(ours, theirs):
    for own, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(own, other)


def test_rows_are_matched_by_name():
    matched = continued.match(["", "a", "b", "c"], ["", "c", "x", "a"])
    np.testing.assert_array_equal(matched.source, [0, 3, -1, 1])
    assert matched.counts == {"kept": 2, "new": 1, "gone": 1}
    table = np.array([[0, 0], [1, 2], [3, 4], [5, 6], [7, 8]], np.float32)
    # The row of a, b and c and the shared one; the last stays the last.
    rows = continued.grown(table, matched, np.array([9, 9], np.float32))
    np.testing.assert_array_equal(rows, [[0, 0], [5, 6], [9, 9], [1, 2], [7, 8]])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(
        continued.grown(table[:4], matched, np.zeros(2, np.float32)),
        [[0, 0], [5, 6], [0, 0], [1, 2]],
    )


def test_the_mean_is_of_the_rows_that_training_changed():
    table = np.array([[0.0], [1.0], [2.0], [4.0], [100.0]], np.float32)
    squares = np.array([[0.0], [0.1], [0.0], [0.1], [0.1]], np.float32)
    mean = continued.mean_of_trained(table, (squares * 0, squares), 3)
    assert mean == np.float32([2.5]) and mean.dtype == np.float32
    untrained = continued.mean_of_trained(table, (squares * 0, squares * 0), 3)
    assert untrained == pytest.approx(7 / 3)


def begun(folder, workdir, module=sasrec, values=SASREC, earlier="earlier", **changes):
    """Begins a run and stops it before its first update, so that its first checkpoint is left."""
    config = config_of(module, folder, "new", values, **changes)

    def stop():
        while not (folder / workdir / "checkpoints" / "train" / "0").is_dir():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    with watched():
        thread = threading.Thread(target=stop, daemon=True)
        thread.start()
        with pytest.raises(Preempted):
            train(config, str(folder / workdir), continue_from=str(folder / earlier))
        thread.join(60)
    return config


@pytest.fixture(scope="module")
def stopped(folder):
    """A run that was stopped as soon as it had begun, then finished; and one never stopped."""
    moved = folder / "moved"
    config = begun(folder, "stopped")
    first = state_of(folder / "stopped", step=0)[0]
    (folder / "earlier").rename(moved)
    try:
        train(config, str(folder / "stopped"), continue_from=str(folder / "earlier"))
    finally:
        moved.rename(folder / "earlier")
    train(config, str(folder / "whole"), continue_from=str(folder / "earlier"))
    return first


def test_known_rows_moments_and_the_network_are_those_of_the_earlier_run(folder, stopped):
    restored = Restored(str(folder / "earlier"))
    best, _ = state_of(folder / "earlier", step=restored.step)
    before, after = restored.data.log, Restored(str(folder / "whole")).data.log
    for name in ("step", "params", "optimizer"):
        alike(stopped[name], best[name])
    assert stopped["step"] == restored.step > 0
    old_items = before.item_ids.tolist()
    items, moments = stopped["tables"]["item"], stopped["table_states"]["item"]
    trained = np.any(best["table_states"]["item"][1] != 0, 1)
    mean = best["tables"]["item"][trained].mean(0)
    new = 0
    for row, item in enumerate(after.item_ids.tolist()[1:], 1):
        if item in old_items:
            old = old_items.index(item)
            np.testing.assert_array_equal(items[row], best["tables"]["item"][old])
            for ours, theirs in zip(moments, best["table_states"]["item"], strict=True):
                np.testing.assert_array_equal(ours[row], theirs[old])
        else:
            new += 1
            np.testing.assert_allclose(items[row], mean, rtol=1e-5)
            assert not any(moment[row].any() for moment in moments)
    assert new > 0 and not items[0].any()
    record = json.loads((folder / "whole" / "continued.json").read_text())
    assert record["rows"]["item"] == {
        "kept": len(after.item_ids) - 1 - new,
        "new": new,
        "gone": len(old_items) - len(after.item_ids) + new,
    }
    assert (record["from_hash"], record["hash"]) == (before.hash, after.hash)
    assert record["step"] == restored.step


def test_stopped_at_its_beginning_it_ends_in_the_same_bits(folder, stopped):
    ours, theirs = state_of(folder / "stopped"), state_of(folder / "whole")
    assert ours[1] == theirs[1]
    alike(ours[0], theirs[0])
    # It has learnt on.
    assert np.any(ours[0]["tables"]["item"] != stopped["tables"]["item"])


def test_a_state_grows_in_every_table():
    names = {"user": 2, "item": 3, "word": 1}
    tables = {name: jax.numpy.arange(2.0 * (n + 1)).reshape(-1, 2) for name, n in names.items()}
    tables["user"] = jax.numpy.concatenate([tables["user"], jax.numpy.full((1, 2), 7.0)])
    state = {
        "step": jax.numpy.int32(5),
        "params": {"w": jax.numpy.ones(3)},
        "optimizer": (jax.numpy.ones(3),),
        "tables": tables,
        "table_states": {name: (table + 1, table + 2) for name, table in tables.items()},
    }
    newer = {"user": ["", "u2", "u9"], "item": ["", "i3", "i1"], "word": ["", "w9", "w1"]}
    earlier = {name: ["", *(f"{name[0]}{i + 1}" for i in range(n))] for name, n in names.items()}
    matches = {name: continued.match(earlier[name], newer[name]) for name in names}
    grown = jax.device_get(continued.grown_state(state, matches))
    for name in ("step", "params", "optimizer"):
        alike(grown[name], state[name])
    np.testing.assert_array_equal(grown["tables"]["user"], [[0, 0], [4, 5], [3, 4], [7, 7]])
    np.testing.assert_array_equal(grown["tables"]["item"], [[0, 0], [6, 7], [2, 3]])
    np.testing.assert_array_equal(grown["tables"]["word"], [[0, 0], [2, 3], [2, 3]])
    first, second = grown["table_states"]["user"]
    np.testing.assert_array_equal(first, [[0, 0], [5, 6], [0, 0], [8, 8]])
    np.testing.assert_array_equal(second, [[0, 0], [6, 7], [0, 0], [9, 9]])


@pytest.mark.slow
def test_lcr_ser_keeps_users_and_words_too(folder):
    train(config_of(lcr_ser, folder, "old", LCR_SER), str(folder / "lcr"))
    begun(folder, "lcr_on", lcr_ser, LCR_SER, "lcr")
    best, _ = state_of(folder / "lcr", step=Restored(str(folder / "lcr")).step)
    first, _ = state_of(folder / "lcr_on", step=0)
    before = Restored(str(folder / "lcr")).data.log
    after = Dataset(config_of(lcr_ser, folder, "new", LCR_SER)).log
    for table, names in (("user", "user_ids"), ("word", "words")):
        old, new = getattr(before, names).tolist(), getattr(after, names).tolist()
        both = [name for name in new[1:] if name in old]
        assert 0 < len(both) < len(new) - 1
        np.testing.assert_array_equal(
            first["tables"][table][[new.index(name) for name in both]],
            best["tables"][table][[old.index(name) for name in both]],
        )
    # The last row is that of users whom training has not seen.
    assert len(first["tables"]["user"]) == after.num_users + 2
    np.testing.assert_array_equal(first["tables"]["user"][-1], best["tables"]["user"][-1])


def refused(folder, words, *, module=sasrec, values=SASREC, data="new", earlier=None, **changes):
    config = config_of(module, folder, data, values, **changes)
    with pytest.raises(UserError, match=words) as error:
        train(config, str(folder / "none"), continue_from=str(earlier or folder / "earlier"))
    assert "\n" not in str(error.value)
    assert not (folder / "none").exists()


def test_what_does_not_fit_is_refused(folder, tmp_path):
    sizes = r"expected config\.model\.width=8 as in the run .*earlier that --from names, found 4"
    refused(folder, sizes, model__width=4)
    refused(folder, r"config\.data\.rec_length=6 .* found 5", data__rec_length=5)
    refused(folder, r"config\.method='sasrec' .* found 'lcr_ser'", module=lcr_ser, values=LCR_SER)
    refused(
        folder, "baseline that is trained .* found popularity", module=popularity, values=FITTED
    )
    refused(folder, "expected a training workdir", earlier=tmp_path / "nothing")
    settings = r"found the same with config\.data\.max_validation=7 instead of 5000"
    refused(folder, settings, data="old", data__max_validation=7)
    write_log(tmp_path / "few", range(40), range(3))
    elsewhere = config_of(sasrec, folder, "new", SASREC)
    elsewhere.data_dir = str(tmp_path / "few")
    with pytest.raises(UserError, match=r"expected test clicks that the run .* was not trained on"):
        train(elsewhere, str(folder / "none"), continue_from=str(folder / "earlier"))
    (tmp_path / "other").mkdir()
    rows = "".join(f"u{user},j{n},{n * 100}\n" for user in range(9) for n in range(5))
    (tmp_path / "other" / "clicks.csv").write_text("user,item,time\n" + rows)
    (tmp_path / "other" / "searches.csv").write_text("user,session,time,query,clicked_items\n")
    elsewhere.data_dir = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"expected items of the run .* found none of its"):
        train(elsewhere, str(folder / "none"), continue_from=str(folder / "earlier"))
    assert not (folder / "none").exists()


def test_a_run_that_has_not_finished_is_refused(folder, tmp_path):
    shutil.copytree(folder / "earlier", tmp_path / "cut")
    steps = sorted(int(path.name) for path in (tmp_path / "cut/checkpoints/train").iterdir())
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "train" / str(steps[-1]))
    refused(folder, "expected a finished run .* found one at step", earlier=tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints")
    refused(folder, "found no checkpoint; let it finish", earlier=tmp_path / "cut")


def test_a_save_that_was_killed_is_no_beginning(folder, tmp_path):
    config = config_of(sasrec, folder, "new", SASREC)
    config = config_dict.ConfigDict(config.to_dict() | {"continue_from": str(folder / "earlier")})
    place = tmp_path / "checkpoints" / "train"
    (place / "0.orbax-checkpoint-tmp").mkdir(parents=True)
    assert continued.begins_from_another(config, str(tmp_path))
    (place / "0").mkdir()
    assert not continued.begins_from_another(config, str(tmp_path))


def test_the_same_workdir_without_from_is_another_run(folder, stopped):
    config = config_of(sasrec, folder, "new", SASREC)
    with pytest.raises(UserError, match=r"expected the config .* continue_from was"):
        train(config, str(folder / "whole"))
