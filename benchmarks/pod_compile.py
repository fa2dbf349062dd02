"""Compiles a config's steps for a TPU pod on a machine without one, and says whether they fit."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import logging
import math
import os
import re
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import config_dict
from rich.console import Console
from rich.table import Table

from benchmarks.random_tasks import RandomTasks, TableSizes
from core.errors import UserError
from core.loop import compile_step
from core.partitioning import Partition, make_mesh
from input_pipelines.batches import Batch, BatchShape
from lcrsr.embedding import PARTITION_RULES
from lcrsr.evaluation import Evaluator
from lcrsr.ranker_experiment import batch_for

_LOG = logging.getLogger(__name__)

# Memory of one chip, in bytes, from Cloud TPU's documentation of each generation.
HBM = {"v4": 32 * 2**30, "v5e": 16 * 2**30, "v5p": 95 * 2**30, "v6e": 32 * 2**30}
# Published counts (users, items) of each data set; words are distinct ones of its queries.
SIZES = {
    "qilin": TableSizes(users=15_482, items=1_983_938, words=8_000),
    "amazon_beauty": TableSizes(users=22_363, items=12_101, words=500),
    "kuaisar": TableSizes(users=25_877, items=6_890_707, words=394_911),
}
_EVALUATED = 100  # candidates of an evaluation step
_COLLECTIVES = ("all-to-all", "all-reduce", "all-gather", "reduce-scatter", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Describes one step compiled for a chip of the topology; sizes in bytes, a chip.

    Attributes:
      name: 'train', 'rl' or 'evaluate'.
      arguments, outputs, temporaries: as planned; outputs count donated arguments too.
      peak: arguments, temporaries, code, and outputs that reuse no argument.
      flops, bytes_accessed: of one step; loops count once, those over rounds of ids too.
      collectives: how many of each there are in the program.
      whole_shards: instructions that copy or make an array of the size of the largest table's
        shard in HBM, whatever its shape. Both None where the program's text cannot be read.
    """

    name: str
    arguments: int
    outputs: int
    temporaries: int
    peak: int
    flops: float
    bytes_accessed: float
    collectives: dict[str, int] | None
    whole_shards: int | None


