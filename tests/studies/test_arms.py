"""Arms side by side are the runs they would be alone, however they are grouped, stopped or cut."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.checkpoints import Checkpoints
from core.errors import Preempted
from core.loop import LoopConfig, run_stage
from core.workdir import Workdir
from studies.ablation.arm_programs import Programs
from studies.ablation.arms import Arm, arms_that_fit, device_of, run_arms

CONFIG = LoopConfig(
    max_steps=12,
    eval_every=3,
    checkpoint_every=2,
    log_every=2,
    learning_rate=0.1,
    min_learning_rate=1e-6,
    plateau_factor=0.5,
    plateau_patience=1,
    stop_patience=10**6,
)


class Line:
    """y = w x with its own seed's start, a shrinkage that is an arm's number, and dropout."""

    name, selection, steps_per_epoch, batch_size, partition = "line", "score", 4, 8, None

    def __init__(self, seed=0, shrinkage=0.0, scores=None, ends_at=None):
        self.numbers = {"seed": seed, "shrinkage": shrinkage}
        self.scores, self.ends_at = scores, ends_at

    @property
    def stream(self):
        return self.numbers["seed"]

    def init(self):
        key = jax.random.key(self.numbers["seed"])
        return {"step": jnp.int32(0), "w": jax.random.normal(key, (3,)), "tables": jnp.ones((4, 2))}

    def batches(self, start):
        for step in range(start, 10**6):
            rng = np.random.default_rng([self.numbers["seed"], step])
            x = rng.standard_normal((8, 3)).astype(np.float32)
            yield {"x": x, "y": x.sum(1)}

    def train_step(self, state, batch, rate, numbers=None):
        numbers = self.numbers if numbers is None else numbers
        key = jax.random.key(numbers["seed"])
        kept = jax.random.bernoulli(jax.random.fold_in(key, state["step"]), 0.8)

        def loss_of(w):
            error = jnp.mean((batch["x"] @ w * kept - batch["y"]) ** 2)
            return error + numbers["shrinkage"] * jnp.sum(w**2)

        loss, gradient = jax.value_and_grad(loss_of)(state["w"])
        return {
            "step": state["step"] + 1,
            "w": state["w"] - rate * gradient,
            "tables": state["tables"] + 1,
        }, {"loss": loss}

    def evaluate(self, state):
        if self.ends_at == int(state["step"]):
            raise KeyboardInterrupt
        if self.scores is not None:
            return {"score": self.scores[int(state["step"]) // CONFIG.eval_every - 1]}
        return {"score": -float(jnp.abs(state["w"] - 1).sum())}


TASKS = [Line(shrinkage=s) for s in (0.0, 0.1, 0.2, 0.3)]
SEEDED = [Line(seed=seed, shrinkage=s) for seed in (0, 1) for s in (0.0, 0.2)]


def arms_of(tasks, folder, rates=None):
    return [
        Arm(
            f"arm {i}",
            task,
            dataclasses.replace(CONFIG, learning_rate=rates[i] if rates else 0.1),
            Workdir(str(folder / str(i))),
        )
        for i, task in enumerate(tasks)
    ]


def lines(arm):
    with open(arm.workdir.file("metrics.jsonl"), encoding="utf-8") as file:
        parsed = [json.loads(line) for line in file]
    assert {line.pop("stage") for line in parsed} == {"line"}
    return parsed


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """`run_stage` of a task at a rate in a folder of its own, and its lines; each once."""
    done = {}

    def run(task, config):
        key = (*task.numbers.values(), config.learning_rate)
        if key not in done:
            workdir = Workdir(str(tmp_path_factory.mktemp("alone")))
            result = run_stage(task, config, workdir)
            done[key] = result, lines(Arm("alone", task, config, workdir))
        return done[key]

    return run


def assert_equal_to_alone(arms, alone, with_lines=True):
    """Every arm's metrics and best state against its run alone."""
    for arm in arms:
        expected, theirs = alone(arm.task, arm.config)
        found, ours = run_stage(arm.task, arm.config, arm.workdir), lines(arm)
        assert (found.best_step, found.last_step) == (expected.best_step, expected.last_step)
        assert found.learning_rate == expected.learning_rate
        for name, leaf in expected.state.items():
            np.testing.assert_allclose(found.state[name], leaf, rtol=1e-5, err_msg=name)
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        # What a stop cuts of a mean over steps is not logged again.
        for one, other in zip(ours, theirs, strict=True) if with_lines else ():
            assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize(
    ("tasks", "together", "devices"),
    [(TASKS, 1, 1), (TASKS, 3, 1), (SEEDED, None, 8)],
    ids=["one by one", "two stacks", "own seeds, a device each"],
)
def test_every_arm_is_the_run_it_is_alone(tasks, together, devices, alone, tmp_path):
    arms = arms_of(tasks, tmp_path, rates=[0.1, 0.02, 0.05, 0.1])
    chosen = jax.devices()[:devices]
    assert run_arms(arms, together=together, devices=chosen) == {}
    assert_equal_to_alone(arms, alone)


def test_the_arm_axis_lies_on_the_mesh(tmp_path):
    held = []

    class Watched(Line):
        def evaluate(self, state):
            held.append(next(iter(state["w"].devices())).id)
            return super().evaluate(state)

    tasks = [Watched(shrinkage=s) for s in np.linspace(0, 1, 8).tolist()]
    run_arms(arms_of(tasks, tmp_path), devices=jax.devices())
    assert held[:8] == [device.id for device in jax.devices()]


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_an_arm_that_is_not_finite_leaves_the_others_alone(devices, alone, tmp_path):
    arms = arms_of(TASKS, tmp_path, rates=[0.1, 1e30, 0.1, 0.1])
    failures = run_arms(arms, together=4, devices=jax.devices()[:devices])
    assert list(failures) == ["arm 1"] and "at step" in str(failures["arm 1"])
    checkpoints = Checkpoints(arms[1].workdir.file("checkpoints", "line", ""))
    assert checkpoints.steps() == []
    checkpoints.close()
    assert_equal_to_alone([arms[0], *arms[2:]], alone)


