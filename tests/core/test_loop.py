"""The loop on a tiny task: early stopping, resumption, cut checkpoints, NaN, SIGTERM, full disk."""

import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import made_results
import numpy as np
import pytest

from core.background_writer import BackgroundWriter
from core.checkpoints import Checkpoints
from core.errors import Preempted, UserError
from core.loop import LoopConfig, run_stage, stage_directory, start_or_restore
from core.metric_writers import read_lines
from core.termination import repeatable, stop_if_terminated, watched
from core.workdir import open_workdir

ROOT = pathlib.Path(__file__).parent.parent.parent


class Quadratic:
    """Gradient steps on (w - x)^2 for a stream of x; validation is -(w - 1)^2."""

    name = "toy"
    selection = "score/toy"
    steps_per_epoch = 5
    batch_size = 1
    partition = None

    def __init__(self, *, nan_at=None, raise_at=None, signal_at=None, width=3):
        self.nan_at, self.raise_at, self.signal_at, self.width = nan_at, raise_at, signal_at, width

    def init(self):
        return {"step": jnp.int32(0), "w": jnp.zeros(self.width)}

    def batches(self, start_step):
        step = start_step
        while True:
            step += 1
            if step == self.raise_at:
                raise RuntimeError("killed")
            if step == self.signal_at:
                os.kill(os.getpid(), signal.SIGTERM)
            rng = np.random.default_rng(step)
            x = np.float32(1.0 + 0.1 * rng.standard_normal())
            yield {"x": np.float32(np.nan) if step == self.nan_at else x}

    def train_step(self, state, batch, learning_rate):
        loss = jnp.square(state["w"] - batch["x"]).sum()
        w = state["w"] - learning_rate * 2 * (state["w"] - batch["x"])
        return {"step": state["step"] + 1, "w": w}, {"loss": loss}

    def evaluate(self, state):
        return {self.selection: -float(np.square(np.asarray(state["w"]) - 1.0).sum())}


def config(**changes):
    values = {
        "max_steps": 20,
        "eval_every": 5,
        "checkpoint_every": 2,
        "log_every": 3,
        "learning_rate": 0.1,
        "min_learning_rate": 1e-3,
        "plateau_factor": 0.1,
        "plateau_patience": 2,
        "stop_patience": 3,
    }
    return LoopConfig(**(values | changes))


def test_a_first_state_is_committed_to_the_device_that_is_the_default(tmp_path):
    for number in (0, 3):
        checkpoints = Checkpoints(str(tmp_path / str(number)))
        with jax.default_device(jax.devices()[number]):
            state, _, restored = start_or_restore(Quadratic(), config(), checkpoints)
        checkpoints.close()
        assert not restored
        for leaf in state.values():
            assert leaf.devices() == {jax.devices()[number]} and leaf.committed


def test_a_run_cut_between_checkpoints_ends_in_the_same_state(tmp_path):
    whole = run_stage(Quadratic(), config(), open_workdir(str(tmp_path / "a"), {}))
    cut = open_workdir(str(tmp_path / "b"), {})
    with pytest.raises(RuntimeError, match="killed"):
        run_stage(Quadratic(raise_at=12), config(), cut)
    resumed = run_stage(Quadratic(), config(), cut)
    np.testing.assert_array_equal(whole.state["w"], resumed.state["w"])
    assert whole.best_step == resumed.best_step
    lines = [read_lines(str(tmp_path / d / "metrics.jsonl")) for d in "ab"]
    evaluations = [[x for x in part if "score/toy" in x] for part in lines]
    assert evaluations[0] == evaluations[1]
    steps = [x["step"] for x in lines[1] if "train/loss" in x]
    assert steps == sorted(set(steps)), "a repeated step is written once"


class Hanging:
    """Takes the place of a service that never answers."""

    def start_stage(self, stage, first_step):
        threading.Event().wait()


