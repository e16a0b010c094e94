"""A disk gets another size: in which order its store, its backend, the toolstack and its guest do.

Owns: what can be resized, and to what. As Linux's backend does it (xen_vbd_resize): the store's own
size changes, dom0 takes it, and announces `sectors` with its `state` written again, so that the
frontend looks. Rules
1. What lies beyond an end is answered ERROR before it is taken away, and there before it is
   announced.
2. A ram disk's memory cannot become shorter: whoever has it mapped would die of it. Its pages go.
3. A guest that does not take the new size is said, and holds up nobody: the disk has it all the
   same.
"""

import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from common.abi import SECTOR_SIZE
from common.targets import SIZE_MAX
from common.xenbus import backend_path
from common.xenstore import XenStoreClient
from common.xenstore_talks import write_if_there
from toolstack.child import Child
from toolstack.config import size_text
from toolstack.conversation import Asking
from toolstack.disks import Disk, DiskSpec
from toolstack.failures import GuestFailed, MachineError
from toolstack.loadspec import ConfigError
from toolstack.settings import Settings
from toolstack.stores import Stores

TAKEN_S: Final = 10.0  # a guest's time to take a size


def checked_size(disk: Disk, nbytes: object) -> int:
    """`nbytes`, if this disk can have as many. Raises ConfigError."""
    what = disk.spec.what
    if what.kind == "nbd" or what.volatile:
        kind = "an NBD server's" if what.kind == "nbd" else "volatile"
        raise ConfigError(f"resize: {disk} is {kind}; ram, null and file disks can be resized")
    sector = disk.spec.sector
    if not isinstance(nbytes, int) or not sector <= nbytes <= SIZE_MAX or nbytes % sector:
        raise ConfigError(
            f"size: {nbytes if isinstance(nbytes, int) else 'it'} is not {sector}..{SIZE_MAX}"
            f" bytes, a multiple of {sector}"
        )
    return nbytes


def sharing(disk: Disk, disks: Sequence[Disk]) -> list[Disk]:
    """The disks whose store is this one's, it among them."""
    if disk.spec.kind != "file":
        return [other for other in disks if other.key == disk.key]
    files = {other: _path_of(other) for other in disks if other.spec.kind == "file"}
    return [other for other, path in files.items() if path == files[disk]]


def _path_of(disk: Disk) -> str:
    return os.path.realpath(disk.spec.what.path_of(disk.domid))


def with_size(disk: Disk, nbytes: int) -> Disk:
    """The disk as it is said to be then."""
    if disk.spec.kind == "file":
        return disk
    target = f"{disk.spec.kind}:{size_text(nbytes)}"
    return disk._replace(spec=DiskSpec.of({**_said(disk.spec), "target": target}))


def with_disks(topology: Settings, changed: Mapping[tuple[int, int], Disk]) -> Settings:
    """The topology in which these disks, by domid and number, are others."""
    guests = []
    for domid in topology.domids:
        disks = [changed.get((domid, disk.number), disk) for disk in topology.disks_of(domid)]
        texts = [DiskSpec.of({**_said(disk.spec), "vdev": disk.vdev}) for disk in disks]
        guests.append({"domid": domid, "disks": texts})
    given = {**topology.given(), "guest": guests, "buffer_mib": topology.buffer_mib}
    return type(topology)(**given)


def _said(spec: DiskSpec) -> dict[str, str]:
    fields = {name: getattr(spec, name) for name in DiskSpec.model_fields}
    return {name: value for name, value in fields.items() if value != ""}


class Resize:
    """Of `disks`, which are one store's, from `before` to `nbytes`. children: the machine's
    processes; store: the toolstack's; note: told once their backends have taken it.
    """

    def __init__(
        self,
        children: Mapping[str, Child],
        store: XenStoreClient,
        stores: Stores,
        disks: Sequence[Disk],
        before: int,
        nbytes: int,
        note: Callable[[], None],
    ) -> None:
        self._children, self._store, self._stores = children, store, stores
        self._disks, self._before, self._nbytes, self._note = disks, before, nbytes, note
        for disk in disks:
            child = self._guest_of(disk)
            if child.death:
                raise GuestFailed(child.death)
            child.hold.allow("resize")
        if disks[0].spec.kind == "file":
            _check_file(_path_of(disks[0]), nbytes)

    def asking(self) -> Asking:
        """See Conversation. Raises MachineError."""
        grows = self._nbytes >= self._before
        if grows:  # if dom0 dies from here on, the next one finds it grown
            self._change_store()
            self._write_params()
        for disk in self._disks:
            self._guest_of(disk).sizes.pop(disk.number, None)
        try:
            for disk in self._disks:
                yield "dom0", ("resize", disk.domid, disk.device, self._nbytes // SECTOR_SIZE)
        except MachineError:
            if grows:
                self._note()
            raise
        self._note()
        if not grows:  # not before: to a guest that has more, the next dom0 may not offer less
            self._write_params()
        deadline = time.monotonic() + TAKEN_S
        while (waiting := self._waiting()) and time.monotonic() < deadline:
            yield None
        if not grows:
            self._change_store()
        if waiting:
            raise MachineError(
                f"{', '.join(map(str, waiting))}: has the new size, which its guest does not take"
            )

    def _guest_of(self, disk: Disk) -> Child:
        return self._children[f"guest-{disk.domid}"]

    def _waiting(self) -> list[Disk]:
        """Disks whose guests, living, and neither paused nor suspended, do not know it yet."""
        if self._nbytes == self._before:
            return []
        guests = [(disk, self._guest_of(disk)) for disk in self._disks]
        return [
            disk
            for disk, guest in guests
            if guest.sizes.get(disk.number) != self._nbytes and not guest.death
            if not guest.hold.why
        ]

    def _write_params(self) -> None:
        """So a dom0 that is started again opens them as they are."""
        for disk in self._disks:
            params = with_size(disk, self._nbytes).spec.params
            path = backend_path(disk.domid, disk.device)
            self._store.run(write_if_there(path, {"params": params}, whole=False))

    def _change_store(self) -> None:
        disk = self._disks[0]
        if disk.spec.kind == "ram":
            self._stores.resize(disk, self._nbytes)
        elif disk.spec.kind == "file":
            _resize_file(_path_of(disk), self._nbytes)


def _is_device(path: str) -> bool:
    return stat.S_ISBLK(os.stat(path).st_mode)


def _check_file(path: str, nbytes: int) -> None:
    """Can it be made so long, or is it a device of that size? Raises MachineError."""
    try:
        if not _is_device(path):
            if not os.access(path, os.W_OK):
                raise MachineError(f"{path}: may not be written, and so not be resized")
            return
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.lseek(fd, 0, os.SEEK_END)
        finally:
            os.close(fd)
    except OSError as error:
        raise MachineError(f"{path}: {error.strerror}") from None
    if there != nbytes:
        raise MachineError(f"{path} is a block device of {there} bytes, and not {nbytes}")


def _resize_file(path: str, nbytes: int) -> None:
    """Raises MachineError."""
    try:
        if not _is_device(path):
            os.truncate(path, nbytes)
    except OSError as error:
        raise MachineError(f"{path}: {error.strerror}") from None
