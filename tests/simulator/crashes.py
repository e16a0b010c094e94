"""One disk in virtual time whose ends can be killed before and after each thing they do."""

from collections.abc import Callable
from functools import partial
from random import Random
from typing import NamedTuple

import numpy as np

from common import abi, xenbus
from common.arena import Arena
from common.counters import FRONTEND_COUNTERS
from common.handshake import (
    Again,
    Committed,
    Done,
    Event,
    Gone,
    Intent,
    Leave,
    Seen,
    Stirred,
)
from common.spinning import new_spin
from common.xenstore_exchange import Request, Talk
from common.xenstore_talks import BEGIN, end, transaction_id
from common.xenstore_wire import MessageType, pack_strings
from frontend.frames import disk_frames
from frontend.grants import grant_access
from frontend.vbd import FrontendVbd
from machine.front import guest_disks
from machine.hypervisor import build_domain, build_hypervisor, domain_memory, host_memory
from machine.plug import XVDA, plug, plug_again
from machine.ring_ops import map_ring_op, unmap_ring_op
from simulator.hands import Caller
from simulator.handshake import LifeSeat, World

DOMID = 1
DISK = (DOMID, XVDA)
MIB = 4
POOL_PAGES = 8
FRAMES = disk_frames(0, 0, POOL_PAGES)
HANDLES = 64  # of dom0's maptrack
WARM = 3  # pages that the backend keeps mapped while it serves
FRONT, BACK = xenbus.frontend_path(DOMID, XVDA), xenbus.backend_path(DOMID, XVDA)


class Rest(NamedTuple):
    """How a world is once nothing is to come. front, back: the driver's state, or that it is gone;
    granted: entries of the guest's grant table; mapped: its pages; ports: the guest's and dom0's;
    errors: the reasons that stand in `error` nodes.
    """

    front: str
    back: str
    granted: int = 0
    mapped: int = 0
    ports: tuple[int, int] = (0, 0)
    errors: tuple[str, ...] = ()


