"""Holds what every recommender does with a question before and after its model answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from core.errors import UserError
from serving.requests import Answer, Request, parse


class Asking:
    """Asks a model that answers lists of requests: base of what is a `requests.Answers`."""

    name: str
    catalogue_size: int
    max_steps: int | None
    time_unit: str

    def answer(self, requests: Sequence[Request]) -> list[Answer | UserError]:
        """Answers requests that `refusal` lets pass."""
        raise NotImplementedError

    def recommend(self, **question: Any) -> Answer:
        """Recommends items for one question, whose keywords are the fields of `Request`.

        Raises:
          UserError: the question is malformed, or cannot be answered.
        """
        (answer,) = self.recommend_many([parse(question, time_unit=self.time_unit)])
        if isinstance(answer, UserError):
            raise answer
        return answer

    def search(self, query: str, **question: Any) -> Answer:
        """Finds the items of a search; otherwise as `recommend`."""
        return self.recommend(query=query, **question)

    def recommend_many(self, requests: Sequence[Request]) -> list[Answer | UserError]:
        """Answers each request, or says in a UserError in its place why it cannot."""
        refused = [self.refusal(request) for request in requests]
        answered = iter(
            self.answer([r for r, reason in zip(requests, refused, strict=True) if reason is None])
        )
        return [next(answered) if reason is None else reason for reason in refused]

    def refusal(self, request: Request) -> UserError | None:
        """Returns why a request cannot be answered whatever the model says; None where it can."""
        if request.k > self.catalogue_size:
            return UserError(
                f"expected k of at most {self.catalogue_size}, the size of the catalogue, found "
                f"{request.k}; lower it"
            )
        steps = request.reasoning_steps
        if steps is not None and (self.max_steps is None or steps > self.max_steps):
            most = "none" if self.max_steps is None else f"0 to {self.max_steps}"
            return UserError(
                f"expected reasoning_steps of {most} for {self.name}, found {steps}; correct it or "
                "leave it out"
            )
        return None


def each_alone(
    answer: Callable[[Request], Answer], requests: Sequence[Request]
) -> list[Answer | UserError]:
    """Answers requests one after the other; the UserError of one stands in its place."""
    answers: list[Answer | UserError] = []
    for request in requests:
        try:
            answers.append(answer(request))
        except UserError as error:
            answers.append(error)
    return answers


def each_kind(
    answer: Callable[[Sequence[Request]], Sequence[Answer | UserError]],
    requests: Sequence[Request],
    most: int,
) -> list[Answer | UserError]:
    """Answers requests for recommendations together, and those of searches, in the order asked.

    Args:
      answer: answers some requests, all with a query or all without.
      most: of them at once.
    """
    answers: dict[int, Answer | UserError] = {}
    for searches in (False, True):
        places = [p for p, r in enumerate(requests) if (r.query is not None) == searches]
        for start in range(0, len(places), most):
            part = places[start : start + most]
            answers |= zip(part, answer([requests[p] for p in part]), strict=True)
    return [answers[place] for place in range(len(requests))]


def no_known_word(request: Request) -> UserError:
    """Makes the error of a query that says nothing to the model."""
    return UserError(
        f"expected a query with a word of the training queries, found {str(request.query)[:40]!r}; "
        "rephrase it"
    )
