"""A batch may list more operations than a hypercall carries: it is several calls then, all made."""

from collections import Counter
from functools import partial

import numpy as np
import pytest

from backend import doors, steps
from backend.blkback import slots_needed
from backend.stores import RamStore
from common import abi, blkif, effects, ring
from common.event_channel import set_pending
from common.hypercall import HYPERCALL, MESSAGE_MAX
from common.hypercall_gate import PAYLOAD_MAX, no_gate
from common.ring import REQ, RSP
from common.steps import STEP
from machine.back import build_back, in_table, own_frames
from tests import pair as pair_module
from tests.pair import (
    BOUNCE_FRAME,
    GRANT_COPY,
    GUEST,
    MAPPING_MODES,
    MODES,
    OKAY,
    PORT,
    READ,
    RESPONSE_SLOT,
    WRITE,
    Pair,
    Raw,
)

SEGMENTS = abi.BLKIF_MAX_SEGMENTS_PER_REQUEST
SECTORS = SEGMENTS * abi.SECTORS_PER_PAGE  # of one request
RING = abi.BLKIF_RING_SIZE
FLUSHES = RING * SEGMENTS // doors.FLUSH_ENTRIES
OP_BYTES = {"map": doors.MAP_OP_BYTES, "unmap": doors.UNMAP_OP_BYTES, "copy": doors.COPY_OP_BYTES}

RING_PAGES = 4
BIG_RING = abi.blkif_ring_size(RING_PAGES)
PAGE_SETS = 8  # the big ring's requests share so many requests' pages


def full_ring(
    mode: str, operation: int, requests: int = RING, **options: int
) -> tuple[Pair, list[Raw]]:
    """A guest with a page for each segment, none like another, and requests for a full ring."""
    store = RamStore(requests * SECTORS)
    pair = Pair(mode, store=store, **options)  # type: ignore[arg-type]
    grefs = [pair.grant(pair.buffer_frame + at) for at in range(requests * SEGMENTS)]
    for seed, data in enumerate(both_sides(pair, requests)):
        data[:] = np.random.default_rng(seed).integers(0, 256, len(data), np.uint8)
    asked = [
        Raw(
            [(gref, 0, 7) for gref in grefs[at * SEGMENTS :][:SEGMENTS]],
            operation,
            at * SECTORS,
            at,
        )
        for at in range(requests)
    ]
    return pair, asked


def both_sides(pair: Pair, requests: int = RING) -> tuple[np.ndarray, np.ndarray]:
    """The disk, and the guest's pages."""
    assert pair.store.memory is not None
    nbytes = requests * SECTORS * abi.SECTOR_SIZE
    return pair.store.memory[:nbytes], pair.ram[pair.buffer_frame * abi.XEN_PAGE_SIZE :][:nbytes]


def everything_moved(
    pair: Pair, operation: int, before: tuple[bytes, bytes], requests: int
) -> None:
    """One way, and not the other."""
    disk, pages = (side.tobytes() for side in both_sides(pair, requests))
    assert disk == pages == before[operation == WRITE]


def no_call_is_too_long(pair: Pair) -> None:
    for call, count in pair.hypercalls:
        assert count * OP_BYTES[call] <= PAYLOAD_MAX
        assert count * OP_BYTES[call] + HYPERCALL.itemsize <= MESSAGE_MAX


@pytest.mark.parametrize("operation", [READ, WRITE])
def test_a_full_ring_is_copied_in_two_calls(operation: int) -> None:
    pair, asked = full_ring(GRANT_COPY, operation, gather_max=RING)
    disk, pages = (side.tobytes() for side in both_sides(pair))
    assert pair.ask(*asked) == [(at, operation, OKAY) for at in range(RING)]
    most = doors.COPIES_MAX
    assert pair.hypercalls == [("copy", most), ("copy", RING * SEGMENTS - most)]
    no_call_is_too_long(pair)
    everything_moved(pair, operation, (disk, pages), RING)
    assert pair.counts()["flushes"] == 0
    pair.check()


def with_less(pair: Pair, limits: dict[int, int]) -> None:
    """Serve what there is; a call of the phase `step` takes `limits[step]` operations at most."""
    while (effect := pair.back_until(*limits)) != effects.WAIT:
        step = int(pair.back.turn[STEP])
        if effect == effects.STOP:
            pair.back.back["call_max"] = limits[step]


@pytest.mark.parametrize("operation", [READ, WRITE])
@pytest.mark.parametrize("mode", MAPPING_MODES)
def test_maps_and_unmaps_that_are_cut_are_all_made(mode: str, operation: int) -> None:
    pair, asked = full_ring(mode, operation, gather_max=RING, cap=20)
    disk, pages = (side.tobytes() for side in both_sides(pair))
    pair.push_raw(*asked)
    with_less(pair, {steps.MAP: 50, steps.UNMAP: 2 * doors.FLUSH_ENTRIES})
    answers = [pair.responses[at].item() for at in range(RING)]
    assert answers == [(at, operation, OKAY) for at in range(RING)]
    unmapped = RING * SEGMENTS - pair.kept
    assert pair.kept == (20 if mode == "persistent" else 0)
    assert pair.hypercalls == [
        *[("map", 50)] * 7, ("map", 2), *[("unmap", 64)] * 5, ("unmap", unmapped - 320)
    ]  # fmt: skip
    everything_moved(pair, operation, (disk, pages), RING)
    assert pair.counts()["flushes"] == FLUSHES
    pair.check()


