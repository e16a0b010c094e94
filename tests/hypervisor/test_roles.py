"""What a domain may, and where it runs, stands in its role, and not in its number."""

import errno
from typing import Final

import numpy as np
import pytest

from common import abi
from common.arena import Arena
from common.hypercall_gate import (
    ANSWERED,
    CMD,
    NBYTES,
    NUMBER,
    POSTED,
    STATE,
    gate_bytes,
    header_of,
    payload_of,
)
from frontend.grants import grant_access, new_grants
from hypervisor.domains import BACKEND, GUEST, PRIVILEGED
from hypervisor.gate_server import GateServer
from machine.hypervisor import build_domain, build_hypervisor, domain_memory, host_memory

OWNER: Final = 1  # whose pages are mapped
OTHER: Final = 5  # whose role is another each time
NR_CPUS: Final = 4
EVERY_ROLE = [GUEST, BACKEND, PRIVILEGED, PRIVILEGED | BACKEND]


class Machine:
    """Domain 0 is a guest here; OTHER has `role`, and as many vCPUs as there are CPUs."""

    def __init__(self, role: int) -> None:
        arena = Arena()
        machine, dom0 = host_memory(arena, nr_handles=64), domain_memory(arena, 1)
        self.host = machine.host
        self.hypervisor = build_hypervisor(arena, machine, dom0, nr_cpus=NR_CPUS, policy="mask")
        self.hypervisor.domains._rows["role"][0] = GUEST
        owner = domain_memory(arena, 4)
        build_domain(self.hypervisor, machine, OWNER, owner)
        other = domain_memory(arena, 1, grant_frames=3)
        build_domain(self.hypervisor, machine, OTHER, other, nr_vcpus=NR_CPUS, role=role)
        self.host["dirty"][0, :NR_CPUS] = 1
        self.gref = int(grant_access(new_grants(arena, owner.grant), OTHER, 2, False))

    def call(self, cmd: int, op: np.ndarray, by: int = OTHER, vcpu: int = 1) -> np.ndarray:
        """A grant-table call's op, as it is filled."""
        payload = bytearray(op.tobytes())
        number = abi.HYPERVISOR_GRANT_TABLE_OP
        assert self.hypervisor.hypercall(by, vcpu, number, cmd, payload, False) == 0
        return np.frombuffer(payload, op.dtype)

    def asks_about_owner(self, by: int) -> int:
        """Its status."""
        size = np.zeros(1, abi.GNTTAB_QUERY_SIZE)
        size["dom"] = OWNER
        return int(self.call(abi.GNTTABOP_QUERY_SIZE, size, by)["status"][0])


@pytest.mark.parametrize("role", EVERY_ROLE)
def test_only_who_is_privileged_may_ask_about_others(role: int) -> None:
    machine = Machine(role)
    allowed = role & PRIVILEGED
    expected = abi.GNTST_OKAY if allowed else abi.GNTST_PERMISSION_DENIED
    assert machine.asks_about_owner(OTHER) == expected
    assert machine.asks_about_owner(abi.DOMID_0) == abi.GNTST_PERMISSION_DENIED
    reset = np.zeros(1, abi.EVTCHN_RESET)
    reset["dom"] = OWNER
    number, cmd = abi.HYPERVISOR_EVENT_CHANNEL_OP, abi.EVTCHNOP_RESET
    rc = machine.hypervisor.hypercall(OTHER, 0, number, cmd, bytearray(reset.tobytes()), False)
    assert rc == (0 if allowed else -errno.EPERM)


@pytest.mark.parametrize("role", EVERY_ROLE)
def test_only_backends_run_on_the_worker_cpus(role: int) -> None:
    machine = Machine(role)
    op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    op["host_addr"], op["flags"] = 0x1000, abi.GNTMAP_HOST_MAP
    op["ref"], op["dom"] = machine.gref, OWNER
    mapped = machine.call(abi.GNTTABOP_MAP_GRANT_REF, op)
    assert mapped["status"][0] == abi.GNTST_OKAY
    unmap = np.zeros(1, abi.GNTTAB_UNMAP_GRANT_REF)
    unmap["host_addr"], unmap["handle"] = mapped["host_addr"], mapped["handle"]
    assert machine.call(abi.GNTTABOP_UNMAP_GRANT_REF, unmap)["status"][0] == abi.GNTST_OKAY
    received = machine.host["cpus"]["ipis_received"][0, :NR_CPUS].tolist()
    assert received == ([1, 0, 1, 1] if role & BACKEND else [0] * NR_CPUS)


def test_a_gate_is_that_of_one_backend() -> None:
    machine = Machine(BACKEND)
    segment = np.zeros(gate_bytes(2), np.uint8)
    size = np.zeros(1, abi.GNTTAB_QUERY_SIZE)
    size["dom"] = abi.DOMID_SELF
    at, header, words = int(payload_of(1)), int(header_of(1)), segment.view(np.uint32)
    segment[at : at + size.nbytes] = size.view(np.uint8)
    for field, value in (
        (NUMBER, abi.HYPERVISOR_GRANT_TABLE_OP),
        (CMD, abi.GNTTABOP_QUERY_SIZE),
        (NBYTES, size.nbytes),
        (STATE, POSTED),
    ):
        words[header + field] = value
    GateServer(machine.hypervisor, segment, 2, domid=OTHER).make_call(1, False)
    assert words[header + STATE] == ANSWERED
    answer = segment[at : at + size.nbytes].view(abi.GNTTAB_QUERY_SIZE)
    assert (answer["status"][0], answer["nr_frames"][0]) == (abi.GNTST_OKAY, 3)
