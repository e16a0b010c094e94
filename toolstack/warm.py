"""Compiles, or loads from the cache, everything a machine runs, in one tiny machine in memory.

The fork server imports this module before its first fork, so that each process of the machine is
born with its compiled code in place and shares those pages with the others.
"""

import numpy as np

from backend import phases, worker
from backend.blkback import new_blkback, slots_needed
from backend.foreign_memory import map_granted, unmap_slots
from common.abi import (
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    DOMID_0,
    GNTTAB_COPY,
    GNTTAB_MAP_GRANT_REF,
    GNTTAB_UNMAP_GRANT_REF,
    GNTTABOP_COPY,
    GNTTABOP_MAP_GRANT_REF,
    GNTTABOP_UNMAP_GRANT_REF,
    HYPERVISOR_GRANT_TABLE_OP,
    SECTORS_PER_PAGE,
    XEN_PAGE_SIZE,
)
from common.arena import Arena
from common.atomics import store_release
from common.copying import address_of
from common.event_channel import clear_mask, clear_pending, event_words, set_pending
from common.histogram import BUCKETS
from common.hypercall_gate import PENDING, call, collect, gate_bytes, new_gate, no_gate
from common.machine_memory import STATS
from common.spinning import new_spin
from frontend import effects, load
from frontend.blkfront import end_every_access
from frontend.blkfront_info import PER_REQUEST, PERSISTENT, Blkfront, new_blkfront
from frontend.block_device import _enqueue_first
from frontend.effects import finish_queued
from frontend.grants import end_access, grant_access, new_grants
from frontend.page_pool import new_pool
from hypervisor.gate_server import GateServer
from machine.hypervisor import build_domain, build_hypervisor, domain_memory, host_memory

RAM_FRAMES = 64
POOL_PAGES = 16
ROUNDS_MAX = 1000  # a changed core that never comes to rest is told, and not waited for
DISK_SECTORS = 64 * SECTORS_PER_PAGE


class WarmUpError(Exception):
    """The tiny machine does not work: a core is broken."""


class _TinyMachine:
    """A front and a back on plain memory, mapped by arithmetic: what the compiler needs to see."""

    def __init__(self) -> None:
        # Types must be those of the real thing: counters and words are views into larger records.
        arena, stats = Arena(), np.zeros(1, STATS)
        machine, dom0 = host_memory(arena, nr_handles=64), domain_memory(arena, 1)
        guest = domain_memory(arena, RAM_FRAMES)
        self.hypervisor = build_hypervisor(arena, machine, dom0, nr_cpus=2, policy="mask-2012")
        build_domain(self.hypervisor, machine, 1, guest)
        host, self.ram = machine.host, guest.ram
        self.disk = np.zeros(DISK_SECTORS * 512, np.uint8)
        self.latency = stats["latency"][0]
        self.front = new_blkfront(
            self.ram[:XEN_PAGE_SIZE],
            address_of(self.ram),
            new_grants(guest.grant),
            new_pool(1, POOL_PAGES),
            stats["counters"],
            nr_ios=4,
        )
        nr_slots = slots_needed(len(self.front.shadow), 2)
        self.back = new_blkback(
            self.ram[:XEN_PAGE_SIZE],
            np.zeros(nr_slots, np.uint64),
            machine.accessed,
            host["backend"][0, 1:2],
            remote_domid=1,
            nr_sectors=DISK_SECTORS,
            store_address=address_of(self.disk),
            max_persistent_grants=2,
        )
        self.cursor = np.zeros(1, worker.CURSOR)
        self.pending, self.mask = event_words(np.zeros(XEN_PAGE_SIZE, np.uint8))
        self.spin = new_spin(adaptive=True)
        self.spin["limit_ns"] = 0
        self.gate = no_gate()
        store_release(host["dirty"][0], 0, np.uint32(1))

    def serve(self) -> None:
        """Let the back work until it would sleep, mapping what it asks for."""
        back = self.back
        for _ in range(ROUNDS_MAX):
            effect = worker.work(
                back,
                self.cursor,
                self.pending,
                self.mask,
                1,
                self.spin,
                10,
                self.gate,
                -1,
            )
            if effect == worker.WAIT:
                return
            if effect == worker.MAP:
                ops = back.map_ops[: int(back.back["map_ops"][0])]
                self._hypercall(GNTTABOP_MAP_GRANT_REF, ops)
                slots = (ops["host_addr"] - back.back["balloon"]) // XEN_PAGE_SIZE
                back.page_table[slots] = address_of(self.ram) + ops["dev_bus_addr"]
            if effect == worker.UNMAP:
                ops = back.unmap_ops[: int(back.back["unmap_ops"][0])]
                self._hypercall(GNTTABOP_UNMAP_GRANT_REF, ops)
        raise WarmUpError("the backend never comes to rest")

    def _hypercall(self, cmd: int, ops: np.ndarray) -> None:
        payload = bytearray(ops.tobytes())
        number = HYPERVISOR_GRANT_TABLE_OP
        assert self.hypervisor.hypercall(DOMID_0, 0, number, cmd, payload, False) == 0
        ops[:] = np.frombuffer(payload, ops.dtype)