def test_half_of_a_stack_that_is_not_finite_leaves_a_smaller_one(alone, tmp_path):
    arms = arms_of(TASKS, tmp_path, rates=[0.1, 1e30, 1e30, 0.1])
    assert list(run_arms(arms, devices=jax.devices())) == ["arm 1", "arm 2"]
    assert_equal_to_alone([arms[0], arms[3]], alone)


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_every_arm_stops_early_by_itself(devices, tmp_path):
    falling, rising = [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]
    tasks = [Line(scores=s) for s in (falling, rising, falling, [0.1, 0.5, 0.2, 0.3])]
    arms = [
        dataclasses.replace(arm, config=dataclasses.replace(arm.config, stop_patience=1))
        for arm in arms_of(tasks, tmp_path)
    ]
    run_arms(arms, together=4, devices=jax.devices()[:devices])
    results = [run_stage(arm.task, arm.config, arm.workdir) for arm in arms]
    assert [r.last_step for r in results] == [6, 12, 6, 9]
    assert [r.best_step for r in results] == [3, 12, 3, 6]


@pytest.mark.parametrize(("together", "devices"), [(1, 1), (4, 1), (None, 3), (None, 8)])
def test_killed_with_arms_at_different_steps_it_ends_the_same(together, devices, alone, tmp_path):
    # The third arm's evaluation at step 6 is the kill: two arms have saved it, two have not.
    tasks = [Line(shrinkage=s, ends_at=6 if s == 0.2 else None) for s in (0.0, 0.1, 0.2, 0.3)]
    with pytest.raises(KeyboardInterrupt):
        run_arms(arms_of(tasks, tmp_path), together=together, devices=jax.devices()[:devices])
    arms = arms_of(TASKS, tmp_path)
    run_arms(arms, together=together, devices=jax.devices()[:devices])
    assert_equal_to_alone(arms, alone)


def test_sigterm_saves_every_arm(alone, tmp_path):
    class Signalled(Line):
        def batches(self, start):
            for step, batch in enumerate(super().batches(start), start):
                if step == 4:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    signalled = [Signalled(shrinkage=task.numbers["shrinkage"]) for task in TASKS]
    with pytest.raises(Preempted, match="saved step 5 of stage line of 4 arms"):
        run_arms(arms_of(signalled, tmp_path), together=4, devices=jax.devices()[:1])
    arms = arms_of(TASKS, tmp_path)
    for arm in arms:
        checkpoints = Checkpoints(arm.workdir.file("checkpoints", "line", ""))
        assert checkpoints.steps()[-1] == 5
        checkpoints.close()
    run_arms(arms, together=4, devices=jax.devices()[:1])
    assert_equal_to_alone(arms, alone, with_lines=False)


def test_sigterm_during_the_last_evaluations_is_heard(tmp_path):
    class Signalled(Line):
        def evaluate(self, state):
            if int(state["step"]) == CONFIG.max_steps:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().evaluate(state)

    arms = arms_of([Signalled(), Line(shrinkage=0.1)], tmp_path)
    with pytest.raises(Preempted, match="saved step 12 of stage line of 2 arms"):
        run_arms(arms, together=2, devices=jax.devices()[:1])
    assert run_arms(arms, together=2, devices=jax.devices()[:1]) == {}
    assert run_stage(arms[0].task, arms[0].config, arms[0].workdir).last_step == 12


def test_arms_of_other_lengths_are_refused(tmp_path):
    arms = arms_of(TASKS[:2], tmp_path)
    longer = dataclasses.replace(arms[1].config, max_steps=13)
    with pytest.raises(ValueError, match="found arm 1 another"):
        run_arms([arms[0], dataclasses.replace(arms[1], config=longer)])


def test_how_many_arms_fit():
    # A state is 3 + 8 floats; three copies are 132 bytes, and four fifths of the memory are used.
    assert arms_that_fit(TASKS[0], 1000) == 6
    assert arms_that_fit(TASKS[0], 10) == 1
    assert arms_that_fit(TASKS[0], 1000, devices=4) == 24
    assert arms_that_fit(TASKS[0], 10, devices=4) == 4


def test_no_device_has_more_arms_than_its_share():
    programs = Programs(jax.devices())
    stacks = {size: [len(s) for s in programs.spread([0] * size)] for size in (3, 7, 8, 11, 16)}
    assert stacks == {3: [3], 7: [7], 8: [8], 11: [8, 3], 16: [16]}
    places = [device_of(place, 11, jax.devices()).id for place in range(11)]
    assert sorted(set(places)) == list(range(8)) and max(map(places.count, places)) == 2


def test_an_arm_is_made_where_it_is_trained(tmp_path):
    made = []

    class Watched(Line):
        def init(self):
            state = super().init()
            if not isinstance(state["w"], jax.core.Tracer):
                made.append(next(iter(state["w"].devices())).id)
            return state

    tasks = [Watched(shrinkage=s) for s in (0.0, 0.1, 0.2)]
    run_arms(arms_of(tasks, tmp_path), devices=jax.devices()[:3])
    assert made[:3] == [0, 1, 2]
