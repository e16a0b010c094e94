"""The fast way into the hypervisor: a hypercall posted in shared memory, for who makes many.

Owns: the layout of the gate, and the caller's side of it, compiled. A hypercall by message costs
two wake-ups and four copies between processes, some 100 us; on Xen it is a trap of less than one.
Here the caller posts its arguments in its vCPU's slot, and the hypervisor, while it is awake, finds
them there. Asleep it is woken by a message on the ordinary socket, which is answered when the
posted call is done (`Hypercalls.kick`).
Rules: one slot a vCPU, and the slot is the caller's identity, as the socket is. The hypervisor
copies the arguments once, then validates. A slot that is taken, by another thread of the same vCPU,
is not waited for: the call goes by message.

Page 0 has the doorbell, which every poster changes, and `asleep`. Then come the slots, of a header
page and PAYLOAD_MAX bytes each.
"""

from typing import Final, NamedTuple

import numpy as np

from common.abi import XEN_PAGE_SIZE
from common.atomics import cmpxchg, fence, fetch_add, load_acquire, store_release
from common.compiled import kernel
from common.copying import copy_bytes
from common.rows import Layout
from common.spinning import spin_until_changed

DOORBELL: Final = 0
ASLEEP: Final = 16  # a cache line away

PAYLOAD_MAX: Final = 3 * XEN_PAGE_SIZE  # a full ring's 352 maps take 11 KiB
SLOT_BYTES: Final = XEN_PAGE_SIZE + PAYLOAD_MAX

# Words of a slot's header.
TAKEN: Final = 0  # by a thread of the caller
STATE: Final = 1
NUMBER: Final = 2
CMD: Final = 3
NBYTES: Final = 4
RC: Final = 5

IDLE: Final = 0
POSTED: Final = 1
ANSWERED: Final = 2

NO_SLOT: Final = -1

# What became of a call.
MADE: Final = 0
PENDING: Final = 1  # posted; the hypervisor has to be waited for
REFUSED: Final = 2  # no slot to post it in

GATE_PLACE: Final = np.dtype([("slot", "<i8"), ("address", "<u8")])


class Gate(NamedTuple):
    """A vCPU's gate. words: u32, the whole segment; place: GATE_PLACE (1,), slot NO_SLOT: none."""

    words: np.ndarray
    place: np.ndarray


GATE: Final = Layout(Gate, words=np.uint32, place=GATE_PLACE)


def gate_bytes(nr_slots: int) -> int:
    """The segment's size."""
    return XEN_PAGE_SIZE + nr_slots * SLOT_BYTES


def new_gate(segment: np.ndarray, slot: int) -> Gate:
    """The gate of vCPU `slot` in `segment` (u8)."""
    place = np.zeros(1, GATE_PLACE)
    place["slot"], place["address"] = slot, segment.ctypes.data
    return Gate(segment.view(np.uint32), place)


def no_gate() -> Gate:
    """For those who have none: every call is REFUSED."""
    place = np.zeros(1, GATE_PLACE)
    place["slot"] = NO_SLOT
    return Gate(np.zeros(1, np.uint32), place)


@kernel
def header_of(slot: int) -> np.int64:
    """Where the header of `slot` begins, in words."""
    return (XEN_PAGE_SIZE + np.int64(slot) * SLOT_BYTES) // 4


@kernel
def payload_of(slot: int) -> np.int64:
    """Where the payload of `slot` begins, in bytes."""
    return np.int64(2 * XEN_PAGE_SIZE) + np.int64(slot) * SLOT_BYTES


@kernel
def _payload_address(gate: Gate) -> np.int64:
    return np.int64(gate.place[0].address) + payload_of(gate.place[0].slot)


@kernel
def call(
    gate: Gate,
    number: int,
    cmd: int,
    args: int,
    nbytes: int,
    spin: np.ndarray,
) -> int:
    """Post a hypercall over `nbytes` of structs at address `args`, and wait a while: see MADE.

    If MADE the structs are as the hypervisor left them, which is as they were if the call failed as
    a whole: their statuses say so. If PENDING, the caller kicks the hypervisor and calls `collect`.
    """
    slot = np.int64(gate.place[0].slot)
    if slot == NO_SLOT or nbytes > PAYLOAD_MAX:
        return REFUSED
    header = header_of(slot)
    if cmpxchg(gate.words, header + TAKEN, 0, 1) != 0:
        return REFUSED
    copy_bytes(_payload_address(gate), args, nbytes)
    store_release(gate.words, header + NUMBER, number)
    store_release(gate.words, header + CMD, cmd)
    store_release(gate.words, header + NBYTES, nbytes)
    store_release(gate.words, header + STATE, POSTED)
    fetch_add(gate.words, DOORBELL, 1)
    fence()  # either we see it asleep, or it sees our post before it sleeps
    if load_acquire(gate.words, ASLEEP):
        return PENDING
    if not spin_until_changed(gate.words, header + STATE, POSTED, spin):
        return PENDING
    collect(gate, args, nbytes)
    return MADE


@kernel
def collect(gate: Gate, args: int, nbytes: int) -> np.int64:
    """Take the answer of a call that is done: fills the structs at `args`; returns its rc."""
    header = header_of(gate.place[0].slot)
    rc = np.int64(np.int32(load_acquire(gate.words, header + RC)))
    copy_bytes(args, _payload_address(gate), nbytes)
    store_release(gate.words, header + STATE, IDLE)
    store_release(gate.words, header + TAKEN, 0)
    return rc
