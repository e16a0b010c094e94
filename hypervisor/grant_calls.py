"""The grant-table hypercalls: an array of Xen's structs, each with a status of its own.

Owns: whom each entry is about, the order of an unmap (first half, flush, second half, 32 at a
time), and what is counted for whom. Entries about the same domain in a row are done in one compiled
call.
"""

from collections.abc import Callable, Hashable, Iterator
from itertools import compress, groupby
from typing import Final, TypeVar

import numpy as np

from common import abi
from common.arena import Arena
from common.compiled import direct
from common.counters import HYPERVISOR_COUNTERS
from hypervisor.cpus import FLUSH_ENTRIES_MAX, NO_CPU, NO_FLUSH, Cpus
from hypervisor.domains import PRIVILEGED, Caller, Domain, Domains
from hypervisor.grant_copy import End, copy_run
from hypervisor.grant_table import ACTIVE, TABLE, GrantTable, end_unmap, map_grants
from hypervisor.maptrack import MAPTRACK_ENTRY, MAPTRACK_LIST, UNMAPPED, Maptrack, begin_unmap

_NAMES: Final = HYPERVISOR_COUNTERS.names or ()
HYPERCALLS: Final = _NAMES.index("hypercalls")
MAP_OPS: Final = _NAMES.index("map_ops")
UNMAP_OPS: Final = _NAMES.index("unmap_ops")
COPY_OPS: Final = _NAMES.index("copy_ops")
FAILED_OPS: Final = _NAMES.index("failed_ops")
FLUSHES: Final = _NAMES.index("flushes")
FLUSH_ENTRIES: Final = _NAMES.index("flush_entries")
IPIS: Final = _NAMES.index("ipis")
FLUSH_LOCK_WAITS: Final = _NAMES.index("flush_lock_waits")
GRANTS_MAPPED: Final = _NAMES.index("grants_mapped")

_Value = TypeVar("_Value", bound=Hashable)