def test_a_service_that_hangs_keeps_no_stage_from_its_end(tmp_path, caplog):
    whole = run_stage(Quadratic(), config(), open_workdir(str(tmp_path / "a"), {}))
    workdir = open_workdir(str(tmp_path / "b"), {})
    writer = BackgroundWriter("S", Hanging, must_open=True, close_s=0.1, most_waiting=1)
    workdir.writers = [writer]
    logged = run_stage(Quadratic(), config(), workdir)
    writer.close("finished")
    np.testing.assert_array_equal(whole.state["w"], logged.state["w"])
    lines = [read_lines(str(tmp_path / d / "metrics.jsonl")) for d in "ab"]
    assert lines[0] == lines[1]
    assert "S misses values: it does not keep up; the training goes on" in caplog.text


def test_a_finished_stage_is_not_trained_again(tmp_path):
    workdir = open_workdir(str(tmp_path), {})
    first = run_stage(Quadratic(), config(), workdir)
    again = run_stage(Quadratic(raise_at=1), config(), workdir)
    np.testing.assert_array_equal(first.state["w"], again.state["w"])


def test_the_best_state_is_returned_and_the_stage_stops_early(tmp_path):
    class Worsening(Quadratic):
        def evaluate(self, state):
            return {self.selection: -float(state["step"])}

    result = run_stage(Worsening(), config(max_steps=100), open_workdir(str(tmp_path), {}))
    # Best at the first evaluation, step 5; three more without improvement end the stage.
    assert (result.best_step, result.last_step) == (5, 20)
    assert int(result.state["step"]) == 5
    assert result.best_value == -5.0


