"""The handshake in virtual time: both ends' real drivers, a real xenstored, no process.

Owns: the clock that the handshake goes by, on which no load has begun; dom0's way to find its
disks; who is dead. What the ring is used for between Connected and Closing is whoever's it is who
made the `World`.
Rule: each thing takes its time, and whoever is dead by then does nothing: a crash can come before
anything that is done, and after it, before anybody is told (`World.heed`).
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Final

from backend.plug import NEEDED, read_plug
from backend.vbd import BackendVbd
from common import abi, xenbus
from common.handshake import Event, Fail, Intent, Leave, Stirred, Timeout
from common.xenstore_talks import ask, look, unwatch, watch
from frontend.vbd import Domain, FrontendVbd
from hypervisor.hypercalls import Hypervisor
from machine.plug import XVDA
from machine.seat import Hands, Seat
from simulator.hands import BackHands, Caller, FrontHands
from simulator.store_client import Client, Clock, VirtualStore

WAKE_NS: Final = 2_000  # from a hypercall's return, or a ring's end, to who is told
ROOT: Final = "/local/domain/0/backend/vbd"
TOOLSTACK: Final = "toolstack"


class LifeSeat(Seat):
    """A seat whose end may die. `world.heed` is told before what it does and what it hears."""

    def __init__(
        self, world: "World", vbd: BackendVbd | FrontendVbd, client: Client, hands: Hands
    ) -> None:
        super().__init__(vbd, client, hands, world.clock)
        self.dead = False
        self._world = world

    def tell(self, event: Event) -> None:
        """As any seat, after a while; but who hears something may have died before."""
        if isinstance(event, Stirred | Leave | Timeout):
            self._hear(event)
        else:
            self._world.heed(self, event)
            clock = self._world.clock
            delay = self._world.behind.delay(WAKE_NS)
            clock.at(clock.now_ns + delay, partial(self._hear, event))

    def _hear(self, event: Event) -> None:
        if not self.dead:
            super().tell(event)
            self._world.see(self)

    def do(self, intent: Intent) -> None:
        """As any seat; but it may die before."""
        if not self.dead and not isinstance(intent, Fail):
            self._world.heed(self, intent)
        if not self.dead:
            super().do(intent)


class World:
    """A store, a hypervisor, and the ends of disks. `rest` runs it until nothing is to come.

    behind: the store; toolstack: its client of it; fronts, backs: by the guest's domid; heed: told
    of each intent before it is done and of each answer before it is heard, and by whom; a test's to
    replace.
    """

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.hypervisor, self.clock = hypervisor, Clock()
        self.behind = VirtualStore(self.clock)
        self.heed: Callable[[LifeSeat, Intent | Event], None] = lambda *_: None
        self.backs: dict[int, LifeSeat] = {}
        self.fronts: dict[int, LifeSeat] = {}
        self._numbers = itertools.count(1)
        self._served: dict[int, tuple[int, bool, int, Callable[[], None]]] = {}
        self._looking: dict[int, bool] = {}  # dom0 does, at disks it may begin; and once more?
        self.toolstack = self.behind.join(abi.DOMID_0, lambda *_: None)
        self.begin_dom0()

    def rest(self) -> None:
        """Go on until nothing is to come."""
        self.clock.run()

    def begin_dom0(self) -> None:
        """dom0's driver, which follows the store; a new one in the place of one that died."""
        self.backs.clear()
        self._looking.clear()
        self.dom0 = self.behind.join(abi.DOMID_0, self._heed_dom0)
        self.dom0.hold(ask(watch(ROOT, TOOLSTACK)), lambda _: None)

    def serve(
        self, domid: int, sectors: int, persistent: bool, vcpu: int, let_go: Callable[[], None]
    ) -> None:
        """How dom0 is to serve a guest's disk, once it finds it. let_go: see BackHands."""
        self._served[domid] = (sectors, persistent, vcpu, let_go)

    def boot(self, domain: Domain, persistent: bool) -> LifeSeat:
        """A guest whose disk is plugged in, and its frontend."""
        domid = domain.domid
        self.behind.introduce(domid)
        client = self.behind.join(domid, lambda *_: self.fronts[domid].tell(Stirred()))
        back = xenbus.backend_path(domid, XVDA)
        vbd = FrontendVbd(domain, XVDA, persistent, back, itertools.count(1))
        hands = FrontHands(Caller(self.hypervisor, domid))
        self.fronts[domid] = LifeSeat(self, vbd, client, hands)
        client.hold(ask(watch(f"{back}/state", "backend")), lambda _: None)
        return self.fronts[domid]

    def destroy(self, domid: int) -> None:
        """A guest dies: it is told nothing more, and hypervisor and store forget it."""
        self.fronts[domid].dead = True
        self.hypervisor.destroy_domain(domid)
        self.behind.release(domid)

    # --- how dom0 finds its disks -----------------------------------------------------------

    def _heed_dom0(self, path: str, token: str) -> None:
        if token != TOOLSTACK:
            self._stir(int(token))
            return
        names = path.removeprefix(ROOT).strip("/").split("/")
        for domid in [int(names[0])] if names[0] else list(self._served):
            if len(names) < 3 or names[2] in ("state", "online") or domid not in self.backs:
                self._stir(domid)

    def _stir(self, domid: int) -> None:
        if domid in self.backs:
            self.backs[domid].tell(Stirred())
        elif domid in self._looking:
            self._looking[domid] = True
        else:
            self._looking[domid] = False
            directory = xenbus.backend_path(domid, XVDA)
            paths = [f"{directory}/{name}" for name in NEEDED]
            self.dom0.hold(look(paths), partial(self._begin, domid, self.dom0))

    def see(self, seat: LifeSeat) -> None:
        """Is dom0 finished with it?"""
        vbd = seat.vbd
        if isinstance(vbd, BackendVbd) and vbd.finished and not vbd.awaited:
            domid = next((at for at, found in self.backs.items() if found is seat), None)
            if domid is not None:
                del self.backs[domid]
                self.dom0.hold(ask(unwatch(f"{vbd.other}/state", str(domid))), lambda _: None)
                self._stir(domid)  # something else may be there by now

    def _begin(self, domid: int, dom0: Client, values: dict[str, bytes] | None) -> None:
        if dom0 is not self.dom0:
            return
        again = self._looking.pop(domid)
        if domid in self.backs:
            return
        if again or values is None:
            self._stir(domid)
            return
        directory = xenbus.backend_path(domid, XVDA)
        entries = {path.removeprefix(f"{directory}/"): value for path, value in values.items()}
        if read_plug(entries, domid, XVDA) is None:
            return
        sectors, persistent, vcpu, let_go = self._served[domid]
        vbd = BackendVbd(domid, XVDA, sectors, persistent, self._numbers)
        hands = BackHands(Caller(self.hypervisor, abi.DOMID_0, vcpu), domid, let_go)
        self.backs[domid] = LifeSeat(self, vbd, dom0, hands)
        dom0.hold(ask(watch(f"{vbd.other}/state", str(domid))), lambda _: None)
