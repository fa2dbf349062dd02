"""Opens what is to be served: an export, alone or behind an index, or the folder of a run."""

from __future__ import annotations

import dataclasses
import logging

from serving.exported import ExportedModel, is_export
from serving.index import IndexedModel
from serving.item_descriptions import read_items
from serving.requests import Answers

_LOG = logging.getLogger(__name__)


def open_model(folder: str, retriever: str | None = None, items: str | None = None) -> Answers:
    """Opens an export or the folder of a run.

    Args:
      retriever: an export that finds what the export `folder` ranks; how well is logged.
      items: file of items that joined after training (`item_descriptions.read_items`).

    Raises:
      UserError: there is neither, or it cannot be opened, or it cannot score new items.
    """
    new = None if items is None else [dataclasses.asdict(one) for one in read_items(items)]
    if retriever is not None:
        model = IndexedModel(folder, retriever, items=new)
        recall = model.recall()
        _LOG.info(
            "the retriever finds %.1f%% of the %d items of the largest products; %.1f%% of the "
            "first 20 of the whole catalogue are among the first 20 behind it (made-up histories)",
            *(100 * recall.retrieved, model.first, 100 * recall.ranked),
        )
        return model
    if is_export(folder):
        return ExportedModel(folder, new)
    # Runs need what trains them; exports do not.
    from serving.recommender import Recommender

    return Recommender.load(folder, items=new)
