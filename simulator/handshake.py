"""The handshake in virtual time: both ends' real drivers, a real xenstored, no process.

Owns: a clock of its own, on which the load has not begun; the store and its clients' connections;
dom0's way to find its disks; each end's hands on the hypervisor core. What the ring is used for
between Connected and Closing is whoever's it is who made the `World`.
Rules
1. Each thing takes its time, and whoever is dead by then does nothing: a crash can come before
   anything that is done, and after it, before anybody is told (`World.heed`).
2. What a client of the store is sent comes in order, as from a socket.
"""

import errno
import heapq
import itertools
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar, cast

import numpy as np

from backend.plug import NEEDED, read_plug
from backend.vbd import BackendVbd
from common import abi, xenbus
from common.faults import PeerFault
from common.handshake import Event, Fail, Intent, Leave, Op, Stirred, Timeout
from common.xenstore_exchange import Exchange, Talk
from common.xenstore_talks import ask, look, unwatch, watch
from frontend.vbd import Domain, FrontendVbd
from hypervisor.hypercalls import Hypervisor
from machine.connection import map_ring_op, unmap_ring_op
from machine.plug import XVDA
from machine.seat import Hands, Seat
from xenstored.connection import Connection
from xenstored.store import Store, go_on

STORE_NS: Final = 20_000  # one way, and what it takes to serve
WAKE_NS: Final = 2_000  # from a hypercall's return, or a ring's end, to who is told
ROOT: Final = "/local/domain/0/backend/vbd"
TOOLSTACK: Final = "toolstack"

T = TypeVar("T")


class Clock:
    """What is to come, in the order of its time. `now_ns`: the time."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._serial = itertools.count()
        self._coming: list[tuple[int, int, Callable[[], None]]] = []

    def at(self, ns: int, then: Callable[[], None]) -> None:
        """Call `then` at `ns`."""
        heapq.heappush(self._coming, (ns, next(self._serial), then))

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        """Call `then` after so many seconds: what a Seat's timers are."""
        self.at(self.now_ns + int(seconds * 1e9), then)

    def run(self) -> None:
        """Until nothing is to come."""
        while self._coming:
            self.now_ns, _, then = heapq.heappop(self._coming)
            then()


class Client:
    """A client of the store, of domain `domid`. heed: told the path and token of each event."""

    def __init__(self, world: "World", domid: int, heed: Callable[[str, str], None]) -> None:
        self.session = world.store.join(domid)
        self._connection = Connection(world.store, self.session)
        self._world, self._heed = world, heed
        self._exchange = Exchange()
        self._last_ns = [0, 0]  # when the last bytes are there; each way has its order
        self.closed = False

    def hold(self, talk: Talk[T], then: Callable[[T], None]) -> None:
        """See Storing."""
        self._exchange.hold(talk, then)
        self.send()

    def send(self) -> None:
        """Send the store what there is to send."""
        if self._exchange.out:
            data = bytes(self._exchange.out)
            self._exchange.out.clear()
            self._later(0, partial(self._serve, data))

    def receive(self) -> None:
        """Receive what the store has sent."""
        if data := self._connection.outgoing():
            self._connection.sent(len(data))
            self._later(1, partial(self._take, data))

    def close(self) -> None:
        """Its domain, or the driver whose it is, is gone."""
        if not self.closed:
            self.closed = True
            self._connection.close()
            self._world.flush()

    def _later(self, way: int, then: Callable[[], None]) -> None:
        clock = self._world.clock
        self._last_ns[way] = max(self._last_ns[way], clock.now_ns + self._world.delay(STORE_NS))
        clock.at(self._last_ns[way], then)

    def _serve(self, data: bytes) -> None:
        if self.closed:
            return
        self._connection.feed(data)
        while self._connection.runnable:
            self._connection.step(lambda: True)
            self._world.store.touch([self.session])
            self._world.flush()

    def _take(self, data: bytes) -> None:
        if self.closed:
            return
        self._exchange.feed(data)
        while self._exchange.events:
            self._heed(*self._exchange.events.popleft())
        self.send()