class House:
    """A hypervisor, a store, dom0 and a guest. crash: called once, at the `at`-th thing that either
    end does or hears, or that the store is sent; `heard`: what those were. disorder: nothing takes
    its time, ends are stirred for nothing, and what they hear they hear again.
    """

    def __init__(
        self,
        at: int = -1,
        crash: Callable[["House"], None] | None = None,
        disorder: Random | None = None,
    ) -> None:
        self.heard: list[str] = []
        self.crashed: tuple[str, str] | None = None
        self._at, self._crash, self._disorder = at, crash, disorder
        arena = Arena()
        self._machine = host_memory(arena, HANDLES)
        dom0 = domain_memory(arena, 1)
        self.hypervisor = build_hypervisor(arena, self._machine, dom0, nr_cpus=1, policy="mask")
        self._memory = domain_memory(arena, FRAMES.end)
        self.grant = self._memory.grant
        build_domain(self.hypervisor, self._machine, DOMID, self._memory)
        self.world = World(self.hypervisor)
        self.world.heed = self._heed
        self.world.behind.heed = lambda: self._pass("store")
        if disorder is not None:
            self.world.behind.delay = lambda ns: disorder.randrange(10 * ns)
        self.world.serve(DISK, MIB << 11, True, 0, self._let_go)
        self._dom0, self._kept = Caller(self.hypervisor, abi.DOMID_0), list[np.ndarray]()

    # --- a disk's life ----------------------------------------------------------------------

    def live(self) -> "House":
        """Plug the disk in, use it, unplug it; or as far as that goes with a crash in between."""
        self.plug()
        self.world.rest()
        if self.crashed is None:
            self.warm()
            self.front.tell(Leave())
            self.world.rest()
        return self

    def plug(self) -> None:
        """Both directories, and a guest that boots."""
        self.world.toolstack.hold(plug(DOMID, f"ram:{MIB}m"), lambda _: None)
        counters = np.zeros(1, FRONTEND_COUNTERS)
        spin = new_spin(adaptive=False)
        (domain,) = guest_disks(
            DOMID,
            *self._memory,
            counters,
            spin,
            nr_ios=1,
            pool_pages=POOL_PAGES,
            arena=Arena(),
        )
        self.world.boot(domain, XVDA, True)

    def warm(self) -> None:
        """The frontend grants pages, and the backend keeps them mapped."""
        vbd = self.front.vbd
        assert isinstance(vbd, FrontendVbd) and vbd.dev is not None
        for index, page in enumerate(vbd.dev.pool.pages[:WARM]):
            page["gref"] = grant_access(vbd.dev.grants, abi.DOMID_0, FRAMES.pool + index, False)
            op = map_ring_op((2 + index) * abi.XEN_PAGE_SIZE, int(page["gref"]), DOMID)
            self._dom0.grant_op(abi.GNTTABOP_MAP_GRANT_REF, op)
            assert op["status"][0] == abi.GNTST_OKAY
            self._kept.append(op)

    def _let_go(self) -> None:
        while self._kept:
            op = unmap_ring_op(self._kept.pop())
            self._dom0.grant_op(abi.GNTTABOP_UNMAP_GRANT_REF, op)
            assert op["status"][0] == abi.GNTST_OKAY

    @property
    def front(self) -> LifeSeat:
        return self.world.fronts[DISK]

    def _states(self) -> tuple[str, str]:
        back = self.world.backs.get(DISK)
        front = xenbus.STATE_NAMES[self.front.vbd.state]
        return front, "none" if back is None else xenbus.STATE_NAMES[back.vbd.state]

    def _heed(self, seat: LifeSeat, what: Intent | Event) -> None:
        if self._disorder is not None:
            self._disturb(seat, what, self._disorder)
        self._pass(f"{seat.vbd.role} {what}")

    def _pass(self, point: str) -> None:
        """A point at which something may die, once there is a guest."""
        if DISK not in self.world.fronts:
            return
        self.heard.append(point)
        if len(self.heard) - 1 == self._at and self._crash is not None:
            self.crashed = self._states()
            self._crash(self)

    def _disturb(self, seat: LifeSeat, what: Intent | Event, random: Random) -> None:
        clock = self.world.clock
        more: list[Event] = [Stirred()] * random.randrange(2)
        if isinstance(what, Seen | Committed | Again | Gone | Done):
            more += [what] * random.randrange(3)
        for event in more:
            clock.at(clock.now_ns + random.randrange(300_000), partial(seat._hear, event))

    # --- crashes ----------------------------------------------------------------------------

    def guest_dies(self) -> None:
        """And the toolstack removes what is left of it, as `xl destroy` does."""
        self.world.destroy(DOMID)
        self.remove(f"/local/domain/{DOMID}")
        self.remove(f"/local/domain/0/backend/vbd/{DOMID}")

    def directory_goes(self) -> None:
        """A toolstack removes the backend's directory."""
        self.remove(BACK)

    def dom0_dies(self) -> None:
        """Its mappings and ports go with it, and a new one is started."""
        self._dom0_ends()
        self.world.toolstack.hold(plug_again(*DISK), self._dom0_begins)

    def dom0_is_replaced(self) -> None:
        """The same, but the disk is plugged in again, so that nobody sees that there was nothing in
        between."""
        self._dom0_ends()
        self.world.begin_dom0()
        self.world.toolstack.hold(_make_again(), lambda _: None)

    def _dom0_ends(self) -> None:
        self.world.dom0.close()
        for seat in self.world.backs.values():
            seat.dead = True
        self._kept.clear()
        self.hypervisor.reset_backend(abi.DOMID_0)

    def _dom0_begins(self, outcome: str) -> None:
        if outcome == "again":
            self.world.toolstack.hold(plug_again(*DISK), self._dom0_begins)
        else:
            self.world.begin_dom0()

    def remove(self, path: str) -> None:
        """By the toolstack; it may be gone."""

        def talk() -> Talk[None]:
            yield [Request(MessageType.RM, path)]

        self.world.toolstack.hold(talk(), lambda _: None)

    # --- how it is --------------------------------------------------------------------------

    def at_rest(self) -> Rest:
        """How the world has come to rest."""
        front, back = self._states()
        domain = self.hypervisor.domains.find_dying(DOMID)
        dom0 = self.hypervisor.domains.find(abi.DOMID_0)
        assert dom0 is not None
        flags = self.grant.view(abi.GRANT_ENTRY_V1)["flags"]
        return Rest(
            "dead" if self.front.dead else front,
            back,
            0 if self.front.dead else int(np.count_nonzero(flags)),
            0 if domain is None else domain.mapped,
            (0 if domain is None else len(domain.channels.ports()), len(dom0.channels.ports())),
            tuple(value for path in (FRONT, BACK) if (value := self.read(f"{path}/error"))),
        )

    def read(self, path: str) -> str:
        """What stands in the store; "" if nothing does."""
        values: list[bytes] = []

        def talk() -> Talk[None]:
            (reply,) = yield [Request(MessageType.READ, path)]
            values.append(reply if isinstance(reply, bytes) else b"")

        self.world.toolstack.hold(talk(), lambda _: None)
        self.world.rest()
        return values[0].decode()


def _make_again() -> Talk[None]:
    tx_id = transaction_id((yield [BEGIN])[0])
    perms = pack_strings(b"n0", b"r%d" % DOMID)
    requests = [
        Request(MessageType.RM, BACK),
        Request(MessageType.MKDIR, BACK),
        Request(MessageType.SET_PERMS, BACK, perms),
    ]
    for request in next(plug(DOMID, f"ram:{MIB}m")):
        if request.kind == MessageType.WRITE and request.first.startswith(BACK):
            requests.append(request)
    yield [*(request._replace(tx_id=tx_id) for request in requests), end(tx_id, "T")]
