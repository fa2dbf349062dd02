"""Makes WebUltron's identifiers: product quantisation of the items' text vectors.

Paper: Zhou et al., "WebUltron: An Ultimate Retriever on Webpages Under the Model-Centric Paradigm"
(IEEE TKDE 2023). An identifier has one code for each part of a vector, each part with a codebook of
its own: part i and centroid c are token V + K i + c after V others (`webultron.py` trains on them).

Settled here: items have no addresses, so that of the released kinds of identifiers there is this
one. Equal identifiers, which the released code orders by chance, get a last code that counts them.

Axis letters: V items, D width, L parts, K codes of a part.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

import numpy as np

from core import vectors
from core.errors import UserError
from core.settings import Count, Settings, at_least, build, one_of
from gensar_jax.fitted_identifier_experiment import FittedIdentifierExperiment
from gensar_jax.identifier_experiment import TFIDF
from gensar_jax.identifiers import IdentifierTable, collision_rate
from gensar_jax.rqvae import SOURCES
from gensar_jax.settings import Described, TextVectorSettings
from input_pipelines import segmenters


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartSettings(Settings):
    """Says how vectors are quantised.

    Attributes:
      parts: L, of equal width up to one.
      codes: K.
      repeated: whether equal identifiers are 'numbered' by one code more, or 'refused'.
    """

    parts: Count
    codes: Annotated[int, at_least(2)]
    repeated: Annotated[str, one_of("numbered", "refused")]


def part_codes(rows: np.ndarray, parts: int, codes: int, seed: int = 0) -> np.ndarray:
    """Quantises each part of vectors by k-means.

    Args:
      rows: float [V, D], D at least `parts`.

    Returns:
      int32 [V, L], each from 0 to K-1.
    """
    from sklearn.cluster import KMeans  # slow to import

    labels = [
        KMeans(codes, n_init=1, max_iter=20, random_state=seed + place).fit_predict(part)
        for place, part in enumerate(np.array_split(rows, parts, axis=1))
    ]
    return np.stack(labels, 1).astype(np.int32)


def numbered(codes: np.ndarray) -> np.ndarray:
    """Returns codes [V, L], with a code more that counts equal ones where there are any."""
    _, inverse = np.unique(codes, axis=0, return_inverse=True)
    inverse = inverse.ravel()
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(inverse.max() + 1))
    counts = np.empty(len(codes), np.int32)
    counts[order] = np.arange(len(codes)) - starts[inverse[order]]
    return np.column_stack([codes, counts]) if counts.any() else codes


class WebUltronIdentifiers(FittedIdentifierExperiment):
    """Quantises the vectors of a catalogue's texts."""

    own_sections: ClassVar[Described] = {
        "vectors": (TextVectorSettings, vectors.FactorConfig),
        "model": (PartSettings,),
    }

    def fit(self) -> tuple[IdentifierTable, dict[str, Any]]:
        data, seed = self.data, self.config.seed
        settings = PartSettings(**self.config.model.to_dict())
        if data.log.num_items < settings.codes:
            raise UserError(
                f"expected at least {settings.codes} items, the codes of a part, in {data.label}, "
                f"found {data.log.num_items}; set fewer codes"
            )
        rows = self._vectors()
        if rows.shape[1] < settings.parts:
            raise UserError(
                f"expected vectors of at least {settings.parts} numbers, one a part, found "
                f"{rows.shape[1]}; set fewer parts"
            )
        codes = part_codes(rows, settings.parts, settings.codes, seed)
        unique = numbered(codes)
        if settings.repeated == "refused" and unique is not codes:
            raise UserError(
                f"expected identifiers that are unique, found {collision_rate(codes):.1%} of "
                f"{len(codes)} that are taken; set more parts or codes, or repeated='numbered'"
            )
        table = IdentifierTable(
            dict.fromkeys(SOURCES, unique),
            unique.shape[1],
            max(settings.codes, int(unique.max()) + 1),
            data.log.hash,
            data.training_split,
        )
        return table, {"collision_rate": collision_rate(codes)}

    def _vectors(self) -> np.ndarray:
        settings, texts = self.config.vectors, self.data.log.item_texts()
        if settings.semantic != TFIDF:
            return vectors.from_sentence_transformer(texts, settings.semantic)
        more = {"seed": self.config.seed}
        factors = build(vectors.FactorConfig, settings.to_dict(), section="vectors", more=more)
        return vectors.from_text(texts, segmenters.segmenter(self.config.data.segmenter), factors)
