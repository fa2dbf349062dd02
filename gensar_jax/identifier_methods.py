"""Names every method that makes an identifier table."""

from __future__ import annotations

from ml_collections import config_dict

from core.errors import UserError
from core.experiment import Experiment
from gensar_jax.baselines.genre import GENREIdentifiers
from gensar_jax.baselines.genret import GenRetIdentifiers
from gensar_jax.baselines.p5_cid import P5CIDIdentifiers
from gensar_jax.baselines.webultron_identifiers import WebUltronIdentifiers
from gensar_jax.fitted_identifier_experiment import TableExperiment
from gensar_jax.identifier_experiment import IdentifierExperiment
from gensar_jax.identifiers import DEFAULT_METHOD

DEFAULT = DEFAULT_METHOD
METHODS: dict[str, type[IdentifierExperiment] | type[TableExperiment]] = {
    DEFAULT: IdentifierExperiment,
    "genre_identifiers": GENREIdentifiers,
    "genret_identifiers": GenRetIdentifiers,
    "p5_cid_identifiers": P5CIDIdentifiers,
    "webultron_identifiers": WebUltronIdentifiers,
}


def method_of(config: config_dict.ConfigDict) -> str:
    """Returns the method that makes the identifiers of a config of GenSAR."""
    return config.get("identifier_method", DEFAULT)


def experiment_class(
    config: config_dict.ConfigDict,
) -> type[IdentifierExperiment] | type[TableExperiment]:
    """Returns the class that makes the identifiers of a config of GenSAR.

    Raises:
      UserError: no such method.
    """
    method = method_of(config)
    if method not in METHODS:
        raise UserError(
            f"expected config.identifier_method of {', '.join(METHODS)}, found {str(method)!r:.60}"
            "; set one of them"
        )
    return METHODS[method]


def own_experiment(config: config_dict.ConfigDict, data: object) -> Experiment:
    """Opens the experiment that makes identifiers, from its own config."""
    open_one: type[Experiment] = METHODS[config.method]
    return open_one(config, data)  # type: ignore[call-arg]
