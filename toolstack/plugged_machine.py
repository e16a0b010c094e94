"""A machine whose guests' disks come and go while it runs.

Owns: which disks each guest has now, by its own orders and by what others have written to the
store; what is refused before anything is written; and the memory of ram disks that come and go.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from common.abi import SECTOR_SIZE
from common.xenbus import CONNECTED, backend_path, frontend_path, parse_number, parse_state
from common.xenstore_talks import children, look
from machine.guest_disks import number_of
from toolstack.disk import GuestDisk
from toolstack.disks import Disk, DiskSpec
from toolstack.failures import GuestFailed, MachineError
from toolstack.hotplug import Attaching, Detaching, Plugging
from toolstack.loadspec import VDEVS, ConfigError, shown
from toolstack.machine import Machine

LOOK_S: Final = 0.05
KEYS: Final = ("state", "params", "mode", "sectors")


class Other(NamedTuple):
    """A disk that the store has and that was not attached here. values: of its backend's KEYS."""

    domid: int
    vdev: str
    device: int
    values: dict[str, str]
    connected: bool


class PluggedMachine(Machine):
    """See Machine."""

    _plugs: list[tuple[Plugging, Disk | None]]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._plugs = []
        self._resizing: set[tuple[int, int]] = set()  # disks, by domid and number

    def attach_disk(self, domid: int, disk: str | Mapping[str, Any] | DiskSpec) -> GuestDisk:
        """Give a running guest one more disk; it is Connected on return. Raises ConfigError,
        MachineError."""
        plugging = self._awaited(self.begin_attach(domid, DiskSpec.of(disk)))
        return self._guests[domid].numbered(VDEVS.index(plugging.vdev))

    def detach_disk(self, domid: int, vdev: str, force: bool = False) -> None:
        """Take a disk from a running guest; nothing of it is left on return. force: whether the
        guest lets go of it or not. Raises ConfigError, MachineError."""
        self._awaited(self.begin_detach(domid, vdev, force))

    def begin_attach(self, domid: int, spec: DiskSpec) -> Plugging:
        """The same as an order: it is looked at by `look_at_plugs`."""
        with self._blamed():
            others = self._others_of(domid)
            self._crew.require_told(domid, "attach")
            disk = self._new_disk(domid, spec, others)
            self._with(*(d for p, d in self._plugs if d and isinstance(p, Attaching)), disk)
            self._require_store(disk)
            try:
                self._stores.give([disk])
                given = self._store, domid, disk.vdev, disk.spec.params, disk.read_only
                plugging = Attaching(*given)
            except BaseException:
                self._let_go_of_store(disk)
                raise
            self._plugs.append((plugging, disk))
            return plugging

    def begin_detach(self, domid: int, vdev: str, force: bool = False) -> Plugging:
        """The same as an order: it is looked at by `look_at_plugs`."""
        with self._blamed():
            others = self._others_of(domid)
            disk = next((disk for disk in self._disks[domid] if disk.vdev == vdev), None)
            if disk is None and vdev not in [other.vdev for other in others]:
                there = sorted([*(d.vdev for d in self._disks[domid]), *(o.vdev for o in others)])
                has = ", ".join(there) or "none"
                raise ConfigError(
                    f"vdev: {shown(vdev)} is no disk of guest {domid}, which has {has}"
                )
            if not force:
                self._crew.require_told(domid, "detach")
            if any((p.domid, p.vdev) == (domid, vdev) for p, _ in self._plugs):
                raise MachineError(f"guest {domid}'s {vdev} is on its way already")
            if disk is not None and (domid, disk.number) in self._resizing:
                raise MachineError(f"{disk} is being resized: try again")
            if disk is not None and not force and (use := self._crew.use_of(disk)):
                raise MachineError(f"{disk} {use}: end that first; --force has it fail")
            plugging = Detaching(self._store, domid, vdev, force)
            self._plugs.append((plugging, disk))
            return plugging

    def look_at_plugs(self) -> None:
        """Take in what has come for disks on their way. Raises what the store's client does."""
        self._store.receive(0)
        tokens = {token for _, token in self._store.events()}
        for plugging, disk in list(self._plugs):
            if death := self._supervisor.death_of(self._names[plugging.domid]):
                plugging.guest_died(death)
            if plugging.token in tokens:
                plugging.stir()
            plugging.look_at_clock()
            if plugging.ended:
                self._plugs.remove((plugging, disk))
                self._settle(plugging, disk)

    def follow(self) -> list[Other]:
        """See which disks others have plugged in or out, by writing to the store alone: those are
        from now on the machine's as any. Returns those that are not (yet)."""
        others = []
        with self._blamed():
            for domid, name in self._names.items():
                if domid in self._guests and name in self._crew.living():
                    others += self._follow(domid)
        return others

    # --- what is refused ----------------------------------------------------------------------

    def _others_of(self, domid: int) -> list[Other]:
        """Raises ConfigError, GuestFailed, if that guest has no disks to come and go."""
        if domid not in self._domids:
            raise ConfigError(f"guest: {domid} is not one of 1..{len(self._domids)}")
        if self.topology.verify_state:
            raise ConfigError("disk: a machine with state files keeps the disks that it has")
        self._supervisor.check()
        self._crew.living()
        if death := self._supervisor.death_of(self._names[domid]):
            raise GuestFailed(death)
        return [other for other in self.follow() if other.domid == domid]

    def _require_store(self, disk: Disk) -> None:
        """Raises ConfigError, MachineError, if its store is one that cannot be shared now."""
        sharing = [each for each in self.topology.every_disk() if each.key == disk.key]
        if disk.spec.kind == "ram" and sharing and not self._stores.keeps(disk):
            raise ConfigError(
                f"disk: {sharing[0]} was plugged in by hand: its memory is dom0's own, and {disk}"
                " cannot have it, too"
            )
        if any((each.domid, each.number) in self._resizing for each in sharing):
            raise MachineError(f"{sharing[0]}, which has the same store, is being resized")

    def _new_disk(self, domid: int, spec: DiskSpec, others: Sequence[Other]) -> Disk:
        coming = [p.vdev for p, _ in self._plugs if p.domid == domid]
        taken = {*(disk.vdev for disk in self._disks[domid]), *(o.vdev for o in others), *coming}
        if spec.vdev in taken:
            raise ConfigError(f"disk: guest {domid} has an {spec.vdev} already")
        if len(taken) >= (room := self._places[domid]):
            raise ConfigError(
                f"disk: guest {domid} has room for {room} disks, and they are there; one may be"
                " detached, or `up --spare-disks` make room"
            )
        vdev = spec.vdev or next(vdev for vdev in VDEVS if vdev not in taken)
        return Disk(domid, VDEVS.index(vdev), vdev, spec)

    # --- what disks there are -----------------------------------------------------------------

    def _with(self, *more: Disk) -> None:
        """Raises ConfigError, if the machine could not be with these, too."""
        topology = self.topology
        for disk in more:
            topology = topology.with_disks_of(disk.domid, [*topology.disks_of(disk.domid), disk])

    def _awaited(self, plugging: Plugging) -> Plugging:
        with self._blamed():
            while not plugging.ended:
                self._store.receive(LOOK_S)
                self._supervisor.check()
                self.look_at_plugs()
        if plugging.failure:
            raise plugging.error()
        return plugging

    def _settle(self, plugging: Plugging, disk: Disk | None) -> None:
        """It has arrived, or has gone; or it has not."""
        if isinstance(plugging, Attaching):
            assert disk is not None
            if plugging.failure:
                self._let_go_of_store(disk)
            else:
                try:
                    self._add(disk, plugging.size)
                except ConfigError as error:  # what has changed meanwhile does not go with it
                    plugging.failure = str(error)
                    self._plugs.append((Detaching(self._store, *plugging.place, True), disk))
        elif not plugging.failure and disk is not None:
            self._remove(disk)

    def _add(self, disk: Disk, size: int) -> None:
        self._have(disk.domid, {**dict(self._sized(disk.domid)), disk: size})

    def _remove(self, disk: Disk) -> None:
        sized = self._sized(disk.domid)  # by number: it may have been resized meanwhile
        self._have(disk.domid, {d: size for d, size in sized if d.number != disk.number})
        self._let_go_of_store(disk)

    def _sized(self, domid: int) -> list[tuple[Disk, int]]:
        guest = self._guests[domid]
        return [(disk, guest.numbered(disk.number).size) for disk in self._disks[domid]]

    def _have(self, domid: int, sizes: dict[Disk, int]) -> None:
        self.topology = self.topology.with_disks_of(domid, list(sizes))
        self._disks[domid] = self.topology.disks_of(domid)
        rows = self._sight.rows
        rows[domid] = max(rows[domid], self.topology.rows_of(domid))
        self._stats[domid].widen(rows[domid])
        self._guests[domid] = self._guest(domid, list(sizes.values()))

    def _let_go_of_store(self, disk: Disk) -> None:
        on_their_way = [other for _, other in self._plugs if other is not None]
        if not any(other.key == disk.key for other in (*self.topology.every_disk(), *on_their_way)):
            self._stores.forget([disk])

    def _follow(self, domid: int) -> list[Other]:
        names = self._store.run(children(f"/local/domain/0/backend/vbd/{domid}"))
        on_their_way = [p.device for p, _ in self._plugs if p.domid == domid]
        for disk in self._disks[domid]:
            if str(disk.device) not in names and disk.device not in on_their_way:
                self._remove(disk)
        known = {*(disk.device for disk in self._disks[domid]), *on_their_way}
        found = [self._other(domid, int(name)) for name in names if name.isdigit()]
        unknown = [other for other in found if other is not None and other.device not in known]
        return [other for other in unknown if not self._adopt(other)]

    def _other(self, domid: int, device: int) -> Other | None:
        number, back = number_of(device), backend_path(domid, device)
        if number is None or device in [disk.device for disk in self._disks[domid]]:
            return None
        front = f"{frontend_path(domid, device)}/state"
        values = self._store.run(look([*(f"{back}/{key}" for key in KEYS), front])) or {}
        its = {key: values.get(f"{back}/{key}", b"").decode("latin-1") for key in KEYS}
        states = [parse_state(values.get(path)) for path in (f"{back}/state", front)]
        return Other(domid, VDEVS[number], device, its, states == [CONNECTED, CONNECTED])

    def _adopt(self, other: Other) -> bool:
        sectors = parse_number(other.values["sectors"].encode("latin-1"), 1 << 51)
        if not other.connected or sectors is None:
            return False
        access = "ro" if other.values["mode"] == "r" else "rw"
        try:
            spec = DiskSpec.of(f"{other.values['params']},vdev={other.vdev},access={access}")
            self._with(disk := Disk(other.domid, VDEVS.index(other.vdev), other.vdev, spec))
        except ConfigError:
            return False
        self._add(disk, sectors * SECTOR_SIZE)
        return True

    def _shut_down(self) -> None:
        self.follow()
        super()._shut_down()
