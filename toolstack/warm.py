"""Compiles, or loads from the cache, everything a machine runs, in one tiny machine in memory.

The fork server imports this module before its first fork, so that each process of the machine is
born with its compiled code in place and shares those pages with the others.
"""

import numpy as np

from backend import pages
from backend.at_store import answer_all
from backend.blkback import BLKBACK, begin_close
from backend.doors import called_for
from backend.foreign_memory import map_granted, unmap_slots
from backend.queue_sleep import begin_sleep, end_sleep
from backend.stores import RamStore
from backend.traced import serving as serving_backs
from backend.worker import serve as serve_backs
from common import effects
from common.abi import (
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    DOMID_0,
    GNTTAB_COPY,
    GNTTAB_MAP_GRANT_REF,
    GNTTAB_UNMAP_GRANT_REF,
    GNTTABOP_COPY,
    GNTTABOP_MAP_GRANT_REF,
    HYPERVISOR_GRANT_TABLE_OP,
    SECTORS_PER_PAGE,
    XEN_PAGE_SIZE,
)
from common.arena import Arena
from common.atomics import store_release
from common.compiled import direct
from common.copying import address_of
from common.event_channel import clear_mask, clear_pending, set_pending
from common.hypercall_gate import PENDING, call, collect, gate_bytes, new_gate, no_gate
from common.machine_memory import DISKS_MAX, STATS
from common.ring import REQ, RSP
from common.spinning import new_spin
from common.trace_log import STATS_BYTES, front_log, trace_bytes, trace_logs
from common.turns import (
    ASLEEP,
    NOBODY,
    any_pending,
    both_of,
    looked_at,
    make_ready,
    new_turns,
    take_in,
)
from frontend.blkfront import end_every_access
from frontend.blkfront_info import BLKFRONT, PER_REQUEST, PERSISTENT
from frontend.block_device import _enqueue_first
from frontend.frames import disk_frames
from frontend.grants import end_access, grant_access, new_grants
from frontend.journal import begin_flush, end_flush, forget, new_journal
from frontend.judge import judge, new_judgement
from frontend.load import LOAD, Load, LoadPlan, new_load, no_load
from frontend.nbd_export import EXPORTS
from frontend.nbd_loop import hear, listen_to, new_ears
from frontend.nbd_loop import serve as serve_exports
from frontend.room import abandon
from frontend.stepper import run, serve
from frontend.traced import serving
from hypervisor.gate_server import GateServer
from machine.back import build_back, in_table, slots_of
from machine.front import build_front, channel_words, lay_out_buffers
from machine.hypervisor import build_domain, build_hypervisor, domain_memory, host_memory

RAM_FRAMES = 64
POOL_PAGES = 16
KEPT = 2
LOOKS = 100
ROUNDS_MAX = 1000  # a changed core that never comes to rest is told, and not waited for
DISK_SECTORS = 64 * SECTORS_PER_PAGE


class WarmUpError(Exception):
    """The tiny machine does not work: a core is broken."""


class _TinyMachine:
    """A front and a back on plain memory, mapped by arithmetic: what the compiler needs to see."""

    def __init__(self) -> None:
        # Types must be those of the real thing: counters and words are views into larger records.
        arena = Arena()
        machine, dom0 = host_memory(arena, nr_handles=64), domain_memory(arena, 1)
        guest, stats = domain_memory(arena, RAM_FRAMES), arena.array(1, STATS)
        self.hypervisor = build_hypervisor(arena, machine, dom0, nr_cpus=2, policy="mask-2012")
        build_domain(self.hypervisor, machine, 1, guest)
        self.arena, self.latency = arena, stats["latency"][0, 0]
        spin = new_spin(adaptive=True)
        spin["limit_ns"] = 0
        frames = disk_frames(0, 0, POOL_PAGES)
        self.front = build_front(
            arena,
            guest.ram,
            frames,
            new_grants(arena, guest.grant),
            stats["counters"][0, :1],
            channel_words(arena, guest.event),
            spin,
            nr_ios=4,
        )
        lay_out_buffers(self.front, frames.buffers, 2)
        self.rings, self.jobs = BLKFRONT.rows(arena, 1), LOAD.rows(arena, 1)
        BLKFRONT.write(self.rings[0], self.front)
        self.store = RamStore(DISK_SECTORS)
        self.back = build_back(
            arena,
            guest.ram[:XEN_PAGE_SIZE],
            in_table(arena, slots_of(KEPT), guest.ram, dom0.ram),
            self.store,
            machine.accessed,
            machine.host["backend"]["counters"][0, :1],
            channel_words(arena, guest.event, allocated_here=False),
            spin,
            no_gate(),
            remote_domid=1,
            max_persistent_grants=KEPT,
        )
        self.backs = BLKBACK.rows(arena, 1)
        BLKBACK.write(self.backs[0], self.back)
        self.turns = new_turns(arena, 1, REQ, spin)
        take_in(self.turns, 0, looked_at(self.back))
        store_release(machine.host[0]["dirty"], 0, np.uint32(1))

    def run(self, job: Load) -> None:
        """Both ends in turn, until the job is done."""
        LOAD.write(self.jobs[0], job)
        for _ in range(ROUNDS_MAX):
            if run(self.rings, self.jobs, 0, LOOKS, 0) == effects.DONE:
                return
            self.serve(ASLEEP)
        raise WarmUpError("I/Os never end")

    def serve(self, until: int) -> None:
        """Let the back work until the effect `until`, or ASLEEP."""
        for _ in range(ROUNDS_MAX):
            returned = int(serve_backs(self.turns, self.backs, NOBODY))
            effect = both_of(returned)[0]
            if until in (returned, effect):
                return
            if effect == effects.HYPERCALL:
                self.make_call(*called_for(self.back))
        raise WarmUpError("the backend never comes to rest")

    def make_call(self, cmd: int, ops: np.ndarray) -> None:
        """A grant-table hypercall of dom0's."""
        payload = bytearray(ops.tobytes())
        number = HYPERVISOR_GRANT_TABLE_OP
        assert self.hypervisor.hypercall(DOMID_0, 0, number, cmd, payload, False) == 0
        ops[:] = np.frombuffer(payload, ops.dtype)


