"""Makes WebUltron's identifiers: product quantisation of the items' text vectors.

Paper: Zhou et al., "WebUltron: An Ultimate Retriever on Webpages Under the Model-Centric Paradigm"
(IEEE TKDE 2023). An identifier has one code for each part of a vector, each part with a codebook of
its own: part i (from 0) and centroid c are token T + K i + c, after T others. `webultron.py` trains
on them.

Settled here: items have no addresses, so that of the released kinds of identifiers there is this
one. Equal identifiers, which the released code orders by chance, are told apart by a further code
that counts them. Of a large catalogue k-means sees 50,000 random items, as in `meaning.py`.

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
from gensar_jax.identifier_experiment import text_vectors
from gensar_jax.identifiers import IdentifierTable, colliding_items, collision_rate, numbered
from gensar_jax.rqvae import SOURCES
from gensar_jax.settings import Described, TextVectorSettings

_FIT_ITEMS = 50_000
_ITERATIONS = 20


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

    A part with no more than K different values has a code for each of them.

    Args:
      rows: float [V, D], D at least `parts`.

    Returns:
      int32 [V, L], each from 0 to K-1.
    """
    return np.stack(
        [
            _codes_of(part, codes, seed + place)
            for place, part in enumerate(np.array_split(rows, parts, axis=1))
        ],
        1,
    ).astype(np.int32)


def _codes_of(part: np.ndarray, codes: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans  # slow to import

    values, own = np.unique(part, axis=0, return_inverse=True)
    if len(values) <= codes:
        return own.ravel()
    rng = np.random.default_rng(seed)
    seen = part
    if len(part) > _FIT_ITEMS:
        # Different values, so that there are as many as codes.
        seen = values[rng.choice(len(values), min(_FIT_ITEMS, len(values)), replace=False)]
    model = KMeans(codes, n_init=1, max_iter=_ITERATIONS, random_state=seed)
    return model.fit(seen).predict(part)


class WebUltronIdentifiers(FittedIdentifierExperiment):
    """Quantises the vectors of a catalogue's texts."""

    own_sections: ClassVar[Described] = {
        "vectors": (TextVectorSettings, vectors.FactorConfig),
        "model": (PartSettings,),
    }

    def fit(self) -> tuple[IdentifierTable, dict[str, Any]]:
        data, seed = self.data, self.config.seed
        settings = PartSettings(**self.config.model.to_dict())
        factors = build(
            vectors.FactorConfig,
            self.config.vectors.to_dict(),
            section="vectors",
            more={"seed": seed},
        )
        rows = text_vectors(self.config, data, factors)
        if rows.shape[1] < settings.parts:
            raise UserError(
                f"expected vectors of at least {settings.parts} numbers, one a part, found "
                f"{rows.shape[1]}; set fewer parts"
            )
        codes = part_codes(rows, settings.parts, settings.codes, seed)
        unique = numbered(codes, settings.codes)
        if settings.repeated == "refused" and unique is not codes:
            raise UserError(
                f"expected identifiers that are unique, found {colliding_items(codes):.1%} of the "
                f"{len(codes)} items of {data.label} with another's; set more parts or codes, or "
                "repeated='numbered'"
            )
        table = IdentifierTable(
            dict.fromkeys(SOURCES, unique),
            unique.shape[1],
            settings.codes,
            data.log.hash,
            data.training_split,
        )
        return table, {
            "collision_rate": collision_rate(codes),
            "colliding_items": colliding_items(codes),
            "length": float(unique.shape[1]),
        }
