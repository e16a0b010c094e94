"""The entries of the machine's processes, with all they import: for the fork server to bring in."""

from collections.abc import Callable
from typing import Any, Final

from hostile import guest as hostile_guest
from machine import broker, dom0_main, guest_main
from xenstored import daemon

# main(config, descriptors): plain values, and the descriptors that the process is born with.
Main = Callable[[dict[str, Any], list[int]], None]

MAINS: Final[dict[str, Main]] = {
    "hypervisor": broker.main,
    "xenstored": daemon.main,
    "dom0": dom0_main.main,
    "guest": guest_main.main,
    "hostile": hostile_guest.main,
}