def topology_devices(name: str) -> Any:
    """Returns the devices of a topology such as 'v5e:16x16'.

    Raises:
      UserError: libtpu is not installed, or it knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "expected libtpu, which compiles for TPUs without one, found none; pip install libtpu"
        )
    if name.split(":")[0] not in HBM:
        raise UserError(
            f"expected a topology of {', '.join(HBM)}, such as v5e:16x16, found {name!r}"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # No TPU is touched: two compilations may run at once, or beside a training that holds the chips.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        # A v4 chip is one device of two cores where it runs, and two devices by default here.
        more = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices
    except Exception as error:  # the plugin raises several types, with many lines
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"expected a TPU topology such as v5e:4x4, v5e:16x16, v4:2x2x4 or v5p:4x4x4, found "
            f"{name!r} ({reason})"
        ) from None


def partition_for(config: config_dict.ConfigDict, devices: Any) -> Partition:
    mesh = config.mesh
    model = -1 if (mesh.data, mesh.model) == (1, 1) else mesh.model
    return Partition(
        make_mesh(mesh.data, model, devices), PARTITION_RULES, table_width=config.model.width
    )


def sizes_of(config: config_dict.ConfigDict, **counts: int | None) -> TableSizes:
    """Returns the published sizes of the config's data set, or the given ones.

    Raises:
      UserError: a size is neither known nor given.
    """
    known = SIZES.get(config.dataset)
    named = {name: count for name, count in counts.items() if count}
    missing = sorted(counts.keys() - named.keys())
    if known is None and missing:
        raise UserError(
            f"expected --{' and --'.join(missing)} for the data set {config.dataset!r}, found "
            f"none; sizes are known of {', '.join(SIZES)}"
        )
    return dataclasses.replace(known, **named) if known else TableSizes(**named)


def compile_steps(
    config: config_dict.ConfigDict,
    partition: Partition,
    sizes: TableSizes,
    batch_size: int | None = None,
) -> list[Compiled]:
    """Compiles the steps of both stages and of evaluation for the partition's mesh.

    The compiler itself refuses what is far too large; what it lets pass may still not fit.

    Args:
      batch_size: of every step; None takes the config's own.

    Raises:
      UserError: a batch does not divide over the chips, or a step does not compile for lack of
        memory.
    """
    data = config.data
    shape = BatchShape(
        rec_length=data.rec_length,
        search_length=data.search_length,
        words=data.words,
        clicks=data.clicks,
        candidates=_EVALUATED,
    )
    tasks = RandomTasks(config, shape, sizes, partition=partition)
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=partition.replicated)

    def on_mesh(batch: Batch, name: str) -> Any:
        partition.check_batch_size(len(batch["rec_items"]), f"the batch size of {name}")
        return {
            field: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=partition.batch_sharding)
            for field, v in batch.items()
        }

    # Where the size of the log decides, the largest that it may choose.
    size = batch_size or config.train.batch_size or batch_for(sys.maxsize)
    targets = config.train.targets_per_window
    train = tasks.train(size, targets)
    state = partition.abstract(jax.eval_shape(train.random_state))
    batch = on_mesh(next(train.batches(0)), "train")
    shard = state["tables"]["item"]
    shard_shape = shard.sharding.shard_shape(shard.shape)
    steps = [compiled_step("train", compile_step(train, state), shard_shape, state, batch, rate)]
    if config.rl.enabled:
        size = batch_size or config.rl.batch_size
        rl = tasks.reinforce(size, state, 1 + config.rl.negatives, targets)
        rl_state = partition.abstract(jax.eval_shape(rl.state_from, state))
        rl_batch = on_mesh(next(rl.batches(0)), "rl")
        step = compile_step(rl, rl_state)
        steps.append(compiled_step("rl", step, shard_shape, rl_state, rl_batch, rate))
    size = batch_size or config.eval.batch_size
    evaluator = Evaluator(tasks.ranker, ("ndcg@5",), sizes.items, partition)
    batch = on_mesh(tasks.batch(size, _EVALUATED), "eval")
    arguments = (state["params"], state["tables"], batch)
    steps.append(compiled_step("evaluate", evaluator.rank_sampled, shard_shape, *arguments))
    return steps


def compiled_step(name: str, step: Any, shard_shape: tuple[int, ...], *arguments: Any) -> Compiled:
    """Compiles a step for the shapes of its arguments, and tells what the compiler says of it."""
    start = time.monotonic()
    lowered = step.lower(*arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"expected the {name} step to fit, found: {str(error).splitlines()[0][:250]}; take "
            "more chips, a smaller --batch or fewer --items"
        ) from None
    memory: Any = compiled.memory_analysis()
    took, temporary = time.monotonic() - start, memory.temp_size_in_bytes / 1e9
    _LOG.info("compiled the %s step in %.0f s: %.3f GB of temporaries", name, took, temporary)
    cost: Any = compiled.cost_analysis()
    text = program_of(compiled)
    matches = re.finditer(rf" ({'|'.join(_COLLECTIVES)})(?:-start)?\(", text or "")
    counts = collections.Counter(match[1] for match in matches)
    return Compiled(
        name=name,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        flops=cost.get("flops", 0.0),
        bytes_accessed=cost.get("bytes accessed", 0.0),
        collectives=None if text is None else dict(sorted(counts.items())),
        whole_shards=None if text is None else copies_of(math.prod(shard_shape), text),
    )


def program_of(compiled: Any) -> str | None:
    """Returns the compiled program as text; None where this jaxlib cannot read a newer libtpu's."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        _LOG.warning("copies and collectives are not counted: %s", str(error).splitlines()[0])
        return None


# What makes an array in a compiled program: its shape and layout, and of a copy in the background
# the layout that it comes from.
_MADE = re.compile(
    r"= f32\[([\d,]+)\](\S*) (?:copy|broadcast|pad|reshape|transpose)\("
    r"|= \(f32\[([\d,]+)\](\S*) f32\[[\d,]+\](\S*) \S+ copy-start\("
)


def copies_of(elements: int, program: str) -> int:
    """Counts the instructions of a compiled program that copy or make float32 arrays of this size
    in HBM.

    Moves to and from the chip's scratch memory, space 1 of a layout, take no room there.
    """
    return sum(
        math.prod(map(int, (match[1] or match[3]).split(","))) == elements
        and not any("S(1)" in (layout or "") for layout in match.group(2, 4, 5))
        for match in _MADE.finditer(program)
    )


def print_table(steps: list[Compiled], title: str, hbm: int) -> None:
    table = Table(title=title)
    names = ("step", "arguments", "outputs", "temporaries", "peak", "of HBM", "GFLOP", "GB read")
    for name in (*names, "copies of a shard", "collectives"):
        table.add_column(name, justify="left" if name in ("step", "collectives") else "right")
    for step in steps:
        sizes = (step.arguments, step.outputs, step.temporaries, step.peak)
        table.add_row(
            step.name,
            *(f"{size / 1e9:.3f} GB" for size in sizes),
            f"{100 * step.peak / hbm:.1f}%",
            f"{step.flops / 1e9:.2f}",
            f"{step.bytes_accessed / 1e9:.2f}",
            "?" if step.whole_shards is None else str(step.whole_shards),
            "?"
            if step.collectives is None
            else ", ".join(f"{count} {name}" for name, count in step.collectives.items()),
        )
    Console(width=None if Console().is_terminal else 150, color_system=None).print(table)