@pytest.mark.parametrize("mode", MAPPING_MODES)
def test_a_full_ring_of_one_page_needs_no_cut(mode: str) -> None:
    pair, asked = full_ring(mode, READ, gather_max=RING, cap=0)
    pair.ask(*asked)
    assert pair.hypercalls == [("map", RING * SEGMENTS), ("unmap", RING * SEGMENTS)]
    assert pair.counts()["flushes"] == FLUSHES
    no_call_is_too_long(pair)


def test_what_is_refused_in_a_later_call_fails_its_request_only() -> None:
    """The first operation of the second call, and the last of all."""
    for mode, step in (("non-persistent", steps.MAP), (GRANT_COPY, steps.COPY_IN)):
        pair, asked = full_ring(mode, WRITE, gather_max=RING)
        for at, segment in ((6, 0), (RING - 1, SEGMENTS - 1)):
            segments = list(asked[at].segments)
            segments[segment] = (7, 0, 7)  # granted to nobody
            asked[at] = asked[at]._replace(segments=segments)
        pair.push_raw(*asked)
        with_less(pair, {step: 6 * SEGMENTS})
        statuses = [int(pair.responses[at]["status"]) for at in range(RING)]
        assert [at for at, status in enumerate(statuses) if status != OKAY] == [6, RING - 1]
        pair.check()


# --- a ring of four pages ---------------------------------------------------------------------


def on_four_pages(mode: str) -> Pair:
    """A pair whose backend serves another ring: its pages are nobody's frames."""
    pair, _ = full_ring(mode, READ, PAGE_SETS, gather_max=RING, cap=0)
    arena, nr_slots = pair.arena, slots_needed(BIG_RING, 0)
    pages = arena.array(RING_PAGES * abi.XEN_PAGE_SIZE, np.uint8)
    ring.shared_ring_init(pages.view(np.uint32), 0)
    reach = in_table(arena, nr_slots, pair.ram, pair.hole)
    if pair.copies:
        reach = own_frames(nr_slots, pair.dom0_ram, BOUNCE_FRAME)
    pair.back = build_back(
        arena,
        pages,
        reach,
        pair.store,
        pair.accessed,
        pair.back.counters,
        pair.back.events,
        pair.spin,
        no_gate(),
        remote_domid=GUEST,
        persistent=MODES[mode][1],
        max_persistent_grants=0,
        gather_max=BIG_RING,
    )
    return pair


def push_all(pair: Pair, operation: int) -> None:
    """As many requests as the big ring holds."""
    back = pair.back
    half = ring.new_half(pair.arena, BIG_RING)
    for ident in range(BIG_RING):
        at, first = ring.slot(half, ident), ident % PAGE_SETS * SEGMENTS
        sector = ident % PAGE_SETS * SECTORS
        blkif.put_request(back.qwords, at, operation, SEGMENTS, 0, ident, sector)
        for segment in range(SEGMENTS):
            blkif.put_segment(back.qwords, at, segment, 8 + first + segment, 0, 7)
    half["prod_pvt"] = BIG_RING
    ring.publish(back.words, half, REQ)
    set_pending(*pair.back_events, PORT)


@pytest.mark.parametrize("operation", [READ, WRITE])
@pytest.mark.parametrize("mode", MODES)
def test_a_ring_of_four_pages_is_drained(
    mode: str, operation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_module, "slots_of", partial(slots_needed, BIG_RING))
    pair = on_four_pages(mode)
    disk, pages = (side.tobytes() for side in both_sides(pair, PAGE_SETS))
    push_all(pair, operation)
    pair.serve()
    assert pair.back.words[RSP] == BIG_RING
    nbytes = BIG_RING * abi.BLKIF_REQUEST.itemsize
    answers = pair.back.words.view(np.uint8)[abi.SRING_HEADER_SIZE :][:nbytes].view(RESPONSE_SLOT)
    assert answers.tolist() == [(at, operation, OKAY) for at in range(BIG_RING)]
    everything_moved(pair, operation, (disk, pages), PAGE_SETS)
    made: Counter[str] = Counter()
    for call, count in pair.hypercalls:
        made[call] += count
    total = BIG_RING * SEGMENTS
    assert made == ({"copy": total} if pair.copies else {"map": total, "unmap": total})
    assert pair.counts()["flushes"] == (0 if pair.copies else total // doors.FLUSH_ENTRIES)
    no_call_is_too_long(pair)
    pair.check()