@pytest.mark.parametrize(
    "max_steps, values, improving",
    [(15, [0.1, 0.2, 0.3], True), (15, [0.1, 0.3, 0.2], False), (5, [0.1], False)],
)
def test_a_stage_that_ends_at_its_best_says_so(tmp_path, caplog, max_steps, values, improving):
    class Scripted(Quadratic):
        def evaluate(self, state):
            return {self.selection: values[int(state["step"]) // 5 - 1]}

    caplog.set_level("INFO")
    workdir = open_workdir(str(tmp_path / "w"), {})
    outcome = run_stage(Scripted(), config(max_steps=max_steps), workdir)
    assert outcome.still_improving == improving
    assert ("still improving at its last evaluation, after 15 updates" in caplog.text) == improving
    # Also where the finished stage is opened again.
    assert run_stage(Scripted(), config(max_steps=max_steps), workdir).still_improving == improving


def test_nan_stops_the_run_and_names_the_step(tmp_path):
    workdir = open_workdir(str(tmp_path), {})
    with pytest.raises(UserError, match="found nan at step 8 of stage toy"):
        run_stage(Quadratic(nan_at=8), config(), workdir)
    saved = Checkpoints(stage_directory(workdir, "toy"))
    assert max(saved.steps()) < 8
    saved.close()


def test_scores_that_are_nan_stop_the_run_and_name_the_step(tmp_path):
    class Broken(Quadratic):
        def evaluate(self, state):
            raise FloatingPointError("NaN scores in 1 of 2 examples")

    workdir = open_workdir(str(tmp_path), {})
    with pytest.raises(UserError, match=r"found NaN scores in 1 of 2 .* after step 5 of stage toy"):
        run_stage(Broken(), config(checkpoint_every=100), workdir)
    saved = Checkpoints(stage_directory(workdir, "toy"))
    assert not saved.steps()
    saved.close()


def test_sigterm_saves_and_the_same_run_continues(tmp_path):
    workdir = open_workdir(str(tmp_path / "b"), {})
    with pytest.raises(Preempted, match="saved step 7"):
        run_stage(Quadratic(signal_at=7), config(checkpoint_every=100), workdir)
    resumed = run_stage(Quadratic(), config(), workdir)
    whole = run_stage(Quadratic(), config(), open_workdir(str(tmp_path / "a"), {}))
    np.testing.assert_array_equal(whole.state["w"], resumed.state["w"])


def test_ctrl_c_saves_as_sigterm_does_and_says_how_to_go_on(tmp_path, capfd):
    class Interrupted(Quadratic):
        def batches(self, start):
            for step, batch in enumerate(super().batches(start), start):
                if step == 6:
                    os.kill(os.getpid(), signal.SIGINT)
                yield batch

    workdir = open_workdir(str(tmp_path / "b"), {})
    with pytest.raises(Preempted, match="Ctrl-C: saved step 7 of stage toy; the same") as stop:
        run_stage(Interrupted(), config(checkpoint_every=100), workdir)
    assert stop.value.code == 130
    assert capfd.readouterr().err.count("Ctrl-C: stops as soon as all is saved; a second") == 1
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    resumed = run_stage(Quadratic(), config(), workdir)
    whole = run_stage(Quadratic(), config(), open_workdir(str(tmp_path / "a"), {}))
    np.testing.assert_array_equal(whole.state["w"], resumed.state["w"])


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_sigterm_does_not_cut_short_what_the_first_has_set_going():
    tidied = []
    with watched(), pytest.raises(Preempted, match="SIGTERM in a test"), repeatable("a test"):
        try:
            terminate()
            time.sleep(5)
        finally:
            terminate()
            time.sleep(0.01)
            tidied.append(True)
    assert tidied


def test_sigterm_during_the_last_evaluation_is_heard(tmp_path):
    class Signalled(Quadratic):
        def evaluate(self, state):
            if int(state["step"]) == 20:
                terminate()
            return super().evaluate(state)

    workdir = open_workdir(str(tmp_path), {})
    with pytest.raises(Preempted, match="saved step 20 of stage toy"):
        run_stage(Signalled(), config(), workdir)
    finished = run_stage(Quadratic(raise_at=1), config(), workdir)
    assert finished.last_step == 20, "the stage is saved as finished"


def test_sigterm_between_stages_is_heard_before_the_next_thing_begins(tmp_path):
    workdir = open_workdir(str(tmp_path), {})
    before = signal.getsignal(signal.SIGTERM)
    with watched(), pytest.raises(Preempted, match="before stage toy: saved all until then"):
        stop_if_terminated("a test")
        run_stage(Quadratic(), config(), workdir)  # its own watch is within the outer one
        terminate()
        with pytest.raises(Preempted, match="before a test"):
            stop_if_terminated("a test")
        run_stage(Quadratic(), config(), workdir)
    assert signal.getsignal(signal.SIGTERM) == before
    stop_if_terminated("what no program watches")
    assert run_stage(Quadratic(), config(), workdir).last_step == 20, "no signal is left over"


def _cut_largest_file(folder):
    files = [p for p in folder.rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def test_a_cut_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, caplog):
    checkpoints = Checkpoints(str(tmp_path))
    for step in (1, 2):
        checkpoints.save(step, {"w": jnp.full(1000, float(step))}, {"step": step}, None)
    checkpoints.close()
    for part in ("state", "progress"):
        _cut_largest_file(tmp_path / "2" / part)
    reopened = Checkpoints(str(tmp_path))
    state, progress, step = reopened.restore({"w": jnp.zeros(1000)})
    assert (step, progress["step"], float(state["w"][0])) == (1, 1, 1.0)
    assert "checkpoint 2" in caplog.text and "the one before" in caplog.text
    # Whoever reads leaves it; whoever goes on, and may save at its step, does not.
    assert reopened.steps() == [1, 2]
    part = tmp_path / "2.orbax-checkpoint-tmp"
    part.mkdir()
    reopened.clear_after(step)
    assert reopened.steps() == [1] and not part.exists()
    reopened.save(2, {"w": jnp.full(1000, 5.0)}, {"step": 2}, None)
    reopened.wait()
    assert float(reopened.restore({"w": jnp.zeros(1000)})[0]["w"][0]) == 5.0
    reopened.close()


def test_a_continued_run_clears_what_a_kill_has_left(tmp_path):
    task = Quadratic(raise_at=13)
    workdir = open_workdir(str(tmp_path), {})
    with pytest.raises(RuntimeError, match="killed"):
        run_stage(task, config(), workdir)
    folder = pathlib.Path(stage_directory(workdir, task.name))
    (folder / "11.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    run_stage(Quadratic(), config(), workdir)
    assert not list(folder.glob("*tmp*"))


def test_no_readable_checkpoint_is_an_error(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, {"w": jnp.ones(1000)}, {"step": 1}, None)
    checkpoints.wait()
    _cut_largest_file(tmp_path / "1" / "state")
    with pytest.raises(UserError, match="found 1 that cannot be read"):
        checkpoints.restore({"w": jnp.zeros(1000)})
    checkpoints.close()


def test_the_last_two_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    for step in range(1, 7):
        checkpoints.save(step, {"w": jnp.ones(2)}, {"step": step}, 2)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5, 6]
    checkpoints.close()


def test_a_failed_save_keeps_the_last_good_checkpoint(tmp_path):
    # A limit on file sizes makes writes fail as a full disk does, without a disk to fill.
    code = f"""
import resource, signal
import jax.numpy as jnp, jax
from core.checkpoints import Checkpoints
from core.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = Checkpoints({str(tmp_path)!r})
state = {{"w": jax.random.normal(jax.random.key(0), (20000,))}}
checkpoints.save(1, state, {{"step": 1}}, None)
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, {resource.RLIM_INFINITY}))
try:
    checkpoints.save(2, state, {{"step": 2}}, None)
    checkpoints.wait()
    print("saved")
except UserError as error:
    print(str(error))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    line = done.stdout.strip()
    assert line.startswith("cannot save") and "step 1 is the last good one" in line, done.stderr
    reopened = Checkpoints(str(tmp_path))
    assert reopened.restore({"w": jnp.zeros(20000)})[2] == 1
    reopened.close()


def test_a_workdir_refuses_another_config(tmp_path):
    # Nobody holds it further, so its lock goes with it.
    open_workdir(str(tmp_path), {"model": {"width": 64}, "cache_dir": "a"})
    with pytest.raises(UserError, match=r"model\.width was 64 and is 32"):
        open_workdir(str(tmp_path), {"model": {"width": 32}, "cache_dir": "a"})
    open_workdir(str(tmp_path), {"model": {"width": 64}, "cache_dir": "elsewhere"})


def test_a_row_written_again_keeps_what_only_the_old_one_tells(tmp_path):
    workdir = open_workdir(str(tmp_path / "w"), {})
    row = made_results.row(stage="rl_0", step=4, seconds=1.0)
    workdir.write_result_row(row | {"subset": "ab"})
    workdir.write_result_row(row | {"seconds": 2.0})
    assert workdir.read_results()["rows"] == [row | {"seconds": 2.0, "subset": "ab"}]
    workdir.write_result_row(row | {"step": 5})
    assert workdir.read_results()["rows"] == [row | {"step": 5}]


def test_a_workdir_serves_one_process(tmp_path):
    held = open_workdir(str(tmp_path), {})
    with pytest.raises(UserError, match="another running process"):
        open_workdir(str(tmp_path), {})
    assert held.path == str(tmp_path)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="found other files"):
        open_workdir(str(tmp_path), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.tex"]


def test_checkpoints_restore_on_another_number_of_devices(tmp_path):
    mesh = jax.make_mesh((8,), ("data",))
    sharded = jax.device_put(
        jnp.arange(64.0), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    )
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, {"w": sharded}, {"step": 1}, None)
    checkpoints.wait()
    state, _, _ = checkpoints.restore({"w": jnp.zeros(64)})
    np.testing.assert_array_equal(state["w"], np.arange(64.0))
    checkpoints.close()


def test_arrays_without_elements_come_back(tmp_path):
    mesh = jax.make_mesh((8,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    empty = jax.device_put(jnp.zeros((0, 4)), sharding)
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, {"w": jnp.ones(3), "steps": empty, "levels": jnp.zeros((0, 2), int)}, {}, 1)
    checkpoints.wait()
    like = {"w": jnp.zeros(3), "steps": empty, "levels": jnp.zeros((0, 2), int)}
    state, _, _ = checkpoints.restore(like)
    assert jax.tree.map(jnp.shape, state) == {"w": (3,), "steps": (0, 4), "levels": (0, 2)}
    assert state["steps"].sharding == sharding and state["levels"].dtype == jnp.int32
    checkpoints.close()
