"""What a hypercall does: from the caller, a number and an array of Xen's structs to statuses.

Owns: the dispatch, the order of an unmap (first half, flush, second half, 32 at a time), and what
is counted for whom. Sans-I/O: `hypervisor/broker.py` brings the calls from sockets, a simulator or
a test makes them directly.
Rules: the caller is given, never read from the arguments. What a caller sends can make its own call
fail and nothing else. Each entry of a grant-table call has its own status; the call itself fails
(-errno) only where its form is wrong.
"""

import errno
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import compress, groupby
from typing import Final, NamedTuple, TypeVar

import numpy as np

from common import abi
from common.counters import HYPERVISOR_COUNTERS
from common.machine_memory import MAPTRACK_HANDLES_MAX
from common.not_done import GNTST_UNFILLED
from hypervisor.cpus import FLUSH_ENTRIES_MAX, NO_CPU, NO_FLUSH, Cpus
from hypervisor.domains import GUEST_HANDLES_MAX, Domain, Domains
from hypervisor.event_channels import EventChannels
from hypervisor.grant_copy import End, copy_run
from hypervisor.grant_table import end_unmap, map_grants, new_grant_table
from hypervisor.maptrack import UNMAPPED, begin_unmap, new_maptrack

COUNTER: Final = {name: at for at, name in enumerate(HYPERVISOR_COUNTERS.names or ())}
GRANTS_MAPPED: Final = COUNTER["grants_mapped"]

_Value = TypeVar("_Value", bound=Hashable)


class Caller(NamedTuple):
    """Who calls: the domain, its vCPU's worker CPU (NO_CPU for guests), and whether it queued on
    the flush lock behind another's flush."""

    domain: Domain
    cpu: int
    waited: bool


