"""Makes what is distilled: what a teacher's checkpoint, a file or templates say of training
searches.

All of it is kept as subsets of a run, so that one that continues reads what it began with.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from jax.sharding import Mesh
from ml_collections import config_dict

from core.errors import UserError
from core.termination import stop_if_terminated
from crs_jax import decoder_checkpoints, teacher
from crs_jax.examples import CRSExamples
from crs_jax.subsets import Case, Subsets
from crs_jax.teacher import Teacher

_LOG = logging.getLogger(__name__)
# Batches of a part, which a kill loses at most.
_BATCHES = 4


def check(config: config_dict.ConfigDict) -> None:
    """Validates the inputs of distillation up front, so that no alignment is trained in vain.

    Raises:
      UserError: no folder of a Qwen3 checkpoint, or tensors of another size than its config.json
        tells.
    """
    folder = config.distill.teacher
    sizes = teacher.read_config(folder)
    teacher.read_vocabulary(folder, sizes)
    decoder_checkpoints.check(folder, sizes)


def check_data(config: config_dict.ConfigDict, examples: CRSExamples) -> None:
    """Finds before alignment what distillation after it could not use.

    Raises:
      UserError: what the teacher is to be asked does not fit into a prompt; or, without a teacher,
        as `CRSExamples.distillation`.
    """
    folder, limit = config.distill.teacher, config.prompts.max_prompt
    if not folder:
        examples.distillation()
        return
    words = teacher.read_vocabulary(folder, teacher.read_config(folder))
    for row in examples.distilled().tolist():
        teacher.prompt(words, *examples.in_words(row), limit=limit)


def load_teacher(config: config_dict.ConfigDict, mesh: Mesh) -> Teacher:
    """Loads the checkpoint of `config.distill.teacher`. Raises UserError if there is none."""
    return Teacher(
        config.distill.teacher,
        limit=config.prompts.max_prompt,
        max_reasoning=config.prompts.max_reasoning,
        batch_size=config.eval.batch_size,
        dtype=config.model.dtype,
        mesh=mesh,
        seed=config.seed,
    )


def distilled(
    config: config_dict.ConfigDict,
    examples: CRSExamples,
    subsets: Subsets,
    stage: str,
    mesh: Mesh,
    load: Callable[[config_dict.ConfigDict, Mesh], Teacher] = load_teacher,
) -> list[Case]:
    """Returns the subset that `stage` distils: what a teacher, a file or templates say of searches.

    A teacher says it in parts, `teacher_0` and so on, each a subset of its own that is not made
    again after a kill. What has no </think> or no words, names the target or has an id is dropped.

    Args:
      load: loads the teacher, once and only where a part is still to be said.

    Raises:
      UserError: no checkpoint at `config.distill.teacher`, or nothing that it says can be used;
        without a teacher, as `CRSExamples.distillation`.
    """
    if not config.distill.teacher:
        return subsets.get(
            stage, lambda: [Case(row, tokens, 0) for row, tokens in examples.distillation()]
        )
    settings, size = config.prompts, config.eval.batch_size

    @functools.cache
    def loaded() -> Teacher:
        return load(config, mesh)

    def part(number: int, rows: list[int]) -> list[Case]:
        stop_if_terminated(f"part {number} of what the teacher says")
        words = loaded().vocabulary
        told = [examples.in_words(row) for row in rows]
        asked = [teacher.prompt(words, *one, limit=settings.max_prompt) for one in told]
        said = loaded()(asked, number)
        reasoning = [(row, text) for row, text in zip(rows, said, strict=True) if text]
        return [Case(row, tokens, 0) for row, tokens in examples.usable(reasoning)]

    def every() -> list[Case]:
        rows = examples.distilled().tolist()
        cases: list[Case] = []
        for number, start in enumerate(range(0, len(rows), _BATCHES * size)):
            chosen = rows[start : start + _BATCHES * size]
            cases += subsets.get(f"teacher_{number}", functools.partial(part, number, chosen))
            _LOG.info(
                "teacher: %d of %d asked, %d kept", start + len(chosen), len(rows), len(cases)
            )
        if not cases:
            raise UserError(
                f"expected reasoning that ends in </think> within {settings.max_reasoning} tokens "
                f"and tells neither target nor id, found none of {len(rows)} from "
                f"{config.distill.teacher}; raise config.prompts.max_reasoning or pass another"
            )
        return cases

    return subsets.get(stage, every)