def _run_load(machine: _TinyMachine, front: Blkfront) -> None:
    plan = load.LoadPlan("randrw", XEN_PAGE_SIZE, 4, 50, 16, None, 1, True)
    front.ios["frame"] = 1 + POOL_PAGES + np.arange(4)
    job = load.new_load(plan, front, np.zeros(DISK_SECTORS, np.uint32), machine.latency, 1, 0)
    args = (machine.pending, machine.mask, 2, machine.spin)
    for _ in range(ROUNDS_MAX):
        if load.run(front, job, *args) == effects.DONE:
            return
        machine.serve()
    raise WarmUpError("a load of 16 I/Os never ends")


def _warm_gate(machine: _TinyMachine) -> None:
    segment = np.zeros(gate_bytes(1), np.uint8)
    server = GateServer(machine.hypervisor, segment, 1)
    op = np.zeros(1, GNTTAB_MAP_GRANT_REF)
    args = (GNTTABOP_MAP_GRANT_REF, op.ctypes.data, op.nbytes, machine.spin)
    assert call(new_gate(segment, 0), HYPERVISOR_GRANT_TABLE_OP, *args) == PENDING
    assert server.serve() is False
    collect(new_gate(segment, 0), op.ctypes.data, op.nbytes)
    assert server.fall_asleep()
    server.wake_up()


def warm() -> None:
    """Run every compiled entry point once, with the types it will see."""
    assert BUCKETS > 0
    machine = _TinyMachine()
    front = machine.front
    front.front["grant_mode"] = PERSISTENT
    _run_load(machine, front)
    for operation in (BLKIF_OP_WRITE, BLKIF_OP_READ):
        front.ios["operation"], front.ios["nr_sectors"] = operation, 12
        _enqueue_first(front, 1)
        args = (machine.pending, machine.mask, 2, machine.spin)
        for _ in range(ROUNDS_MAX):
            if finish_queued(front, *args) == effects.DONE:
                break
            machine.serve()
        else:
            raise WarmUpError("an I/O never ends")
    end_every_access(front)
    front.front["grant_mode"] = PER_REQUEST
    _run_load(machine, front)
    for _ in range(ROUNDS_MAX):
        if phases.release_kept(machine.back) == 0:
            break
        phases.finish_unmap(machine.back)
    else:
        raise WarmUpError("the tree never gives up its last page")
    phases.page_address(machine.back, 0, 0)
    phases.touch(machine.back, 0)
    end_access(front.grants, grant_access(front.grants, 0, 0, False))
    map_granted(-1, np.zeros(0, GNTTAB_MAP_GRANT_REF), 0)
    unmap_slots(np.zeros(0, GNTTAB_UNMAP_GRANT_REF), 0)
    machine._hypercall(GNTTABOP_COPY, np.zeros(1, GNTTAB_COPY))
    _warm_gate(machine)
    set_pending(machine.pending, machine.mask, 1)
    clear_pending(machine.pending, 1)
    clear_mask(machine.mask, 1)
