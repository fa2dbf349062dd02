"""Makes GENRE's identifiers: the items' titles.

Paper: De Cao, Izacard, Riedel and Petroni, "Autoregressive Entity Retrieval" (ICLR 2021). A query's
item is p(title | query), piece by piece, every step limited to the titles that there are. The
variant `genre` of configs/gensar.py trains with smoothed labels and divides scores by their length,
as released.

Settled here: Wikipedia's titles are unique, a shop's are not, so that equal ones (cut to
`most_tokens`) get a number: "red pot", "red pot (2)". `repeated="refused"` takes none of that. An
item without a title has the first line of its text, and without text its id.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np

from core.errors import UserError
from core.settings import Settings, at_least, one_of
from gensar_jax import identifiers, pieces, vocabulary
from gensar_jax.fitted_identifier_experiment import FittedIdentifierExperiment
from gensar_jax.identifiers import NO_CODE, IdentifierTable
from gensar_jax.settings import Described, VocabularySettings
from input_pipelines import search_task
from input_pipelines.log import Log

# The end, a piece of the title and the six that the number of a repeated one takes at most.
_LEAST = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class TitleSettings(Settings):
    """Says how titles become identifiers.

    Attributes:
      most_tokens: of an identifier, its end included.
      repeated: whether equal titles are 'numbered' or 'refused'.
    """

    most_tokens: Annotated[int, at_least(_LEAST)]
    repeated: Annotated[str, one_of("numbered", "refused")]


def titles_of(log: Log, encode: Callable[[str], list[int]]) -> list[str]:
    """Returns what items 1..V are called: the first that is any pieces of title, beginning of the
    text, and id.

    Raises:
      UserError: the log has no texts.
    """
    titles = []
    for item, text in enumerate(log.item_texts(), 1):
        names = (log.facts(item).get("title", ""), *text.strip().splitlines()[:1])
        named = next((name for name in names if encode(name.strip())), log.item_ids[item])
        titles.append(str(named).strip())
    return titles


def title_codes(
    titles: Sequence[str],
    names: Sequence[str],
    encode: Callable[[str], list[int]],
    settings: TitleSettings,
) -> tuple[np.ndarray, int]:
    """Makes an identifier of each title.

    Args:
      titles: of items 1..V.
      names: the items' own ids, for messages.
      encode: from a text to its pieces.

    Returns:
      codes int32 [V, L], pieces and then NO_CODE, and how many titles were numbered.

    Raises:
      UserError: equal titles that are to be refused.
    """
    most = settings.most_tokens - 1
    taken: dict[tuple[int, ...], int] = {}
    latest: dict[tuple[int, ...], int] = {}
    numbered = 0
    for item, title in enumerate(titles, 1):
        whole = tuple(encode(title))
        own = short = whole[:most]
        while own in taken or not own:
            if settings.repeated == "refused":
                raise UserError(
                    f"expected titles that differ in their first {most} pieces, found items "
                    f"{names[taken.get(own, item) - 1]} and {names[item - 1]} with "
                    f"{title[:60]!r}; raise "
                    "config.model.most_tokens, or set config.model.repeated='numbered'"
                )
            latest[short] = number = latest.get(short, 1) + 1
            ending = encode(f" ({number})")
            own = (*whole[: most - len(ending)], *ending)
        numbered += own != short
        taken[own] = item
    codes = np.full((len(titles), max(map(len, taken))), NO_CODE, np.int32)
    for own, item in taken.items():
        codes[item - 1, : len(own)] = own
    return codes, numbered


class GENREIdentifiers(FittedIdentifierExperiment):
    """Writes a catalogue's titles as the pieces that GenSAR's T5 reads."""

    own_sections: ClassVar[Described] = {"model": (TitleSettings,)}
    shared_sections: ClassVar[Described] = {"vocabulary": (VocabularySettings,)}

    def fit(self) -> tuple[IdentifierTable, dict[str, Any]]:
        data = self.data
        searches = pieces.each_once(search_task.training_searches(data.log, data.splits))
        model = pieces.of_catalogue(self.config.vocabulary, data, searches)
        processor = vocabulary.processor_of(model, "the pieces of config.vocabulary")
        titles = titles_of(data.log, processor.EncodeAsIds)
        settings = TitleSettings(**self.config.model.to_dict())
        names = [str(name) for name in data.log.item_ids[1:]]
        codes, numbered = title_codes(titles, names, processor.EncodeAsIds, settings)
        table = identifiers.of_one_alphabet(
            codes,
            len(processor),
            data_hash=data.log.hash,
            training_split=data.training_split,
            pieces=pieces.digest(model),
        )
        lengths = (codes != NO_CODE).sum(1)
        return table, {
            "numbered": numbered / len(titles),
            "mean_length": float(lengths.mean()),
            "longest": float(lengths.max()),
        }
