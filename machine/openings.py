"""Stores that take their time to be opened: files of a slow host, servers that do not answer.

Owns: a thread for each that is being opened, and what has come of it until somebody takes it. dom0
waits for none of them: a disk whose store is slow waits for it alone.
"""

import threading
from collections.abc import Callable
from typing import Final

from backend.due import Key
from backend.plug import Plug, open_disk, opens_at_once, target_of
from backend.store_jobs import LaterStore
from backend.stores import RamStores, Store
from common.faults import LocalFault

UNDER_WAY: Final = None
Opened = Store | LaterStore | LocalFault


class Openings:
    """report: has something called in the main thread; look: has a disk looked at again."""

    def __init__(
        self,
        rams: RamStores,
        report: Callable[[Callable[[], None]], None],
        look: Callable[[Key], None],
    ) -> None:
        self._rams, self._report, self._look = rams, report, look
        self._wanted: dict[Key, Plug] = {}  # which store a disk waits for
        self._opening = set[tuple[Key, Plug]]()
        self._opened: dict[Key, Opened] = {}  # what it has waited for

    def take(self, key: Key, plug: Plug) -> Store | LaterStore | None:
        """The store of a disk; None if that is being opened: the disk is looked at once it is.

        Raises PeerFault, and LocalFault if it cannot be had.
        """
        target = target_of(plug.params)
        if self._wanted.get(key) != plug:
            self.forget(key)
        if opens_at_once(target):
            return open_disk(target, *key, self._rams, plug.read_only)
        if (opened := self._opened.pop(key, None)) is not None:
            del self._wanted[key]
            if isinstance(opened, LocalFault):
                raise opened
            return opened
        if (key, plug) not in self._opening:
            try:
                threading.Thread(target=self._open, args=(key, plug), daemon=True).start()
            except RuntimeError as error:
                raise LocalFault(f"no thread to open it: {error}") from error
            self._opening.add((key, plug))
        self._wanted[key] = plug
        return UNDER_WAY

    def forget(self, key: Key) -> None:
        """Nobody wants that disk any more."""
        self._wanted.pop(key, None)
        _close(self._opened.pop(key, None))

    def close(self) -> None:
        """Forget all. What is still being opened ends with the process."""
        for key in list(self._wanted):
            self.forget(key)

    def _open(self, key: Key, plug: Plug) -> None:
        found: Opened
        try:
            found = open_disk(target_of(plug.params), *key, self._rams, plug.read_only)
        except LocalFault as fault:
            found = fault
        self._report(lambda: self._has_opened(key, plug, found))

    def _has_opened(self, key: Key, plug: Plug, found: Opened) -> None:
        """In the main thread. By now another store may be wanted, or none."""
        self._opening.discard((key, plug))
        if self._wanted.get(key) != plug:
            _close(found)
            return
        self._opened[key] = found
        self._look(key)


def _close(opened: Opened | None) -> None:
    if opened is not None and not isinstance(opened, LocalFault):
        opened.close()
