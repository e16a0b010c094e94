"""What everything costs in virtual time: the one table of the model's parameters.

Owns: each parameter's value, unit and source. Rules: a parameter is `published` (somebody else's
figure), `measured` (on a machine of the kind this project runs on) or `fitted`; two are fitted, to
one point (`docs/simulator.md`), and everything the model then says of other points is a prediction.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, NamedTuple

Source = Literal["published", "measured", "fitted"]


class Parameter(NamedTuple):
    """One row of the table; `unit` is what `value` counts."""

    name: str
    value: float
    unit: str
    source: Source
    why: str


TABLE: Final = (
    Parameter("block_layer_ns", 2240, "ns a request, each end", "fitted",
        "bio, queue and driver code of Linux's block layer, in the guest as in dom0"),
    Parameter("ipi_ack_ns", 562, "ns a flush", "fitted",
        "from the last IPI sent to the last acknowledged, lock held"),
    Parameter("ipi_send_ns", 200, "ns a target", "published",
        "a TLB shootdown costs about 0.2 us a receiver (tutorial figure, weak)"),
    Parameter("ipi_handler_ns", 560, "ns a target", "published",
        "ipi_benchmark: 1.8 us sent to acknowledged less 1.24 us to delivery"),
    Parameter("ipi_delivery_ns", 1240, "ns", "published",
        "ipi_benchmark: an event's interrupt, sent to delivered"),
    Parameter("idle_exit_ns", 2000, "ns", "published",
        "Linux's intel_idle.c: C1 exit latency of the Xeons of 2012"),
    Parameter("hypercall_ns", 200, "ns a call", "published",
        "xen-netback: 0.49 us a one-packet copy hypercall, less the operation and the copy"),
    Parameter("grant_op_ns", 150, "ns an operation", "published",
        "the same 0.49 us, less the call and the copy of a packet"),
    Parameter("local_flush_ns", 100, "ns a page", "published",
        "the Linux patches of 2014 behind tlb_single_page_flush_ceiling: some 100 ns"),
    Parameter("table_lock_ns", 100, "ns an operation", "measured",
        "a grant-table or maptrack lock held: two transfers of a cache line"),
    Parameter("lock_handover_ns", 50, "ns a waiter", "measured",
        "one transfer of a cache line: half of the 0.1 us round trip on shared memory"),
    Parameter("copy_cold_ns", 456, "ns a 4-KiB page", "measured",
        "one random 4-KiB memcpy into 256 MiB: between a page and the ramdisk"),
    Parameter("copy_hot_ns", 164, "ns a 4-KiB page", "measured",
        "two copies, one hot, take 620 ns: between a buffer and a pool page"),
    Parameter("memory_bytes_a_us", 40_000, "bytes a us", "published",
        "STREAM on two Xeon 5600 sockets: about 40 GB/s for all CPUs together"),
    Parameter("guest_io_ns", 1560, "ns an I/O", "measured",
        "fio psync on tmpfs, 640,000 I/Os a second: fio and its system calls"),
    Parameter("interrupt_ns", 683, "ns", "published",
        "SplitX: a VM exit costs 2,000 cycles at 2.93 GHz: an event's upcall"),
    Parameter("wakeup_ns", 2250, "ns", "measured",
        "half of the 4.5 us blocking round trip of two threads on one CPU"),
    Parameter("slice_us", 1000, "us", "published",
        "Xen's credit scheduler: ratelimit_us, what a vCPU runs before another may"),
    Parameter("spread", 0.24, "std. deviation / mean", "measured",
        "of 20,000 timed 4-KiB copies: how much one request's software time varies"),
)  # fmt: skip
assert len({row.name for row in TABLE}) == len(TABLE)
assert sum(row.source == "fitted" for row in TABLE) <= 2


@dataclass(frozen=True)
class Costs:
    """The table's values, as the machine uses them."""

    block_layer_ns: float
    ipi_ack_ns: float
    ipi_send_ns: float
    ipi_handler_ns: float
    ipi_delivery_ns: float
    idle_exit_ns: float
    hypercall_ns: float
    grant_op_ns: float
    local_flush_ns: float
    table_lock_ns: float
    lock_handover_ns: float
    copy_cold_ns: float
    copy_hot_ns: float
    memory_bytes_a_us: float
    guest_io_ns: float
    interrupt_ns: float
    wakeup_ns: float
    slice_us: float
    spread: float

    def but(self, **changes: float) -> "Costs":
        """The same costs with some changed."""
        return replace(self, **changes)


assert {field.name for field in fields(Costs)} == {row.name for row in TABLE}
_VALUES: Final[dict[str, Any]] = {row.name: row.value for row in TABLE}
COSTS: Final = Costs(**_VALUES)


@dataclass(frozen=True)
class Era:
    """What was otherwise in 2012, and bounds or bends the curve.

    byte_lock: Xen's spinlocks were unfair byte locks (ticket locks since 2015). requests_max:
    blkback's pool of requests in flight for all guests (`xen_blkif_reqs`; for each backend since
    2013), None for none. table_lock: one maptrack lock a domain (split in 2015). local_flush: dom0
    flushes a page locally when it drops a foreign mapping.
    """

    byte_lock: bool
    requests_max: int | None
    table_lock: bool
    local_flush: bool


ERAS: Final = {
    "2012": Era(byte_lock=True, requests_max=64, table_lock=True, local_flush=True),
    "today": Era(byte_lock=False, requests_max=None, table_lock=False, local_flush=False),
}
