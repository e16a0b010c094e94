"""The attacks by name: which door, whether it ends the attacker, whom it may keep busy."""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from hostile import control_door as control
from hostile import event_door as event
from hostile import hypercall_door as hypercall
from hostile import memory_door as memory
from hostile import ring_door as ring
from hostile import store_door as store
from hostile.attacker import Attacker

REFERENCE: Final = "burn"


class Attack(NamedTuple):
    """run: yields between strokes.

    fatal: it ends the guest that does it. deaf: it does not look whether it is told to stop.
    busy: processes and threads that it keeps busy by right, as any guest may: itself, and with a
    disk its ring's thread. What else it makes others do is what it is measured by.
    """

    run: Callable[[Attacker], Iterator[None]]
    fatal: bool = False
    deaf: bool = False
    busy: int = 1


def _burn(me: Attacker) -> Iterator[None]:
    """Burns CPU, and asks nothing of anybody: what attacks are measured against."""
    while True:
        for _ in range(1 << 14):
            pass
        me.stroke()
        yield


ATTACKS: Final[dict[str, Attack]] = {
    REFERENCE: Attack(_burn),
    # hypercalls
    "hypercall-flood": Attack(hypercall.flood),
    "hypercall-maps": Attack(hypercall.maximal_maps),
    "hypercall-unmaps": Attack(hypercall.maximal_unmaps),
    "hypercall-copies": Attack(hypercall.maximal_copies),
    "hypercall-garbage": Attack(hypercall.garbage),
    "hypercall-oversize": Attack(hypercall.oversize),
    "hypercall-domctls": Attack(hypercall.domctls),
    "hypercall-descriptors": Attack(hypercall.descriptors),
    "hypercall-empty": Attack(hypercall.empty, fatal=True),
    "hypercall-unread": Attack(hypercall.unread, fatal=True),
    "hypercall-unread-ports": Attack(hypercall.unread_ports, fatal=True),
    "ports-endless": Attack(hypercall.ports_endless),
    "ports-to-itself": Attack(hypercall.ports_to_itself),
    "ports-of-others": Attack(hypercall.ports_of_others),
    # the store
    "store-readers": Attack(store.readers),
    "store-deep": Attack(store.deep),
    "store-deep-commits": Attack(store.deep_commits),
    "store-watches": Attack(store.watches),
    "store-conflicts": Attack(store.conflicts),
    "store-unread": Attack(store.unread),
    "store-garbage": Attack(store.garbage, fatal=True),
    "store-flapping": Attack(store.flapping),
    "store-crowd": Attack(store.crowd),
    "store-permissions": Attack(store.permissions),
    "store-vanishing": Attack(store.vanishing, fatal=True),
    # event channels
    "event-wakes": Attack(event.wakes_without_event, busy=2),
    "event-pending": Attack(event.events_without_request, busy=2),
    "event-full-pipe": Attack(event.full_pipe, busy=2),
    "event-flags": Attack(event.flags_and_sizes, busy=2),
    "event-hang-up": Attack(event.hang_up, busy=2),
    "event-port-closed": Attack(event.port_closed, busy=2),
    # the ring
    "ring-reconnect": Attack(ring.reconnect, busy=2),
    "ring-overrun": Attack(ring.overrun, busy=2),
    "ring-indices": Attack(ring.indices, busy=2),
    "ring-same-gref": Attack(ring.same_gref, busy=2),
    "ring-fresh-grefs": Attack(ring.fresh_grefs, busy=2),
    "ring-bad-requests": Attack(ring.bad_requests, busy=2),
    "ring-rewritten": Attack(ring.rewritten, busy=2),
    "ring-full-closing": Attack(ring.full_while_closing, busy=2),
    "ring-revoked": Attack(ring.revoked, busy=2),
    # its memory
    "grants-garbage": Attack(memory.grants_garbage, busy=2),
    "stats-garbage": Attack(memory.stats_garbage),
    # the control connection
    "control-answers": Attack(control.answers, fatal=True, deaf=True),
    "control-pickles": Attack(control.pickles, fatal=True, deaf=True),
    "control-garbage": Attack(control.garbage, fatal=True, deaf=True),
    "control-huge": Attack(control.huge, fatal=True, deaf=True),
    "control-nested": Attack(control.nested, fatal=True, deaf=True),
    "control-logs": Attack(control.logs, fatal=True, deaf=True),
    "control-closed": Attack(control.closed, fatal=True, deaf=True),
    "control-silent": Attack(control.silent, deaf=True),
}
