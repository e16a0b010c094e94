"""xenstored's process: the server, and its lines to the toolstack and to the hypervisor.

Owns: what the toolstack can ask (introduce, exit), and what a domain's death does here: it is
released, wholly, before the hypervisor is told so and its domid may be used again.
"""

import contextlib
import logging
import os
import socket
from typing import Any

from common.control import CommandError, Control, answer
from common.hypercall import VIRQ_DOM_EXC
from xenstored.server import XenStoreServer


class Daemon:
    """control: the toolstack's line; virq: the hypervisor's (VIRQ_DOM_EXC packets)."""

    def __init__(self, store_path: str, control: Control, virq: socket.socket) -> None:
        self._control, self._virq = control, virq
        self._arrived: list[int] = []  # with the command being obeyed
        self._server = XenStoreServer()
        self._server.listen(store_path)
        self._server.register(control.fileno(), self._obey)
        self._server.register(virq.fileno(), self._hear_of_death)

    def serve(self) -> None:
        """Serve until told to exit."""
        self._control.send("ok", None)
        self._server.serve()
        self._server.close()

    def _obey(self) -> None:
        message, self._arrived = self._control.receive_with_descriptors()
        answer(self._control, message, {"introduce": self._introduce, "exit": self._server.stop})
        for fd in self._arrived:
            os.close(fd)
        self._arrived = []

    def _introduce(self, domid: int) -> None:
        """A new domain; its connection came with the command."""
        if len(self._arrived) != 1:
            raise CommandError("introduce: one descriptor, the domain's connection, is needed")
        self._server.introduce(domid, socket.socket(fileno=self._arrived.pop()))

    def _hear_of_death(self) -> None:
        with contextlib.suppress(OSError):
            packet = self._virq.recv(VIRQ_DOM_EXC.size)
            if len(packet) == VIRQ_DOM_EXC.size:
                self._server.release(VIRQ_DOM_EXC.unpack(packet)[0])
                self._virq.send(packet)
                return
        self._server.stop()  # the hypervisor is gone, and the machine with it


def main(config: dict[str, Any], descriptors: list[int]) -> None:
    """The process's entry. descriptors: control, virq."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    control = Control.of_descriptor(descriptors[0])
    try:
        daemon = Daemon(config["store_path"], control, socket.socket(fileno=descriptors[1]))
    except OSError as error:
        control.send("error", f"xenstored: {config['store_path']}: {error}")
        raise SystemExit(1) from error
    daemon.serve()
