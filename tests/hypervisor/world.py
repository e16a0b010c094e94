"""The hypervisor's core on plain memory: domains by number, hypercalls as plain calls."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from common import abi
from common.arena import Arena
from common.counters import HYPERVISOR_COUNTERS
from common.event_channel import event_words
from common.machine_memory import MAPTRACK_HANDLES_MAX
from common.not_done import GNTST_UNFILLED
from frontend.grants import Grants, end_access, grant_access, new_grants
from hypervisor.cpus import Cpus
from hypervisor.domains import Domain, DomainMemory
from machine.hypervisor import build_domain, build_hypervisor, domain_memory, host_memory

RAM_FRAMES = 16
PAGE = abi.XEN_PAGE_SIZE
RW = abi.GNTMAP_HOST_MAP
RO = abi.GNTMAP_HOST_MAP | abi.GNTMAP_READONLY
DEVICE_RW = abi.GNTMAP_DEVICE_MAP
DEVICE_RO = abi.GNTMAP_DEVICE_MAP | abi.GNTMAP_READONLY
READING, WRITING = abi.GTF_READING, abi.GTF_WRITING
RESERVED_DOMIDS = (abi.DOMID_SELF, 0x7FF1, 0x7FF2, 0x7FFF, 0xFFFF)


@dataclass
class Guest:
    """What a domain sees of itself: its RAM, its grant table, its two pages of event words."""

    domid: int
    ram: np.ndarray
    frames: np.ndarray
    grants: Grants
    events: np.ndarray
    counters: np.ndarray
    next_page: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def grant(self, frame: int, *, to: int = 0, readonly: bool = False) -> int:
        """Let domain `to` map `frame`; the gref."""
        gref = int(grant_access(self.grants, to, frame, readonly))
        assert gref
        return gref

    def end_access(self, gref: int) -> bool:
        """Linux's gnttab_end_foreign_access_ref."""
        return bool(end_access(self.grants, gref))

    def entry(self, gref: int) -> np.void:
        """The shared entry, to read or to rewrite."""
        return self.frames.view(abi.GRANT_ENTRY_V1)[gref]

    def status_bits(self, gref: int) -> int:
        """READING and WRITING as the guest sees them now."""
        return int(self.entry(gref)["flags"]) & (READING | WRITING)

    def pending(self, port: int, *, far: bool = False) -> bool:
        """Is `port` pending, at this end or at the far one?"""
        return bool(self._words(far)[0][port >> 6] >> np.uint64(port & 63) & np.uint64(1))

    def masked(self, port: int, *, far: bool = False) -> bool:
        """Is `port` masked, at this end or at the far one?"""
        return bool(self._words(far)[1][port >> 6] >> np.uint64(port & 63) & np.uint64(1))

    def _words(self, far: bool) -> tuple[np.ndarray, np.ndarray]:
        return event_words(self.events[PAGE:] if far else self.events[:PAGE])