class LifeSeat(Seat):
    """A seat whose end may die. `world.heed` is told before what it does and what it hears."""

    def __init__(self, world: "World", vbd: BackendVbd | FrontendVbd, client: Client, hands: Hands):
        super().__init__(vbd, client, hands, world.clock)
        self.dead = False
        self.errors: list[str] = []
        self._world = world

    def tell(self, event: Event) -> None:
        """As any seat, after a while; but who hears something may have died before."""
        if isinstance(event, Stirred | Leave | Timeout):
            self._hear(event)
        else:
            self._world.heed(self, event)
            clock = self._world.clock
            clock.at(clock.now_ns + self._world.delay(WAKE_NS), partial(self._hear, event))

    def _hear(self, event: Event) -> None:
        if not self.dead:
            super().tell(event)
            self._world.see(self)

    def do(self, intent: Intent) -> None:
        """As any seat; but it may die before."""
        if isinstance(intent, Fail):
            self.errors.append(intent.reason)
        elif not self.dead:
            self._world.heed(self, intent)
        if not self.dead:
            super().do(intent)


class FrontHands:
    """A guest's: its channel."""

    def __init__(self, world: "World", domid: int) -> None:
        self._world, self._domid = world, domid
        self._ended: Callable[[str], None] | None = None

    def call(self, op: Op, argument: int) -> int:
        """See Hands."""
        if op == Op.ALLOC_UNBOUND:
            dtype = abi.EVTCHN_ALLOC_UNBOUND
            named = {"dom": abi.DOMID_SELF, "remote_dom": argument}
            args = self._world.event_op(self._domid, abi.EVTCHNOP_ALLOC_UNBOUND, dtype, **named)
            return int(args["port"][0])
        assert op == Op.CLOSE
        self._world.event_op(self._domid, abi.EVTCHNOP_CLOSE, abi.EVTCHN_CLOSE, port=argument)
        return 0

    def start(self, keeps: bool, ended: Callable[[str], None]) -> None:
        """See Hands."""
        self._ended = ended

    def stop(self) -> None:
        """See Hands."""
        self.end("")

    def end(self, why: str) -> None:
        """The disk is used no more."""
        assert self._ended is not None
        ended, self._ended = self._ended, None
        ended(why)

    def fail(self, reason: str) -> None:
        """See Hands: the seat keeps it."""


class BackHands(FrontHands):
    """dom0's, on `vcpu`. let_go: unmaps what the ring's thread has kept."""

    def __init__(
        self, world: "World", frontend_domid: int, vcpu: int, let_go: Callable[[], None]
    ) -> None:
        super().__init__(world, abi.DOMID_0)
        self._frontend_domid, self._vcpu, self._let_go = frontend_domid, vcpu, let_go

    def call(self, op: Op, argument: int) -> int:
        """See Hands."""
        world = self._world
        if op == Op.BIND_INTERDOMAIN:
            dtype = abi.EVTCHN_BIND_INTERDOMAIN
            named = {"remote_dom": self._frontend_domid, "remote_port": argument}
            args = world.event_op(abi.DOMID_0, abi.EVTCHNOP_BIND_INTERDOMAIN, dtype, **named)
            return int(args["local_port"][0])
        if op == Op.MAP_RING:
            self._ring = map_ring_op(abi.XEN_PAGE_SIZE, argument, self._frontend_domid)
            world.grant_op(self._vcpu, abi.GNTTABOP_MAP_GRANT_REF, self._ring)
            if (status := int(self._ring["status"][0])) != abi.GNTST_OKAY:
                raise PeerFault(f"ring-ref {argument} cannot be mapped: GNTST {status}")
            return 0
        if op == Op.UNMAP_RING:
            unmapped = unmap_ring_op(self._ring)
            world.grant_op(self._vcpu, abi.GNTTABOP_UNMAP_GRANT_REF, unmapped)
            assert unmapped["status"][0] == abi.GNTST_OKAY
            return 0
        return super().call(op, argument)

    def stop(self) -> None:
        """See Hands."""
        self._let_go()
        super().stop()