class GrantCalls:
    """GNTTABOP_*; each fills its structs in place, and succeeds as a call (0)."""

    def __init__(self, domains: Domains, cpus: Cpus, arena: Arena) -> None:
        self._domains, self._cpus = domains, cpus
        self._unmapped = arena.array(FLUSH_ENTRIES_MAX, UNMAPPED)
        self._flushes = arena.array(1, np.uint64).data
        table = GrantTable(np.zeros(0, np.uint32), np.zeros(0, ACTIVE), np.zeros(0, TABLE))
        track = Maptrack(np.zeros(0, MAPTRACK_ENTRY), np.zeros(0, MAPTRACK_LIST))
        end = End(table, np.zeros(0, np.uint8), False)
        maps = np.zeros(0, abi.GNTTAB_MAP_GRANT_REF)
        unmaps = np.zeros(0, abi.GNTTAB_UNMAP_GRANT_REF)
        self._map_grants = direct(map_grants, table, track, 0, maps)
        self._begin_unmap = direct(begin_unmap, track, unmaps, self._unmapped)
        self._end_unmap = direct(end_unmap, table, self._unmapped)
        self._copy_run = direct(copy_run, 0, end, end, np.zeros(0, abi.GNTTAB_COPY))

    @property
    def flushes(self) -> int:
        """Every flush there was."""
        return self._flushes[0]

    def _map(self, caller: Caller, ops: np.ndarray) -> int:
        mapper = caller.domain
        hypercall = 1  # counted for the first domain there is
        for domid, run in _runs(ops["dom"].tolist(), ops):
            owner = self._domains.find(domid)
            if owner is None:
                run["status"] = abi.GNTST_BAD_DOMAIN
                continue
            mapped = self._map_grants(owner.grants, mapper.maptrack, mapper.domid, run)
            _count(owner, MAP_OPS, mapped, len(run), hypercall)
            hypercall = 0
        return 0

    def _unmap(self, caller: Caller, ops: np.ndarray) -> int:
        self.unmap(caller, ops)
        return 0

    def unmap(self, caller: Caller, ops: np.ndarray) -> None:
        """Unmap `ops` (GNTTAB_UNMAP_GRANT_REF, any number)."""
        hypercall = 1
        for start in range(0, len(ops), FLUSH_ENTRIES_MAX):
            batch = ops[start : start + FLUSH_ENTRIES_MAX]
            unmapped = self._unmapped[: len(batch)]
            took = self._begin_unmap(caller.domain.maptrack, batch, unmapped)
            if took:
                self._flush_and_end(caller, unmapped, took, hypercall)
                hypercall = 0
            if took < len(batch):
                self._count_failed_unmaps(caller.domain, batch[batch["status"] != abi.GNTST_OKAY])

    def _count_failed_unmaps(self, mapper: Domain, failed: np.ndarray) -> None:
        """Book them where the handle says whose grant it was; a bad handle says nothing."""
        entries = mapper.maptrack.entries
        for handle in failed["handle"].tolist():
            if handle < len(entries) and entries["flags"][handle]:
                owner = self._domains.find_dying(int(entries["domid"][handle]))
                assert owner is not None, "a domain was buried while its pages were mapped"
                owner.counter_words[FAILED_OPS] += 1

    def _flush_and_end(
        self, caller: Caller, unmapped: np.ndarray, took: int, hypercall: int
    ) -> None:
        """Flush, and drop the pins of the `took` entries of `unmapped` that were done."""
        ipis = self._flush(caller, unmapped)
        domids = compress(unmapped["domid"].tolist(), unmapped["done"].tolist())
        for domid in dict.fromkeys(domids):
            owner = self._domains.find_dying(domid)
            assert owner is not None, "a domain was buried while its pages were mapped"
            ended = self._end_unmap(owner.grants, unmapped)
            _count(owner, UNMAP_OPS, ended, ended, hypercall)
            if ipis != NO_FLUSH:  # one flush for all: booked to the first
                words = owner.counter_words
                words[FLUSHES] += 1
                words[FLUSH_ENTRIES] += took
                words[IPIS] += ipis
                words[FLUSH_LOCK_WAITS] += caller.waited
            hypercall, ipis = 0, NO_FLUSH
            self._domains.bury(owner)

    def _flush(self, caller: Caller, unmapped: np.ndarray) -> int:
        """IPIs, or NO_FLUSH. A guest runs on no worker CPU: its flush is its own CPU's alone."""
        ipis = 0 if caller.cpu == NO_CPU else self._cpus.flush(caller.cpu, unmapped, caller.waited)
        self._flushes[0] += ipis != NO_FLUSH
        return ipis

    def _copy(self, caller: Caller, ops: np.ndarray) -> int:
        ours = caller.domain
        hypercall = 1
        ends = zip(ops["source"]["domid"].tolist(), ops["dest"]["domid"].tolist(), strict=True)
        for (source, dest), run in _runs(list(ends), ops):
            between = self._end(ours, source), self._end(ours, dest)
            copied = self._copy_run(ours.domid, *between, run)
            _count(self._owner_of_copy(ours, source, dest), COPY_OPS, copied, len(run), hypercall)
            hypercall = 0
        return 0

    def _end(self, caller: Domain, domid: int) -> End:
        """Whom one end of a copy names."""
        owner = caller if domid == abi.DOMID_SELF else self._domains.find(domid)
        named = owner or caller
        return End(named.grants, named.ram, owner is not None)

    def _owner_of_copy(self, caller: Domain, *ends: int) -> Domain:
        """Whose grant a copy was about: the first end that is not the caller's own."""
        for domid in ends:
            owner = self._domains.find(domid)
            if owner is not None and owner is not caller:
                return owner
        return caller

    def _setup_table(self, caller: Caller, ops: np.ndarray) -> int:
        """Are there so many frames? A domain is born with them mapped."""
        status, owner = self._target(caller, int(ops["dom"][0]))
        if owner is not None and int(ops["nr_frames"][0]) > owner.nr_grant_frames:
            status = abi.GNTST_GENERAL_ERROR
        ops["status"] = status
        return 0

    def _query_size(self, caller: Caller, ops: np.ndarray) -> int:
        ops["status"], owner = self._target(caller, int(ops["dom"][0]))
        if owner is not None:
            ops["nr_frames"] = ops["max_nr_frames"] = owner.nr_grant_frames
        return 0

    def _target(self, caller: Caller, domid: int) -> tuple[int, Domain | None]:
        """The domain a call is about: the caller's own; for a privileged one any (XSM_TARGET)."""
        if domid in (abi.DOMID_SELF, caller.domain.domid):
            return abi.GNTST_OKAY, caller.domain
        owner = self._domains.find(domid)
        if owner is None:
            return abi.GNTST_BAD_DOMAIN, None
        if not caller.domain.has_role(PRIVILEGED):
            return abi.GNTST_PERMISSION_DENIED, None
        return abi.GNTST_OKAY, owner


def _count(owner: Domain, kind: int, done: int, asked: int, hypercall: int) -> None:
    """Book operations, and the level they leave, to whose grants they were about."""
    words = owner.counter_words
    words[HYPERCALLS] += hypercall
    words[kind] += done
    words[FAILED_OPS] += asked - done
    words[GRANTS_MAPPED] = owner.mapped


def _runs(values: list[_Value], ops: np.ndarray) -> Iterator[tuple[_Value, np.ndarray]]:
    """The stretches of `ops` whose values are equal: the value, and the ops."""
    if values.count(values[0]) == len(values):  # as nearly always
        yield values[0], ops
        return
    start = 0
    for value, run in groupby(values):
        end = start + sum(1 for _ in run)
        yield value, ops[start:end]
        start = end


_Method = Callable[[GrantCalls, Caller, np.ndarray], int]

# By command: the struct, whether only one is taken, and what to do.
GRANT_CALLS: Final[dict[int, tuple[np.dtype[np.void], bool, _Method]]] = {
    abi.GNTTABOP_MAP_GRANT_REF: (abi.GNTTAB_MAP_GRANT_REF, False, GrantCalls._map),
    abi.GNTTABOP_UNMAP_GRANT_REF: (abi.GNTTAB_UNMAP_GRANT_REF, False, GrantCalls._unmap),
    abi.GNTTABOP_COPY: (abi.GNTTAB_COPY, False, GrantCalls._copy),
    abi.GNTTABOP_SETUP_TABLE: (abi.GNTTAB_SETUP_TABLE, True, GrantCalls._setup_table),
    abi.GNTTABOP_QUERY_SIZE: (abi.GNTTAB_QUERY_SIZE, True, GrantCalls._query_size),
}
