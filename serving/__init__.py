"""Uses trained runs: recommends and searches for anyone, from a workdir alone.

    from serving import Recommender
    model = Recommender.load("runs/lcr_ser_amazon_beauty")

`Recommender` is imported by its first use, so that `serving.requests` needs nothing of a run's.
"""

import importlib
from typing import Any

__all__ = ["Recommender"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("serving.recommender"), name)
    raise AttributeError(f"module 'serving' has no attribute {name!r}")
