"""Keeps the training subsets of Eq. 2 on disk, whole or not at all, each with its hash."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from core import checksums, distributed
from core.errors import UserError
from core.files import write_atomically
from core.termination import stop_if_terminated
from core.workdir import is_writer
from crs_jax.inference import Answers

_AGAIN = "remove it and the file of the same name beside it, and run again"


class Case(NamedTuple):
    """Holds one training example and what the model made of it.

    Attributes:
      example: its place among the training examples.
      reasoning: token ids without the end; what was said before the answer.
      answer: the item ranked first.
    """

    example: int
    reasoning: list[int]
    answer: int


def incorrect(
    answers: Answers, targets: np.ndarray, examples: np.ndarray, end_think: int
) -> list[Case]:
    """Returns Incorrect(D, M) of Eq. 2: the first answer is not the target.

    Args:
      answers: to the prompts of `examples` int [E], places among the training examples.
      targets: int [E], items.
      end_think: the token that ends reasoning, which is not kept.
    """
    wrong = np.flatnonzero(answers.items[:, 0] != targets)
    return _cases(answers, examples, wrong, end_think)


def every(
    answers: Answers, targets: np.ndarray, examples: np.ndarray, end_think: int
) -> list[Case]:
    """Returns a case of each answer, right or wrong; the arguments are those of `incorrect`."""
    return _cases(answers, examples, np.arange(len(targets)), end_think)


# What reinforcement may train on, by the names of `evolve.rl_cases`.
TO_REINFORCE = {"incorrect": incorrect, "all": every}


def sampled(cases: list[Case], most: int, seed: int | np.random.SeedSequence) -> list[Case]:
    """Returns Sample(...) of Eq. 2: `most` of the cases in order, chosen by `seed`; 0 for all."""
    if not 0 < most < len(cases):
        return cases
    chosen = np.random.default_rng(seed).choice(len(cases), most, replace=False)
    return [cases[place] for place in np.sort(chosen).tolist()]


def correct(
    answers: Answers, targets: np.ndarray, examples: np.ndarray, end_think: int
) -> list[Case]:
    """Returns Correct(D, M) of Eq. 2: the first answer is the target, and the reasoning has an
    end.
    """
    last = np.maximum(answers.lengths - 1, 0)[:, None]
    ended = np.take_along_axis(answers.reasoning, last, 1)[:, 0] == end_think
    right = np.flatnonzero((answers.items[:, 0] == targets) & ended & (answers.lengths > 0))
    return _cases(answers, examples, right, end_think)


def _cases(answers: Answers, examples: np.ndarray, rows: np.ndarray, end_think: int) -> list[Case]:
    cases = []
    for row in rows.tolist():
        said = answers.reasoning[row, : answers.lengths[row]].tolist()
        if said and said[-1] == end_think:
            said = said[:-1]
        cases.append(Case(int(examples[row]), said, int(answers.items[row, 0])))
    return cases


class Subsets:
    """Saves and reads the subsets of a folder by their names.

    Args:
      folder: made on the first save.
      decode: the text of reasoning, written beside the tokens for whoever reads the file.
    """

    def __init__(self, folder: str, decode: Callable[[Sequence[int]], str]):
        self._folder, self._decode = folder, decode

    def get(self, name: str, make: Callable[[], list[Case]]) -> list[Case]:
        """Returns the subset of that name, which is made and saved on first use.

        Of several processes, which share the folder, all make it and the first saves it.

        Raises:
          UserError: a saved file that is not what was saved.
        """
        if not distributed.of_first(os.path.exists(self._path(name, "json"))):
            cases = make()
            with distributed.first_alone():
                if is_writer():
                    self._save(name, cases)
        return self._load(name)

    def hashes(self) -> dict[str, dict[str, object]]:
        """Returns {'rows', 'sha256'} of each subset."""
        if not os.path.isdir(self._folder):
            return {}
        names = sorted(
            file.removesuffix(".json")
            for file in os.listdir(self._folder)
            if file.endswith(".json")
        )
        return {name: self._about(name) for name in names}

    def _path(self, name: str, kind: str) -> str:
        return os.path.join(self._folder, f"{name}.{kind}")

    def _about(self, name: str) -> dict[str, object]:
        path = self._path(name, "json")
        about = checksums.read_sealed(path, "what a subset holds", _AGAIN)
        if not isinstance(about.get("sha256"), str) or type(about.get("rows")) is not int:
            raise UserError(
                f"expected 'rows' and 'sha256' of a subset in {path}, found others; {_AGAIN}"
            )
        return about

    def _save(self, name: str, cases: Sequence[Case]) -> None:
        os.makedirs(self._folder, exist_ok=True)
        lines = [
            json.dumps({**case._asdict(), "text": self._decode(case.reasoning)}, ensure_ascii=False)
            for case in cases
        ]
        text = "".join(line + "\n" for line in lines)
        write_atomically(self._path(name, "jsonl"), text)
        # Last: without it the subset is made again.
        about = {"rows": len(cases), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        checksums.write_sealed(self._path(name, "json"), about)

    def _load(self, name: str) -> list[Case]:
        path, about = self._path(name, "jsonl"), self._about(name)
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError:
            checksums.check_readable(path)
            content = b""
        if hashlib.sha256(content).hexdigest() != about["sha256"]:
            raise UserError(
                f"expected the subset that was saved in {path}, found other content; remove it and "
                f"{os.path.basename(self._path(name, 'json'))} beside it, and run again"
            )
        # Not splitlines: reasoning may hold the further characters that it takes for line ends.
        try:
            rows = [json.loads(line) for line in content.decode().split("\n") if line]
            return [Case(row["example"], row["reasoning"], row["answer"]) for row in rows]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"expected the cases of a subset in {path}, found none that can be read "
                f"({type(error).__name__}); {_AGAIN}"
            ) from None


def collected(
    subsets: Subsets,
    stage: str,
    count: int,
    cases_of: Callable[[np.ndarray], list[Case]],
    *,
    most: int,
    size: int,
) -> list[Case]:
    """Collects cases of the training examples in parts that are not made again after a kill.

    Args:
      stage: the parts are called by it.
      count: how many training examples there are.
      cases_of: makes the cases of the examples at some places, int [E].
      most: examples to look at, the first ones; 0 or less for all.
      size: examples of a part, which a kill loses at most.

    Raises:
      core.errors.Preempted: SIGTERM or Ctrl-C, between two parts.
    """

    def part(start: int, stop: int) -> list[Case]:
        stop_if_terminated(f"the collection of {stage}")
        return cases_of(np.arange(start, stop))

    count = min(most, count) if most > 0 else count
    cases: list[Case] = []
    for number, start in enumerate(range(0, count, size)):
        make = functools.partial(part, start, min(start + size, count))
        cases += subsets.get(f"{stage}_part_{number}", make)
    return cases
