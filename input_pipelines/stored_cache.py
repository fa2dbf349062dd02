"""Shares prepared logs of a cache directory that is an address of an object store.

Each machine has the folders of the cache that it uses as copies of its own, memory-mapped as any
other. What one machine has prepared, the others fetch. What is made from a log later (candidate
lists, identifiers) goes to the store as well, a run that trains identifiers once it is finished. Of
several machines that make the same the first one's stays there.
"""

from __future__ import annotations

import logging
import os

from core.errors import UserError
from core.object_store import (
    Store,
    fetch_folder,
    local_copy,
    send_folder,
    sent_names,
    whole_place,
)

_LOG = logging.getLogger(__name__)
# Which folders of a prepared log are runs, and whether they are finished.
_BEGUN, _FINISHED = "config.json", "results.json"


class StoredCache:
    """Copies folders of a cache between this machine and `address`.

    Args:
      address: `config.cache_dir`.

    Attributes:
      folder: the cache directory of this machine.

    Raises:
      UserError: as `core.object_store.Store`.
    """

    def __init__(self, address: str):
        self._address = address.rstrip("/")
        self._of("")
        self.folder = local_copy(address)

    def _of(self, directory: str) -> Store:
        name = os.path.basename(directory)
        return Store(f"{self._address}/{name}".rstrip("/"), "config.cache_dir")

    def fetch(self, directory: str) -> bool:
        """Fetches a folder of the cache; tells whether the store had it whole.

        Raises:
          UserError: the store cannot be read; or it does not have it and cannot be written either.
        """
        store = self._of(directory)
        if fetch_folder(store, directory):
            return True
        store.check_writable()
        return False

    def send(self, directory: str) -> None:
        """Sends what the store does not have yet of a folder of the cache.

        Raises:
          UserError: the store cannot be written.
        """
        store, left_out = self._of(directory), set[str]()
        names = sent_names(store)
        for name in os.listdir(directory):
            run = os.path.join(directory, name)
            if os.path.exists(os.path.join(run, _BEGUN)):
                finished = os.path.exists(os.path.join(run, _FINISHED))
                if not finished or f"{name}/{_FINISHED}" in names:
                    left_out.add(name)
        send_folder(store, directory, left_out, by_content=True)

    def send_if_possible(self, directory: str) -> None:
        """Sends as `send` does; a store that cannot be written costs a warning."""
        if os.path.dirname(directory) != self.folder:
            return  # a prepared folder of the user's
        try:
            self.send(directory)
        except UserError as error:
            _LOG.warning("what was made from the data stays on this machine: %s", error)


def open_cache(cache_dir: str) -> tuple[str, StoredCache | None]:
    """Returns the cache directory of this machine, and what shares it where it is an address.

    Raises:
      UserError: as `StoredCache` and `core.files.expanded`.
    """
    place = whole_place(cache_dir, "config.cache_dir")
    if place == cache_dir and "://" in place:
        shared = StoredCache(place)
        return shared.folder, shared
    return place, None