def _run_load(machine: _TinyMachine, grant_mode: int) -> None:
    front, arena = machine.front, machine.arena
    front.front["grant_mode"] = grant_mode
    plan = LoadPlan("randrw", XEN_PAGE_SIZE, 4, 50, 16, None, 1, True)
    versions = arena.array(DISK_SECTORS, np.uint32)
    machine.run(new_load(arena, plan, front, versions, machine.latency, 1, 0))


def _warm_turns(machine: _TinyMachine) -> None:
    """A job that is done at once, among the turns of the guest's thread."""
    front = machine.front
    turns = new_turns(machine.arena, DISKS_MAX, RSP, front.spin)
    take_in(turns, 0, looked_at(front))
    assert both_of(serve(machine.rings, machine.jobs, turns)) == (effects.DONE, 0)
    any_pending(turns)
    abandon(front)
    exports, ears = EXPORTS.rows(machine.arena, DISKS_MAX), new_ears(machine.arena)
    direct(serve_exports, machine.rings, machine.jobs, exports, ears, turns)
    hear(exports, ears, turns)  # of no socket
    listen_to(ears, -1, 0, 0)


def _warm_traced(machine: _TinyMachine) -> None:
    """The loops of both ends while they are traced."""
    turns = new_turns(machine.arena, DISKS_MAX, RSP, machine.front.spin)
    log = front_log(machine.arena.array(STATS_BYTES, np.uint8))
    serving(machine.rings, machine.jobs, turns, log)
    (log,) = trace_logs(machine.arena.array(trace_bytes(1), np.uint8), 1).backs
    serving_backs(machine.turns, machine.backs, log)


def _warm_journal(arena: Arena) -> None:
    """What a guest asks of one outside of a load."""
    page = arena.array((2, XEN_PAGE_SIZE), np.uint8)
    kept = new_journal(arena, *arena.array((2, SECTORS_PER_PAGE), np.uint32))
    forget(kept, 0, 1)
    begin_flush(kept)
    end_flush(kept, True)
    given = address_of(page[0]), 1, 0, SECTORS_PER_PAGE, kept.flushed, kept.issued
    judge(new_judgement(arena), *given)


def _warm_gate(machine: _TinyMachine) -> None:
    segment = np.zeros(gate_bytes(1), np.uint8)
    server = GateServer(machine.hypervisor, segment, 1)
    op = np.zeros(1, GNTTAB_MAP_GRANT_REF)
    args = (GNTTABOP_MAP_GRANT_REF, op.ctypes.data, op.nbytes, machine.front.spin)
    assert call(new_gate(segment, 0), HYPERVISOR_GRANT_TABLE_OP, *args) == PENDING
    assert server.serve() is False
    collect(new_gate(segment, 0), op.ctypes.data, op.nbytes)
    assert server.fall_asleep()
    server.wake_up()


def warm() -> None:
    """Run every compiled entry point once, with the types it will see."""
    machine = _TinyMachine()
    front, back = machine.front, machine.back
    _run_load(machine, PERSISTENT)
    for operation in (BLKIF_OP_WRITE, BLKIF_OP_READ):
        front.ios["operation"], front.ios["nr_sectors"] = operation, 12
        _enqueue_first(machine.rings, 0, 1)
        machine.run(no_load(machine.arena))
    _warm_turns(machine)
    _warm_traced(machine)
    end_every_access(front)
    _run_load(machine, PER_REQUEST)
    begin_close(back)
    make_ready(machine.turns, 0)
    machine.serve(effects.DONE)
    direct(answer_all, machine.backs, 0)
    direct(begin_sleep, back.queue)
    direct(end_sleep, back.queue)
    pages.page_address(back, 0, 0)
    pages.touch(back, 0, 0)
    end_access(front.grants, grant_access(front.grants, 0, 0, False))
    map_granted(-1, np.zeros(0, GNTTAB_MAP_GRANT_REF), 0, 0)
    unmap_slots(np.zeros(0, GNTTAB_UNMAP_GRANT_REF), 0)
    machine.make_call(GNTTABOP_COPY, np.zeros(1, GNTTAB_COPY))
    _warm_gate(machine)
    _warm_journal(machine.arena)
    events = front.events
    set_pending(events.far_pending, events.far_mask, 1)
    clear_pending(events.pending, 1)
    clear_mask(events.far_mask, 1)
