"""Grants, maps, unmaps, ends and copies of three domains against a model in plain Python."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common import abi
from tests.hypervisor.world import (
    DEVICE_RO,
    DEVICE_RW,
    PAGE,
    RAM_FRAMES,
    READING,
    RO,
    RW,
    WRITING,
    World,
)

OKAY, REFUSED, BAD_PAGE = abi.GNTST_OKAY, abi.GNTST_GENERAL_ERROR, abi.GNTST_BAD_PAGE
DOMIDS = (0, 1, 2)
GREFS = range(8, 12)

domids = st.sampled_from(DOMIDS)
grefs = st.sampled_from(GREFS)
# Frame 0 is left out: a device mapping of it cannot be unmapped (test_maptrack.py).
frames = st.integers(1, 5) | st.just(RAM_FRAMES)
some_flags = st.sampled_from([RO, RW, DEVICE_RO, DEVICE_RW, RO | DEVICE_RO, RW | DEVICE_RW])


@dataclass
class Entry:
    """What the owner has written: for whom, which frame, and whether to read only."""

    to: int
    frame: int
    readonly: bool


@dataclass
class Mapping:
    """A live handle: which grant, with which frame, at which address."""

    owner: int
    gref: int
    frame: int
    flags: int  # as they are left: host, device or both
    op: np.void

    @property
    def readonly(self) -> bool:
        return bool(self.flags & abi.GNTMAP_READONLY)

    @property
    def parts(self) -> int:
        """1 or 2: host, device."""
        return (self.flags & (RW | DEVICE_RW)).bit_count()


Grant = tuple[int, int]


class AgainstAModel(RuleBasedStateMachine):
    """After each step pins, status bits, levels, handles and memory are what the model says."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(nr_cpus=1)
        self.entries: dict[Grant, Entry] = {}
        self.live: dict[tuple[int, int], Mapping] = {}  # by mapper and handle
        self.free: dict[int, list[int]] = {domid: [] for domid in DOMIDS}  # handles, last first
        self.fresh = dict.fromkeys(DOMIDS, 0)
        self.ram = {domid: self.world[domid].ram.copy() for domid in DOMIDS}
        self.sums = {domid: {"map_ops": 0, "unmap_ops": 0, "copy_ops": 0} for domid in DOMIDS}

    # --- the model ------------------------------------------------------------------------------

    def mappings(self, grant: Grant) -> list[tuple[int, Mapping]]:
        """Who has `grant` mapped, and how."""
        return [(who, m) for (who, _), m in self.live.items() if (m.owner, m.gref) == grant]

    def bits(self, grant: Grant) -> int:
        """READING while it is mapped, WRITING while it is mapped to be written."""
        mapped = [mapping for _, mapping in self.mappings(grant)]
        writing = any(not mapping.readonly for mapping in mapped)
        return READING * bool(mapped) | WRITING * writing

    def verdict(self, grant: Grant, by: int, readonly: bool) -> int:
        """The status of a pin."""
        mapped, entry = self.mappings(grant), self.entries.get(grant)
        if mapped and mapped[0][0] != by:
            return REFUSED
        if not mapped or (not readonly and not self.bits(grant) & WRITING):
            if entry is None or entry.to != by or (entry.readonly and not readonly):
                return REFUSED
            if not mapped and entry.frame >= RAM_FRAMES:
                return BAD_PAGE
        return OKAY

    def frame_of(self, grant: Grant) -> int:
        """The frame a mapping sees: the one it had when the first was made."""
        mapped = self.mappings(grant)
        return mapped[0][1].frame if mapped else self.entries[grant].frame

    # --- what domains do ------------------------------------------------------------------------

    @rule(owner=domids, to=domids, frame=frames, readonly=st.booleans())
    def grant(self, owner: int, to: int, frame: int, readonly: bool) -> None:
        if any((owner, gref) not in self.entries for gref in GREFS):
            gref = self.world[owner].grant(frame, to=to, readonly=readonly)
            assert (owner, gref) not in self.entries
            self.entries[owner, gref] = Entry(to, frame, readonly)

    @rule(owner=domids, gref=grefs)
    def end_access(self, owner: int, gref: int) -> None:
        if (owner, gref) in self.entries:
            ended = self.world[owner].end_access(gref)
            assert ended == (self.bits((owner, gref)) == 0)
            if ended:
                del self.entries[owner, gref]

    @rule(owner=domids, gref=grefs, to=domids, frame=frames)
    def rewrite(self, owner: int, gref: int, to: int, frame: int) -> None:
        """The guest changes an entry in place, which it should not."""
        if (owner, gref) in self.entries:
            shared, entry = self.world[owner].entry(gref), self.entries[owner, gref]
            shared["domid"], shared["frame"] = entry.to, entry.frame = to, frame

    def some_grant(self, data: st.DataObject) -> tuple[int, Grant]:
        """Somebody, more often than not who it is granted to, and a grant that may be there."""
        grant = data.draw(st.sampled_from([*sorted(self.entries), (1, GREFS[-1])]))
        to = self.entries[grant].to if grant in self.entries else 0
        return data.draw(st.just(to) | domids), grant

    @rule(data=st.data(), flags=some_flags)
    def map(self, data: st.DataObject, flags: int) -> None:
        by, grant = self.some_grant(data)
        (owner, gref), readonly = grant, bool(flags & abi.GNTMAP_READONLY)
        expected = self.verdict(grant, by, readonly)
        op = self.world.map(gref, flags, of=owner, by=by)
        assert op["status"] == expected
        if expected == OKAY:
            frame = self.frame_of(grant)
            handle = self.free[by].pop() if self.free[by] else self.fresh[by]
            self.fresh[by] = max(self.fresh[by], handle + 1)
            assert (op["handle"], op["dev_bus_addr"]) == (handle, frame * PAGE)
            self.live[by, handle] = Mapping(owner, gref, frame, flags, op)
            self.sums[owner]["map_ops"] += 1
        elif not self.free[by]:  # the handle that was tried is the first to be given out again
            self.free[by].append(self.fresh[by])
            self.fresh[by] += 1

    @precondition(lambda self: self.live)
    @rule(data=st.data(), part=some_flags)
    def unmap(self, data: st.DataObject, part: int) -> None:
        by, handle = data.draw(st.sampled_from(sorted(self.live)))
        mapping = self.live[by, handle]
        host, device = {}, {}
        if not part & RW:
            host = {"host_addr": 0}
        if not part & DEVICE_RW:
            device = {"dev_bus_addr": 0}
        assert self.world.unmap(mapping.op, by=by, **host, **device) == OKAY
        gone = mapping.flags & part & (RW | DEVICE_RW)
        mapping.flags &= ~gone
        self.sums[mapping.owner]["unmap_ops"] += bool(gone)
        if not mapping.parts:
            del self.live[by, handle]
            self.free[by].append(handle)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def unmap_all_of_one_domain(self, data: st.DataObject) -> None:
        by = data.draw(st.sampled_from(sorted({who for who, _ in self.live})))
        handles = [handle for who, handle in self.live if who == by]
        ops = np.array([self.live[by, handle].op for handle in handles])
        assert set(self.world.unmap_all(ops, by=by)) == {OKAY}
        for handle in handles:
            self.sums[self.live.pop((by, handle)).owner]["unmap_ops"] += 1
            self.free[by].append(handle)

    @rule(by=domids, handle=st.integers(0, 5) | st.just(2**32 - 1))
    def unmap_a_dead_handle(self, by: int, handle: int) -> None:
        if (by, handle) not in self.live:
            op: Any = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)[0]
            op["handle"], op["host_addr"], op["flags"] = handle, PAGE, RW
            assert self.world.unmap(op, by=by) == abi.GNTST_BAD_HANDLE

    @rule(data=st.data(), offset=st.sampled_from([0, 40]))
    def copy(self, data: st.DataObject, offset: int) -> None:
        by, source = self.some_grant(data)
        to_grant = data.draw(st.booleans())
        dest = self.some_grant(data)[1] if to_grant else data.draw(st.integers(0, 5))
        fields = {"source_domid": source[0], "source_ref": source[1], "source_offset": 20}
        if isinstance(dest, int):
            fields |= {"dest_gmfn": dest}
        else:
            fields |= {"dest_domid": dest[0], "dest_ref": dest[1]}
        expected = self.verdict(source, by, True)
        if expected == OKAY and not isinstance(dest, int):
            expected = self.verdict(dest, by, False)
        assert self.world.copy(by=by, **fields, dest_offset=offset, len=20) == expected
        if expected == OKAY:
            read, write = self.ram[source[0]], self.ram[by if isinstance(dest, int) else dest[0]]
            there = dest if isinstance(dest, int) else self.frame_of(dest)
            start, to = self.frame_of(source) * PAGE + 20, there * PAGE + offset
            write[to : to + 20] = read[start : start + 20].copy()
            ends = [source[0]] if isinstance(dest, int) else [source[0], dest[0]]
            owner = next((domid for domid in ends if domid != by), by)
            self.sums[owner]["copy_ops"] += 1

    # --- after each step ------------------------------------------------------------------------

    @invariant()
    def the_entries_are_as_written_with_their_status_bits(self) -> None:
        for owner in DOMIDS:
            for gref in GREFS:
                shared, entry = self.world[owner].entry(gref), self.entries.get((owner, gref))
                if entry is None:
                    assert shared["flags"] == 0
                    continue
                flags = abi.GTF_PERMIT_ACCESS | abi.GTF_READONLY * entry.readonly
                assert shared["flags"] == flags | self.bits((owner, gref))
                assert (shared["domid"], shared["frame"]) == (entry.to, entry.frame)

    @invariant()
    def pins_and_levels_are_the_live_mappings(self) -> None:
        for owner in DOMIDS:
            for gref in GREFS:
                word = self.world.domain(owner).grants.active["pin"][gref]
                assert int(word).to_bytes(4, "little") == self.pin((owner, gref))
            parts = [mapping.parts for mapping in self.live.values() if mapping.owner == owner]
            assert self.world.domain(owner).mapped == sum(parts)
            assert self.world.counted(owner).get("grants_mapped", 0) == sum(parts)

    def pin(self, grant: Grant) -> bytes:
        """The four counts: host write, host read, device write, device read."""
        counts = [0, 0, 0, 0]
        for _, mapping in self.mappings(grant):
            counts[0 + mapping.readonly] += bool(mapping.flags & RW)
            counts[2 + mapping.readonly] += bool(mapping.flags & DEVICE_RW)
        return bytes(counts)

    @invariant()
    def handles_counts_and_memory_are_the_models(self) -> None:
        for domid in DOMIDS:
            assert self.world.handles_used(domid) == sum(who == domid for who, _ in self.live)
            counted = self.world.counted(domid)
            assert {name: counted.get(name, 0) for name in self.sums[domid]} == self.sums[domid]
            assert np.array_equal(self.world[domid].ram, self.ram[domid])


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
