"""A guest's process: what it is born with is mapped, it is sealed, and its disks are made."""

import contextlib
import itertools
import logging
import select
import socket
import time
from typing import Any

from common.control import Control, ControlLost
from common.hypercall import Hypercalls
from common.machine_memory import stats_of
from common.memory import map_segment
from common.napping import FRONT_SHARE
from common.process import sleep_to_the_point
from common.spinning import new_spin
from common.trace_log import front_log
from common.wakeups import new_poller
from common.xenstore import XenStoreClient
from frontend.driver import Driver
from frontend.seal import seal
from machine.front import disk_places
from machine.front_disk import FrontDisk, Line
from machine.guest import Guest
from machine.guest_config import GuestConfig
from machine.guest_disk import GuestDisk
from machine.guest_disks import GuestDisks, Place, number_of
from machine.last_words import LogToControl, last_words
from machine.seat import Timers


def main(config: dict[str, Any], descriptors: list[int]) -> None:
    """The process's entry. descriptors: control, hypercalls, store, then its four segments
    (common.machine_memory.DOMAIN_SEGMENTS) and its disks' state files, of which it keeps the
    mappings."""
    settings = GuestConfig(**config)
    control = Control.of_descriptor(descriptors[0])
    logging.basicConfig(level=logging.WARNING, handlers=[LogToControl(control)])
    with contextlib.suppress(ControlLost), last_words(control, settings.domid):
        hypercalls, store = (socket.socket(fileno=fd) for fd in descriptors[1:3])
        ram, grant, event, stats, *states = (map_segment(fd) for fd in descriptors[3:])
        client = XenStoreClient(store)
        sleep_to_the_point()
        if unsealed := seal(settings.events):
            logging.warning("not sealed: %s", unsealed)
        record = stats_of(stats)
        spin = new_spin(settings.adaptive_spin, settings.threads, FRONT_SHARE)
        poller = new_poller(settings.events)
        for end in (control, client):
            poller.register(end.fileno(), select.POLLIN)
        driver = Driver(spin, poller, front_log(stats))
        calls, timers = Hypercalls(hypercalls), Timers(time.monotonic)
        room = disk_places(
            settings.domid,
            ram,
            grant,
            event,
            record["counters"][0],
            spin,
            buffer_frames=settings.buffer_frames,
        )
        numbers = list(map(number_of, settings.disks))
        fresh = set(itertools.compress(numbers, settings.fresh))
        state_of = dict(zip(itertools.compress(numbers, settings.kept), states, strict=True))

        def make(place: Place) -> GuestDisk:
            """What is known of its contents is of the first disk of that number only."""
            which, number, device, backend = place
            line = Line(calls, event, settings.events, settings.events_dir)
            given = client, room(which, number), line, device, settings.persistent, timers, backend
            counted = record["counters"][0, number : number + 1], record["latency"][0, number]
            known = number in fresh, state_of.pop(number, None)
            fresh.discard(number)
            return GuestDisk(settings.domid, number, FrontDisk(*given), driver, *counted, *known)

        disks = GuestDisks(settings.domid, settings.places, client, driver, make)
        disks.begin(settings.disks)
        Guest(control, client, disks, driver, timers, poller).serve()
