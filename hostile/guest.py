"""A hostile guest's process: born as a guest is, sealed as one, and then it attacks.

Owns: its main loop. It says that it is up, as a guest does, then goes on with the attack that its
configuration names until it is told to exit, or killed: what it is told is looked for between
strokes, but by attacks on the control connection itself, which only a kill ends.
"""

import select
import socket
import traceback
from contextlib import suppress
from typing import Any

from common.control import Control, ControlLost
from common.hypercall import HypercallError
from common.memory import map_segment
from common.xenstore import XenStoreError
from frontend.seal import seal
from hostile.attacker import Attacker
from hostile.attacks import ATTACKS
from machine.guest_config import GuestConfig


def main(config: dict[str, Any], descriptors: list[int]) -> None:
    """The process's entry. config: GuestConfig's fields and `attack`, a name of ATTACKS;
    descriptors: a guest's (machine/guest.py)."""
    attack = ATTACKS[config.pop("attack")]
    settings = GuestConfig(**config)
    control = Control.of_descriptor(descriptors[0])
    hypercalls, store = (socket.socket(fileno=fd) for fd in descriptors[1:3])
    ram, grant, event, stats = (map_segment(fd) for fd in descriptors[3:])
    told = select.poll()
    told.register(control, select.POLLIN)
    if unsealed := seal(settings.events):
        control.send("log", f"not sealed: {unsealed}")

    def wanted() -> bool:
        return attack.deaf or not told.poll(0)

    raw = socket.socket(fileno=control.fileno())
    raw.setblocking(True)
    attacker = Attacker(settings, raw, hypercalls, store, ram, grant, event, stats, wanted)
    control.send("ok", None)
    try:
        for _ in attack.run(attacker):
            if not wanted():
                break
    except (OSError, HypercallError, XenStoreError) as error:
        if not attack.fatal:  # it has been cut off, and had done nothing to be
            control.send("error", f"the attack has come to an end: {error}")
        return  # the next one goes on
    except Exception:  # a bug of ours
        control.send("error", f"the attack failed: {traceback.format_exc()}")
        raise
    told.poll()  # as long as it lives, it holds what it has
    with suppress(ControlLost):
        control.receive(0)
        control.send("ok", None)
    raw.detach()
