"""LCR-SER, and what a notebook imports of the whole library.

    import lcrsr
    from configs import lcr_ser_qilin
    results = lcrsr.train(lcr_ser_qilin.get_config(), "runs/first")
    model = lcrsr.Recommender.load("runs/first")

`train` and `evaluate` are those of `experiments`, `Recommender` is that of `serving`. They are
imported by their first use: a system imports nothing of the packages above it.
"""

import importlib
from typing import Any

from core.version import VERSION as __version__

__all__ = ["Recommender", "__version__", "evaluate", "train"]

_ELSEWHERE = {
    "Recommender": "serving.recommender",
    "evaluate": "experiments.evaluate",
    "train": "experiments.train",
}


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(_ELSEWHERE[name]), name)
    raise AttributeError(f"module 'lcrsr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
