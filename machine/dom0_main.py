"""dom0's process: what it is born with, and how it ends."""

import os
import socket
import sys
import threading
from typing import Any, Final

from common.control import Control
from common.hypercall import HypercallError, Hypercalls
from common.log_limit import log_to_terminal
from common.xenstore import XenStoreError
from machine.connection import BackendOptions
from machine.dom0 import Dom0, Dom0Config

SWITCH_INTERVAL_S: Final = 1e-4  # a thread that wakes must not wait 5 ms for the interpreter


def _die_of(failure: threading.ExceptHookArgs) -> None:
    """An exception in a vCPU's thread is a bug of ours: this process ends, and says why."""
    sys.excepthook(failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback)
    sys.stderr.flush()
    os._exit(70)


def main(config: dict[str, Any], descriptors: list[int]) -> None:
    """The process's entry. descriptors: control, hypercalls of vCPU 0."""
    log_to_terminal("dom0: %(message)s")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    threading.excepthook = _die_of
    control = Control.of_descriptor(descriptors[0])
    hypercalls = Hypercalls(socket.socket(fileno=descriptors[1]))
    options = BackendOptions(**config.pop("options"))
    try:
        Dom0(Dom0Config(**config, options=options), control, hypercalls).serve()
    except (XenStoreError, HypercallError, OSError) as error:
        control.send("error", f"dom0: {error}")
        raise SystemExit(1) from error
