"""Names the protocols of evaluation: against which items a target is ranked."""

from __future__ import annotations

from ml_collections import config_dict

from core import metrics
from core.errors import UserError
from core.settings import positive

PROTOCOLS = ("neg99", "neg99pop", "published99", "full")


def check_evaluation(config: config_dict.ConfigDict) -> None:
    """Checks `config.eval` up front, so that no stage is trained before its test fails.

    Raises:
      UserError: a size is not positive; a metric or protocol does not exist.
    """
    positive(config, "eval.batch_size", "eval.full_batch_size")
    for name in config.eval.metrics:
        metrics.metric(name)
    for protocol in config.eval.protocols:
        if protocol not in PROTOCOLS:
            raise UserError(
                f"expected config.eval.protocols of {', '.join(PROTOCOLS)}, found {protocol!r}; "
                "pass these"
            )
