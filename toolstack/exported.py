"""A disk's export, as who has asked for it has it: where it is, and its end.

Owns: the client's side of the request. The other is `toolstack/exports.py`.
"""

import contextlib
import os
from types import TracebackType
from typing import Self
from urllib.parse import quote

from toolstack.failures import MachineError
from toolstack.wire import Requests


class Export:
    """Begun on return: clients may connect to `socket`. A context manager that ends it.

    uri: the same, as NBD's programs take it; nr_bytes: its size; flags: of transmission.
    """

    def __init__(self, requests: Requests, domid: int, vdev: str, socket: str) -> None:
        self._requests = requests
        path = os.path.abspath(socket) if socket else ""
        self._number = requests.begin("export", domid, vdev, path)
        self._results = requests.results(self._number)
        told = next(self._results)
        self.socket: str = told["socket"]
        self.nr_bytes, self.flags = int(told["nr_bytes"]), int(told["flags"])
        self.uri = f"nbd+unix:///?socket={quote(self.socket)}"
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def wait(self) -> None:
        """Return when somebody else has ended it. Raises MachineError if it has failed."""
        try:
            for _ in self._results:
                pass
        except MachineError:
            self._ended = True
            raise
        self._ended = True

    def close(self) -> None:
        """End it: what is under way is done, and its clients lose their connections. Idempotent."""
        if self._ended:
            return
        with contextlib.suppress(MachineError):  # then it has ended, or the machine has
            self._requests.stop(self._number)
            self.wait()
        self._ended = True
