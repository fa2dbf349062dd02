"""Opens the floors of search with every text encoder, that of CRS's decoder among them."""

from __future__ import annotations

from crs_jax import embedding
from lcrsr.search_baselines.experiment import SearchBaselineExperiment
from text_encoders import named


class SearchFloorExperiment(SearchBaselineExperiment):
    """Runs a floor of search whose kind 'dense' may also be a Qwen3-Embedding."""

    open_encoder: named.OpenEncoder = staticmethod(embedding.open_encoder)
