"""The benchmark: operations counted by hand, a table and JSON, mistakes in one line."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import run
from benchmarks.run import benchmark, print_table
from benchmarks.timing import matmul_operations, measure
from configs import lcr_ser, sasrec
from core.errors import UserError


def test_operations_of_a_product_its_gradient_and_a_loop():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    assert matmul_operations(jnp.matmul, a, b) == 2 * 3 * 5 * 7

    def loss(a, b):
        return (a @ b).sum()

    # The backward pass has one product for each of the two arguments.
    both = matmul_operations(jax.jit(jax.value_and_grad(loss, argnums=(0, 1))), a, b)
    assert both == 3 * (2 * 3 * 5 * 7)

    def loop(x):
        return jax.lax.scan(lambda x, _: (x @ jnp.ones((3, 3)), None), x, length=4)[0]

    assert matmul_operations(loop, jnp.ones((3, 3))) == 4 * 2 * 27

    def longest_branch(x):
        return jax.lax.cond(x[0, 0] > 0, loop, lambda x: x @ x, x)

    assert matmul_operations(longest_branch, jnp.ones((3, 3))) == 4 * 2 * 27
    batched = matmul_operations(
        lambda x, y: jnp.einsum("bij,bjk->bik", x, y), *2 * [jnp.ones((6, 2, 2))]
    )
    assert batched == 6 * 2 * 8


def test_measure_carries_a_donated_state_and_counts_its_buffers_once():
    calls = []

    def step(state, x):
        jax.debug.callback(lambda value: calls.append(int(value)), state["n"])
        return {"n": state["n"] + 1, "big": state["big"] + x}, state["n"]

    state = {"n": jnp.int32(0), "big": jnp.zeros(250_000)}
    timing = measure(step, state, jnp.float32(1.0), repeats=3, carry=True)
    assert calls == [0, 1, 2, 3, 4], "two calls to warm up, three timed, each from the one before"
    assert 1_000_000 <= timing.peak_bytes < 1_500_000
    assert timing.seconds > 0 and timing.compile_seconds > 0


@pytest.mark.slow
def test_the_suites_of_gensar():
    report = benchmark(["identifiers", "gensar"], "tiny", "float32", lcr_ser.method())
    units = [(row["suite"], row["unit"]) for row in report["rows"]]
    assert units == [
        ("identifiers", "items/s"),
        ("identifiers", "of matmul rate"),
        ("gensar", "examples/s"),
    ]
    # Both encoders and decoders, thrice for the gradient (the inputs need none), dominate.
    layers = [192 * 512, 512 * 256, 256 * 128, 128 * 64, 64 * 32]
    dense = 2 * 8 * 2 * (2 * 3 * sum(layers) - layers[0])
    assert dense < report["rows"][0]["details"]["operations"] < 1.2 * dense


def test_a_suite_gives_rows_and_a_table(capsys):
    report = benchmark(["score"], "tiny", "bfloat16", lcr_ser.method())
    first = report["rows"][0]
    assert (first["suite"], first["unit"]) == ("score", "users/s")
    seconds = first["details"]["seconds"]
    assert first["value"] == pytest.approx(report["shapes"]["batch"] / seconds)
    rate = report["matmul_gflops_each"][0] * 1e9
    assert first["share"] == pytest.approx(first["details"]["operations"] / seconds / rate)
    assert first["met"] is None, "marks hold for the full shapes only"
    json.dumps(report)
    print_table(report)
    assert "scoring 5 candidates" in capsys.readouterr().out


def test_an_unknown_suite_is_named():
    with pytest.raises(UserError, match="found 'speed'"):
        benchmark(["speed"], "tiny", "float32", None)
    with pytest.raises(UserError, match=r"expected --suite of all or train, .*, found ''; pass"):
        benchmark([], "tiny", "float32", None)
    with pytest.raises(UserError, match="a config of lcr_ser, found one of 'sasrec'"):
        benchmark(["score"], "tiny", "float32", sasrec.get_config())


def test_all_suites_may_stand_beside_some():
    assert run.chosen_suites(["train", "all"]) == list(run.SUITES)
    assert run.chosen_suites(["score", "train", "score"]) == ["score", "train"]


def test_a_file_that_could_not_be_written_is_refused_before_anything_is_timed(tmp_path):
    with pytest.raises(UserError, match="--json=FILE in a folder that exists"):
        run.run(["all"], "full", "float32", None, str(tmp_path / "no" / "figures.json"))


@pytest.mark.slow
def test_unisar_is_timed_with_and_without_its_search_task():
    report = benchmark(["unisar"], "tiny", "float32", None)
    assert [row["name"] for row in report["rows"]] == [
        "UniSAR, recommendation",
        "UniSAR, both tasks",
    ]
    assert all(row["value"] > 0 for row in report["rows"])