class World:
    """dom0 and guests 1 and 2 on a machine of `nr_cpus`, all in one arena; `cpus` may stand in for
    the CPUs."""

    def __init__(
        self,
        *,
        nr_cpus: int = 4,
        policy: str = "mask",
        cpus: Cpus | None = None,
        grant_frames: int = 1,
        nr_handles: int = MAPTRACK_HANDLES_MAX,
    ) -> None:
        self.arena = Arena()
        self.machine = host_memory(self.arena, nr_handles)
        host = self.machine.host
        self.accessed = self.machine.accessed
        self.dirty, self.running = host["dirty"][0, :nr_cpus], host["running"][0, :nr_cpus]
        self.cpu_counters = host["cpus"][0, :nr_cpus]
        self._memory: dict[int, DomainMemory] = {}
        self.guests: dict[int, Guest] = {}
        self.hypervisor = build_hypervisor(
            self.arena,
            self.machine,
            self._memory_of(0, grant_frames),
            nr_cpus=nr_cpus,
            policy=policy,
            cpus_class=(lambda *_, **__: cpus) if cpus else Cpus,
        )
        for domid in (1, 2):
            self.create(domid, grant_frames)

    def create(self, domid: int, grant_frames: int = 1, *, in_store: bool = False) -> Guest:
        """One more domain."""
        memory = self._memory_of(domid, grant_frames)
        build_domain(self.hypervisor, self.machine, domid, memory, in_store=in_store)
        return self.guests[domid]

    def _memory_of(self, domid: int, grant_frames: int) -> DomainMemory:
        """A domain's memory, its counters 0, each of its frames filled with bytes of its own."""
        if domid not in self._memory:
            self._memory[domid] = domain_memory(self.arena, RAM_FRAMES, grant_frames)
        memory = self._memory[domid]
        ram, frames, events = memory
        frame_bytes = np.arange(RAM_FRAMES, dtype=np.uint8) + np.uint8(16 * domid & 0xFF)
        ram[:], frames[:], events[:] = np.repeat(frame_bytes, PAGE), 0, 0
        counters = self.machine.host["hypervisor"][0, domid : domid + 1]
        counters[:] = 0
        self.guests[domid] = Guest(
            domid, ram, frames, new_grants(Arena(), frames), events, counters
        )
        return memory

    def __getitem__(self, domid: int) -> Guest:
        return self.guests[domid]

    def domain(self, domid: int) -> Domain:
        """What the hypervisor keeps of a domain, dying ones too."""
        domain = self.hypervisor.domains.find_dying(domid)
        assert domain is not None
        return domain

    def handles_used(self, domid: int) -> int:
        """Handles in the domain's maptrack that stand for a mapping."""
        return int(self.domain(domid).maptrack.list["used"][0])

    def pins(self, domid: int) -> int:
        """Mappings and copies that hold a page of the domain, by its pin words."""
        pins = np.ascontiguousarray(self.domain(domid).grants.active["pin"])
        return int(pins.view(np.uint8).sum())

    def counted(self, domid: int) -> dict[str, int]:
        """The domain's counters that are not 0."""
        row = self[domid].counters[0]
        return {name: int(row[name]) for name in HYPERVISOR_COUNTERS.names or () if row[name]}

    def by_cpu(self, name: str) -> list[int]:
        """A counter of the CPUs."""
        return [int(count) for count in self.cpu_counters[name]]

    def call(
        self,
        number: int,
        cmd: int,
        args: np.ndarray,
        *,
        by: int = 0,
        vcpu: int = 0,
        waited: bool = False,
    ) -> int:
        """One hypercall; `args` is filled in as the caller would find it."""
        payload = bytearray(args.tobytes())
        rc = self.hypervisor.hypercall(by, vcpu, number, cmd, payload, waited)
        args[:] = np.frombuffer(payload, args.dtype)
        return rc

    def grant_table_op(
        self, cmd: int, ops: np.ndarray, *, by: int = 0, vcpu: int = 0, waited: bool = False
    ) -> np.ndarray:
        """A grant-table hypercall that is well-formed; the ops with their statuses, all filled."""
        number = abi.HYPERVISOR_GRANT_TABLE_OP
        ops["status"] = GNTST_UNFILLED
        assert self.call(number, cmd, ops, by=by, vcpu=vcpu, waited=waited) == 0
        assert (ops["status"] != GNTST_UNFILLED).all()
        return ops

    def map(self, gref: int, flags: int = RW, *, of: int = 1, by: int = 0) -> np.void:
        """Map one grant; the op as it came back."""
        return self.map_all([(of, gref)], flags, by=by)[0]

    def map_all(
        self, grants: Sequence[tuple[int, int]], flags: int = RW, *, by: int = 0
    ) -> np.ndarray:
        """Map (domid, gref) pairs in one hypercall, each at a page of its own."""
        ops = np.zeros(len(grants), abi.GNTTAB_MAP_GRANT_REF)
        ops["dom"], ops["ref"], ops["flags"] = *np.array(grants).reshape(-1, 2).T, flags
        for op in ops:
            op["host_addr"] = next(self[by].next_page) * PAGE
        return self.grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, ops, by=by)

    def unmap(
        self,
        mapped: np.void,
        *,
        by: int = 0,
        host_addr: int | None = None,
        dev_bus_addr: int | None = None,
    ) -> int:
        """Unmap what a map op says, or as overridden; the status."""
        ops = unmap_ops(np.array([mapped]))
        ops["host_addr"] = ops["host_addr"] if host_addr is None else host_addr
        ops["dev_bus_addr"] = ops["dev_bus_addr"] if dev_bus_addr is None else dev_bus_addr
        self.grant_table_op(abi.GNTTABOP_UNMAP_GRANT_REF, ops, by=by)
        return int(ops["status"][0])

    def unmap_all(
        self, mapped: np.ndarray, *, by: int = 0, vcpu: int = 0, waited: bool = False
    ) -> list[int]:
        """Unmap what map ops say in one hypercall; the statuses."""
        cmd = abi.GNTTABOP_UNMAP_GRANT_REF
        ops = self.grant_table_op(cmd, unmap_ops(mapped), by=by, vcpu=vcpu, waited=waited)
        return [int(status) for status in ops["status"]]

    def copy(self, *, by: int = 0, **fields: int) -> int:
        """One copy; fields are `source_ref`, `dest_offset`, `len`... A ref sets its flag."""
        ops = np.zeros(1, abi.GNTTAB_COPY)
        fill_copy(ops[0], **fields)
        return int(self.grant_table_op(abi.GNTTABOP_COPY, ops, by=by)["status"][0])

    def event_op(
        self, cmd: int, dtype: np.dtype[np.void], *, by: int, **fields: int
    ) -> tuple[int, np.void]:
        """An event-channel hypercall: its rc, and the struct as it came back."""
        args = np.zeros(1, dtype)
        for name, value in fields.items():
            args[name] = value
        return self.call(abi.HYPERVISOR_EVENT_CHANNEL_OP, cmd, args, by=by), args[0]


def unmap_ops(mapped: np.ndarray) -> np.ndarray:
    """The unmaps that take back all that map ops have mapped."""
    ops = np.zeros(len(mapped), abi.GNTTAB_UNMAP_GRANT_REF)
    ops["handle"] = mapped["handle"]
    ops["host_addr"] = mapped["host_addr"] * ((mapped["flags"] & abi.GNTMAP_HOST_MAP) != 0)
    device = (mapped["flags"] & abi.GNTMAP_DEVICE_MAP) != 0
    ops["dev_bus_addr"] = mapped["dev_bus_addr"] * device
    return ops


def fill_copy(op: np.void, **fields: int) -> None:
    """Fill in a copy op; an end with no domid given is the caller's own."""
    op["source"]["domid"] = op["dest"]["domid"] = abi.DOMID_SELF
    for name, value in fields.items():
        end, _, part = name.partition("_")
        if part:
            op[end][part] = value
        else:
            op[name] = value
    op["flags"] |= abi.GNTCOPY_SOURCE_GREF * ("source_ref" in fields)
    op["flags"] |= abi.GNTCOPY_DEST_GREF * ("dest_ref" in fields)