class World:
    """A store, a hypervisor, and the ends of disks. `rest` runs it until nothing is to come.

    delay: what becomes of a time (ns); heed: told of each intent before it is done and of each
    answer before it is heard, by whom; both are a test's to replace.
    """

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.hypervisor, self.clock, self.store = hypervisor, Clock(), Store()
        self.delay: Callable[[int], int] = lambda ns: ns
        self.heed: Callable[[LifeSeat, Intent | Event], None] = lambda *_: None
        self.backs: dict[int, LifeSeat] = {}  # by the frontend's domid, as all here
        self.fronts: dict[int, LifeSeat] = {}
        self._numbers = itertools.count(1)
        self._served: dict[int, tuple[int, bool, int, Callable[[], None]]] = {}
        self._clients: dict[object, Client] = {}
        self.toolstack = self._join(abi.DOMID_0, lambda *_: None)
        self.begin_dom0()

    def rest(self) -> None:
        """Go on until nothing is to come."""
        self.clock.run()

    def flush(self) -> None:
        """Have the store tell what it has to tell, and send what it has to send."""
        while self.store.announcements:
            go_on(self.store.announcements.popleft(), lambda: True)
        while touched := self.store.take_touched():
            for session in touched:
                if session in self._clients and not self._clients[session].closed:
                    self._clients[session].receive()

    # --- domains ----------------------------------------------------------------------------

    def begin_dom0(self) -> None:
        """dom0's driver, which follows the store; a new one in the place of one that died."""
        self.backs.clear()
        self.dom0 = self._join(abi.DOMID_0, self._heed_dom0)
        self.dom0.hold(ask(watch(ROOT, TOOLSTACK)), lambda _: None)

    def serve(
        self, domid: int, sectors: int, persistent: bool, vcpu: int, let_go: Callable[[], None]
    ) -> None:
        """How dom0 is to serve a guest's disk, once it finds it."""
        self._served[domid] = (sectors, persistent, vcpu, let_go)

    def boot(self, domain: Domain, persistent: bool) -> LifeSeat:
        """A guest whose disk is plugged in, and its frontend."""
        domid = domain.domid
        self.store.announce(self.store.introduce(domid))
        client = self._join(domid, lambda *_: self.fronts[domid].tell(Stirred()))
        back = xenbus.backend_path(domid, XVDA)
        vbd = FrontendVbd(domain, XVDA, persistent, back, itertools.count(1))
        self.fronts[domid] = LifeSeat(self, vbd, client, FrontHands(self, domid))
        client.hold(ask(watch(f"{back}/state", "backend")), lambda _: None)
        return self.fronts[domid]

    def destroy(self, domid: int) -> None:
        """A guest dies: it is told nothing more, and hypervisor and store forget it."""
        self.fronts[domid].dead = True
        self.hypervisor.destroy_domain(domid)
        self.store.announce(self.store.release(domid))
        self.flush()

    def _join(self, domid: int, heed: Callable[[str, str], None]) -> Client:
        client = Client(self, domid, heed)
        self._clients[client.session] = client
        return client

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
        else:
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
        if domid in self.backs or dom0 is not self.dom0:
            return
        if values is None:
            self._stir(domid)
            return
        directory = xenbus.backend_path(domid, XVDA)
        entries = {path.removeprefix(f"{directory}/"): value for path, value in values.items()}
        if read_plug(entries, domid, XVDA) is None:
            return
        sectors, persistent, vcpu, let_go = self._served[domid]
        vbd = BackendVbd(domid, XVDA, sectors, persistent, self._numbers)
        hands = BackHands(self, domid, vcpu, let_go)
        self.backs[domid] = LifeSeat(self, vbd, dom0, hands)
        dom0.hold(ask(watch(f"{vbd.other}/state", str(domid))), lambda _: None)

    # --- hypercalls -------------------------------------------------------------------------

    def event_op(self, domid: int, cmd: int, dtype: np.dtype, **fields: int) -> np.ndarray:
        """EVTCHNOP_*. Raises PeerFault if it is refused."""
        args = np.zeros(1, dtype)
        for name, value in fields.items():
            args[name] = value
        if (rc := self._call(domid, 0, abi.HYPERVISOR_EVENT_CHANNEL_OP, cmd, args)) != 0:
            raise PeerFault(f"event channel op {cmd}: {errno.errorcode[-rc]}")
        return args

    def grant_op(self, vcpu: int, cmd: int, ops: np.ndarray) -> None:
        """GNTTABOP_* of dom0's `vcpu`: each entry's own status says how it went."""
        rc = self._call(abi.DOMID_0, vcpu, abi.HYPERVISOR_GRANT_TABLE_OP, cmd, ops)
        assert rc == 0, f"hypercall {cmd}: {rc}"

    def _call(self, domid: int, vcpu: int, number: int, cmd: int, args: np.ndarray) -> int:
        payload = cast(bytearray, args.view(np.uint8).data)
        return self.hypervisor.hypercall(domid, vcpu, number, cmd, payload, False)
