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
from frontend.frames import Domain
from frontend.vbd import FrontendVbd
from hypervisor.hypercalls import Hypervisor
from machine.seat import Hands, Seat
from simulator.hands import BackHands, Caller, FrontHands
from simulator.store_client import Client, Clock, VirtualStore

Key = tuple[int, int]  # a disk: its guest's domid, its device number

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

    behind: the store; toolstack: its client of it; fronts, backs: by disk; heed: told of each
    intent before it is done and of each answer before it is heard, and by whom; a test's to
    replace.
    """

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.hypervisor, self.clock = hypervisor, Clock()
        self.behind = VirtualStore(self.clock)
        self.heed: Callable[[LifeSeat, Intent | Event], None] = lambda *_: None
        self.backs: dict[Key, LifeSeat] = {}
        self.fronts: dict[Key, LifeSeat] = {}
        self._guests: dict[int, Client] = {}  # of the store, by domid
        self._numbers = itertools.count(1)
        self._served: dict[Key, tuple[int, bool, bool, int, int, Callable[[], None]]] = {}
        self._looking: dict[Key, bool] = {}  # dom0 does, at disks it may begin; and once more?
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
        self,
        disk: Key,
        sectors: int,
        persistent: bool,
        vcpu: int,
        let_go: Callable[[], None],
        *,
        read_only: bool = False,
        sector_size: int = abi.SECTOR_SIZE,
    ) -> None:
        """How dom0 is to serve a disk, once it finds it. let_go: see BackHands."""
        self._served[disk] = (sectors, persistent, read_only, sector_size, vcpu, let_go)

    def boot(self, domain: Domain, device: int, persistent: bool) -> LifeSeat:
        """The frontend of a guest's disk that is plugged in; the guest boots with its first."""
        domid = domain.domid
        if domid not in self._guests:
            self.behind.introduce(domid)
            self._guests[domid] = self.behind.join(domid, partial(self._heed_guest, domid))
        client = self._guests[domid]
        back = xenbus.backend_path(domid, device)
        vbd = FrontendVbd(domain, device, persistent, back, itertools.count(1))
        hands = FrontHands(Caller(self.hypervisor, domid))
        seat = self.fronts[domid, device] = LifeSeat(self, vbd, client, hands)
        client.hold(ask(watch(f"{back}/state", str(device))), lambda _: None)
        return seat

    def _heed_guest(self, domid: int, _path: str, token: str) -> None:
        self.fronts[domid, int(token)].tell(Stirred())

    def destroy(self, domid: int) -> None:
        """A guest dies: it is told nothing more, and hypervisor and store forget it."""
        for (whose, _), seat in self.fronts.items():
            seat.dead = seat.dead or whose == domid
        del self._guests[domid]
        self.hypervisor.destroy_domain(domid)
        self.behind.release(domid)

    # --- how dom0 finds its disks -----------------------------------------------------------

    def _heed_dom0(self, path: str, token: str) -> None:
        if token != TOOLSTACK:
            domid, _, device = token.partition("/")
            self._stir((int(domid), int(device)))
            return
        names = path.removeprefix(ROOT).strip("/").split("/")
        for key in list(self._served):
            if all(name in ("", str(part)) for name, part in zip(names, key, strict=False)) and (
                len(names) < 3 or names[2] in ("state", "online") or key not in self.backs
            ):
                self._stir(key)

    def _stir(self, key: Key) -> None:
        if key in self.backs:
            self.backs[key].tell(Stirred())
        elif key in self._looking:
            self._looking[key] = True
        else:
            self._looking[key] = False
            paths = [f"{xenbus.backend_path(*key)}/{name}" for name in NEEDED]
            self.dom0.hold(look(paths), partial(self._begin, key, self.dom0))

    def see(self, seat: LifeSeat) -> None:
        """Is dom0 finished with it?"""
        vbd = seat.vbd
        if isinstance(vbd, BackendVbd) and vbd.finished and not vbd.awaited:
            key = next((at for at, found in self.backs.items() if found is seat), None)
            if key is not None:
                del self.backs[key]
                self.dom0.hold(ask(unwatch(f"{vbd.other}/state", _token(key))), lambda _: None)
                self._stir(key)  # something else may be there by now

    def _begin(self, key: Key, dom0: Client, values: dict[str, bytes] | None) -> None:
        if dom0 is not self.dom0:
            return
        again = self._looking.pop(key)
        if key in self.backs:
            return
        if again or values is None:
            self._stir(key)
            return
        directory = xenbus.backend_path(*key)
        entries = {path.removeprefix(f"{directory}/"): value for path, value in values.items()}
        if read_plug(entries, *key) is None:
            return
        sectors, persistent, read_only, sector_size, vcpu, let_go = self._served[key]
        vbd = BackendVbd(
            *key, sectors, persistent, self._numbers, read_only, sector_size=sector_size
        )
        hands = BackHands(Caller(self.hypervisor, abi.DOMID_0, vcpu), key[0], let_go)
        self.backs[key] = LifeSeat(self, vbd, dom0, hands)
        dom0.hold(ask(watch(f"{vbd.other}/state", _token(key))), lambda _: None)


def _token(key: Key) -> str:
    return f"{key[0]}/{key[1]}"