class Hypervisor:
    """The machine's hypercalls. `flushes` counts every flush there was."""

    def __init__(self, cpus: Cpus) -> None:
        self.domains = Domains()
        self.flushes = 0
        self._cpus = cpus
        self._unmapped = np.zeros(FLUSH_ENTRIES_MAX, UNMAPPED)

    def create_domain(
        self,
        domid: int,
        *,
        nr_vcpus: int,
        ram: np.ndarray,
        grant_frames: np.ndarray,
        shared_info: np.ndarray,
        far_events: np.ndarray,
        counters: np.ndarray,
        in_store: bool = False,
    ) -> None:
        """A new domain on its memory (u8, whole frames); counters: HYPERVISOR_COUNTERS (1,).

        in_store: its domid is not free again before `released`.
        """
        handles = MAPTRACK_HANDLES_MAX if domid == abi.DOMID_0 else GUEST_HANDLES_MAX
        self.domains.add(
            Domain(
                domid,
                nr_vcpus,
                ram,
                new_grant_table(domid, grant_frames, len(ram) // abi.XEN_PAGE_SIZE),
                new_maptrack(handles),
                EventChannels(domid, shared_info, far_events),
                counters,
                in_store=in_store,
            )
        )

    def destroy_domain(self, domid: int) -> None:
        """End a domain: unmap what it has mapped, close its ports. Its own pages stay as long as
        others have them mapped."""
        domain = self.domains.find(domid)
        assert domain is not None
        live = np.flatnonzero(domain.maptrack.entries["flags"])
        ops = np.zeros(len(live), abi.GNTTAB_UNMAP_GRANT_REF)
        ops["handle"], entries = live, domain.maptrack.entries[live]
        ops["host_addr"] = entries["host_addr"]
        device = (entries["flags"] & abi.GNTMAP_DEVICE_MAP) != 0
        ops["dev_bus_addr"] = entries["frame"].astype(np.uint64) * abi.XEN_PAGE_SIZE * device
        ops["status"] = GNTST_UNFILLED
        self._unmap(Caller(domain, NO_CPU, False), ops)
        assert not ops["status"].any(), "a mapping that the maptrack has cannot be unmapped"
        for port in domain.channels.ports():
            self._close_port(domain, port)
        domain.dying = True
        self.domains.bury(domain)

    def released(self, domid: int) -> None:
        """xenstored has forgotten the domain, wholly."""
        domain = self.domains.find_dying(domid)
        if domain is not None and domain.dying:
            domain.in_store = False
            self.domains.bury(domain)

    def hypercall(
        self, domid: int, vcpu: int, number: int, cmd: int, payload: bytearray, waited: bool
    ) -> int:
        """Make one hypercall over `payload`, an array of the op's struct, filled in place.

        Returns 0 or -errno: ENOSYS for no such call, EINVAL for a payload of the wrong form.
        """
        domain = self.domains.find(domid)
        if domain is None:
            return -errno.ESRCH
        op = OPERATIONS.get((number, cmd))
        if op is None:
            return -errno.ENOSYS
        dtype, single, method = op
        if (
            not payload
            or len(payload) % dtype.itemsize
            or (single and len(payload) > dtype.itemsize)
        ):
            return -errno.EINVAL
        cpu = vcpu if domid == abi.DOMID_0 else NO_CPU
        return method(self, Caller(domain, cpu, waited), np.frombuffer(payload, dtype))

    # --- grant_table.h ----------------------------------------------------------------------

    def _map(self, caller: Caller, ops: np.ndarray) -> int:
        hypercall = True  # counted for the first domain there is
        for domid, start, end in _runs(ops["dom"].tolist()):
            run = ops[start:end]
            owner = self.domains.find(domid)
            if owner is None:
                run["status"] = abi.GNTST_BAD_DOMAIN
                continue
            mapped = int(map_grants(owner.grants, caller.domain.maptrack, caller.domain.domid, run))
            self._count(owner, map_ops=mapped, failed_ops=len(run) - mapped, hypercalls=hypercall)
            hypercall = False
        return 0

    def _unmap(self, caller: Caller, ops: np.ndarray) -> int:
        hypercall = True
        for start in range(0, len(ops), FLUSH_ENTRIES_MAX):
            batch = ops[start : start + FLUSH_ENTRIES_MAX]
            unmapped = self._unmapped[: len(batch)]
            took = int(begin_unmap(caller.domain.maptrack, batch, unmapped))
            if took:
                self._flush_and_end(caller, unmapped, took, hypercall)
                hypercall = False
            if took < len(batch):
                self._count_failed_unmaps(caller.domain, batch[batch["status"] != abi.GNTST_OKAY])
        return 0

    def _count_failed_unmaps(self, mapper: Domain, failed: np.ndarray) -> None:
        """Book them where the handle says whose grant it was; a bad handle says nothing."""
        entries = mapper.maptrack.entries
        for handle in failed["handle"].tolist():
            if handle < len(entries) and entries["flags"][handle]:
                owner = self.domains.find_dying(int(entries["domid"][handle]))
                assert owner is not None
                self._count(owner, failed_ops=1)

    def _flush_and_end(
        self, caller: Caller, unmapped: np.ndarray, took: int, hypercall: bool
    ) -> None:
        """Flush, and drop the pins of the `took` entries of `unmapped` that were done."""
        ipis = self._flush(caller, unmapped)
        domids = compress(unmapped["domid"].tolist(), unmapped["done"].tolist())
        for place, domid in enumerate(dict.fromkeys(domids)):
            owner = self.domains.find_dying(domid)
            assert owner is not None, "a domain was buried while its pages were mapped"
            ended = int(end_unmap(owner.grants, unmapped))
            self._count(owner, unmap_ops=ended, hypercalls=hypercall and place == 0)
            if ipis != NO_FLUSH and place == 0:  # one flush for all: booked to the first
                self._count(
                    owner,
                    flushes=1,
                    flush_entries=took,
                    ipis=ipis,
                    flush_lock_waits=caller.waited,
                )
            self.domains.bury(owner)

    def _flush(self, caller: Caller, unmapped: np.ndarray) -> int:
        """IPIs, or NO_FLUSH. A guest runs on no worker CPU: its flush is its own CPU's alone."""
        ipis = 0 if caller.cpu == NO_CPU else self._cpus.flush(caller.cpu, unmapped, caller.waited)
        self.flushes += ipis != NO_FLUSH
        return ipis

    def _copy(self, caller: Caller, ops: np.ndarray) -> int:
        hypercall = True
        ends = zip(ops["source"]["domid"].tolist(), ops["dest"]["domid"].tolist(), strict=True)
        for (source, dest), start, end in _runs(ends):
            run = ops[start:end]
            ours = caller.domain
            copied = int(copy_run(ours.domid, self._end(ours, source), self._end(ours, dest), run))
            owner = self._owner_of_copy(ours, source, dest)
            self._count(owner, copy_ops=copied, failed_ops=len(run) - copied, hypercalls=hypercall)
            hypercall = False
        return 0

    def _end(self, caller: Domain, domid: int) -> End:
        """Whom one end of a copy names."""
        owner = caller if domid == abi.DOMID_SELF else self.domains.find(domid)
        named = owner or caller
        return End(named.grants, named.ram, owner is not None)

    def _owner_of_copy(self, caller: Domain, *ends: int) -> Domain:
        """Whose grant a copy was about: the first end that is not the caller's own."""
        for domid in ends:
            owner = self.domains.find(domid)
            if owner is not None and owner is not caller:
                return owner
        return caller

    def _setup_table(self, caller: Caller, ops: np.ndarray) -> int:
        """Are there so many frames? A domain is born with them mapped."""
        status, owner = self._target(caller, int(ops["dom"][0]))
        if owner is not None and int(ops["nr_frames"][0]) > _nr_grant_frames(owner):
            status = abi.GNTST_GENERAL_ERROR
        ops["status"] = status
        return 0

    def _query_size(self, caller: Caller, ops: np.ndarray) -> int:
        ops["status"], owner = self._target(caller, int(ops["dom"][0]))
        if owner is not None:
            ops["nr_frames"] = ops["max_nr_frames"] = _nr_grant_frames(owner)
        return 0

    def _target(self, caller: Caller, domid: int) -> tuple[int, Domain | None]:
        """The domain a call is about: the caller's own, or for domain 0 any (XSM_TARGET)."""
        if domid in (abi.DOMID_SELF, caller.domain.domid):
            return abi.GNTST_OKAY, caller.domain
        owner = self.domains.find(domid)
        if owner is None:
            return abi.GNTST_BAD_DOMAIN, None
        if caller.domain.domid != abi.DOMID_0:
            return abi.GNTST_PERMISSION_DENIED, None
        return abi.GNTST_OKAY, owner

    def _count(self, owner: Domain, **amounts: int) -> None:
        words = owner.counter_words
        for name, amount in amounts.items():
            words[COUNTER[name]] += amount
        words[GRANTS_MAPPED] = owner.mapped

    # --- event_channel.h --------------------------------------------------------------------

    def _alloc_unbound(self, caller: Caller, args: np.ndarray) -> int:
        owner = self._channel_owner(caller, int(args["dom"][0]))
        remote = int(args["remote_dom"][0])
        remote = caller.domain.domid if remote == abi.DOMID_SELF else remote
        if owner is None or self.domains.find(remote) is None:
            return -errno.ESRCH
        if owner is not caller.domain and caller.domain.domid != abi.DOMID_0:
            return -errno.EPERM
        port = owner.channels.alloc_unbound(remote)
        return _set(args, "port", port)

    def _bind_interdomain(self, caller: Caller, args: np.ndarray) -> int:
        remote = self._channel_owner(caller, int(args["remote_dom"][0]))
        if remote is None:
            return -errno.ESRCH
        port = caller.domain.channels.bind(remote.channels, int(args["remote_port"][0]))
        return _set(args, "local_port", port)

    def _close(self, caller: Caller, args: np.ndarray) -> int:
        return self._close_port(caller.domain, int(args["port"][0]))

    def _close_port(self, domain: Domain, port: int) -> int:
        found = domain.channels.get(port)
        remote = None if found is None else self.domains.find(found.remote_dom)
        return domain.channels.close(port, None if remote is None else remote.channels)

    def _unmask(self, caller: Caller, args: np.ndarray) -> int:
        return caller.domain.channels.unmask(int(args["port"][0]))

    def _status(self, caller: Caller, args: np.ndarray) -> int:
        owner = self._channel_owner(caller, int(args["dom"][0]))
        if owner is None:
            return -errno.ESRCH
        if owner is not caller.domain and caller.domain.domid != abi.DOMID_0:
            return -errno.EPERM
        status = owner.channels.status(int(args["port"][0]))
        args["status"], args["remote_dom"], args["remote_port"] = status
        args["vcpu"] = 0
        return 0

    def _reset(self, caller: Caller, args: np.ndarray) -> int:
        owner = self._channel_owner(caller, int(args["dom"][0]))
        if owner is None:
            return -errno.ESRCH
        if owner is not caller.domain and caller.domain.domid != abi.DOMID_0:
            return -errno.EPERM
        for port in owner.channels.ports():
            self._close_port(owner, port)
        return 0

    def _channel_owner(self, caller: Caller, domid: int) -> Domain | None:
        return caller.domain if domid == abi.DOMID_SELF else self.domains.find(domid)


def _set(args: np.ndarray, field: str, port: int) -> int:
    """Answer with a new port, or with the error it is."""
    if port < 0:
        return port
    args[field] = port
    return 0


def _nr_grant_frames(domain: Domain) -> int:
    return len(domain.grants.active) // abi.GRANT_ENTRIES_PER_FRAME


def _runs(values: Iterable[_Value]) -> Iterator[tuple[_Value, int, int]]:
    """The stretches of equal values: the value, start and end of each."""
    start = 0
    for value, run in groupby(values):
        end = start + sum(1 for _ in run)
        yield value, start, end
        start = end


_Method = Callable[[Hypervisor, Caller, np.ndarray], int]

# By hypercall and command: the struct, whether only one is taken, and what to do.
# EVTCHNOP_send is not there: an event is the sender's to set (common/event_channel.py).
OPERATIONS: Final[dict[tuple[int, int], tuple[np.dtype[np.void], bool, _Method]]] = {
    (abi.HYPERVISOR_GRANT_TABLE_OP, cmd): (dtype, single, method)
    for cmd, dtype, single, method in (
        (abi.GNTTABOP_MAP_GRANT_REF, abi.GNTTAB_MAP_GRANT_REF, False, Hypervisor._map),
        (abi.GNTTABOP_UNMAP_GRANT_REF, abi.GNTTAB_UNMAP_GRANT_REF, False, Hypervisor._unmap),
        (abi.GNTTABOP_COPY, abi.GNTTAB_COPY, False, Hypervisor._copy),
        (abi.GNTTABOP_SETUP_TABLE, abi.GNTTAB_SETUP_TABLE, True, Hypervisor._setup_table),
        (abi.GNTTABOP_QUERY_SIZE, abi.GNTTAB_QUERY_SIZE, True, Hypervisor._query_size),
    )
} | {
    (abi.HYPERVISOR_EVENT_CHANNEL_OP, cmd): (dtype, True, method)
    for cmd, dtype, method in (
        (abi.EVTCHNOP_ALLOC_UNBOUND, abi.EVTCHN_ALLOC_UNBOUND, Hypervisor._alloc_unbound),
        (abi.EVTCHNOP_BIND_INTERDOMAIN, abi.EVTCHN_BIND_INTERDOMAIN, Hypervisor._bind_interdomain),
        (abi.EVTCHNOP_CLOSE, abi.EVTCHN_CLOSE, Hypervisor._close),
        (abi.EVTCHNOP_UNMASK, abi.EVTCHN_UNMASK, Hypervisor._unmask),
        (abi.EVTCHNOP_STATUS, abi.EVTCHN_STATUS, Hypervisor._status),
        (abi.EVTCHNOP_RESET, abi.EVTCHN_RESET, Hypervisor._reset),
    )
}
