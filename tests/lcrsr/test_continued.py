"""A task that goes on from another's state: the next batches, and no program compiled again."""

import contextlib

import jax
import numpy as np
from test_meshes import batch_of_8, train_task

from core.loop import LoopConfig, run_stage
from core.workdir import open_workdir

LOOP = LoopConfig(
    max_steps=2,
    eval_every=1,
    checkpoint_every=1,
    log_every=1,
    learning_rate=1e-2,
    min_learning_rate=1e-3,
    plateau_factor=0.1,
    plateau_patience=9,
    stop_patience=9,
)


@contextlib.contextmanager
def compiled_programs():
    """Collects the names of the programs that XLA compiles in the body."""
    names = []

    def listen(event, duration, **about):
        if event.endswith("backend_compile_duration"):
            names.append(about["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_the_control_goes_on_by_the_program_of_pre_training(tmp_path):
    asked = []

    def batch(step):
        asked.append(step)
        return batch_of_8(step)

    def evaluate(params, tables):
        return {"updates": float(len(asked))}

    batches = {"batches": lambda start: map(batch, range(start, 100))}
    task = train_task(None, evaluate=evaluate, selection="updates", **batches)
    workdir = open_workdir(str(tmp_path), {})
    with compiled_programs() as names:
        first = run_stage(task, LOOP, workdir)
        steps = [name for name in names if "_update" in name]
        assert len(steps) == 1, names
        second = run_stage(task.continued("control", first.state), LOOP, workdir)
    assert [name for name in names if "_update" in name] == steps, names
    assert asked[:2] == [0, 1] and asked[-2:] == [2, 3]
    assert int(second.state["step"]) == 4
    moved = np.abs(second.state["params"]["kernel"] - first.state["params"]["kernel"])
    assert moved.max() > 1e-3
