"""Attacks on the hypercall connection: calls without end, the largest there are, and empty ones."""

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from common import abi
from common.hypercall import (
    DESCRIPTORS_MAX,
    DOMCTL_CREATEDOMAIN,
    DOMCTL_DESTROYDOMAIN,
    DOMCTL_DOMAIN,
    DOMCTL_GET_MEMORY,
    DOMCTL_GET_VCPU,
    DOMCTL_MEMORY,
    DOMCTL_VCPU,
    GATE_KICK,
    HYPERCALL,
    MESSAGE_MAX,
)
from hostile.attacker import Attacker

ROOM: Final = MESSAGE_MAX - HYPERCALL.itemsize
RANDOM_SEED: Final = 11


def packet(number: int, cmd: int, args: np.ndarray) -> bytes:
    """A call as it goes over the connection."""
    header = np.zeros(1, HYPERCALL)
    header["number"], header["cmd"] = number, cmd
    return header.tobytes() + args.tobytes()


def call(me: Attacker, message: bytes) -> bytes:
    """Send, and read the answer; descriptors that come with it are closed. Raises OSError."""
    me.hypercalls.send(message)
    reply, descriptors, _, _ = socket.recv_fds(me.hypercalls, MESSAGE_MAX + 1, DESCRIPTORS_MAX)
    for fd in descriptors:
        os.close(fd)
    if not reply:
        raise ConnectionResetError("cut off")
    me.stroke()
    return reply


def _for_ever(me: Attacker, messages: Sequence[bytes]) -> Iterator[None]:
    while True:
        for message in messages:
            call(me, message)
            yield


def _many(dtype: np.dtype) -> np.ndarray:
    """As many arguments as a packet holds."""
    return np.zeros(ROOM // dtype.itemsize, dtype)


def flood(me: Attacker) -> Iterator[None]:
    """The cheapest sound calls."""
    table = np.zeros(1, abi.GNTTAB_QUERY_SIZE)
    table["dom"] = abi.DOMID_SELF
    port = np.zeros(1, abi.EVTCHN_STATUS)
    port["dom"] = abi.DOMID_SELF
    return _for_ever(
        me,
        [
            packet(abi.HYPERVISOR_GRANT_TABLE_OP, abi.GNTTABOP_QUERY_SIZE, table),
            packet(abi.HYPERVISOR_EVENT_CHANNEL_OP, abi.EVTCHNOP_STATUS, port),
        ],
    )


def maximal_maps(me: Attacker) -> Iterator[None]:
    """Full packets of maps, each of another domain than the one before: nothing is done at once."""
    ops = _many(abi.GNTTAB_MAP_GRANT_REF)
    ops["flags"], ops["host_addr"] = abi.GNTMAP_HOST_MAP, abi.XEN_PAGE_SIZE
    ops["ref"] = np.arange(len(ops)) % 2048
    ops["dom"] = np.where(np.arange(len(ops)) % 2, me.config.domid, 1)
    return _for_ever(me, [packet(abi.HYPERVISOR_GRANT_TABLE_OP, abi.GNTTABOP_MAP_GRANT_REF, ops)])


def maximal_unmaps(me: Attacker) -> Iterator[None]:
    """It maps its own pages, all its maptrack holds, and unmaps them among garbage handles."""
    domid = me.config.domid
    entries = me.grant.view(np.uint32)
    entries[0::2] = abi.GTF_PERMIT_ACCESS | domid << 16
    entries[1::2] = 0
    maps = _many(abi.GNTTAB_MAP_GRANT_REF)
    maps["flags"], maps["host_addr"] = abi.GNTMAP_HOST_MAP, abi.XEN_PAGE_SIZE
    maps["ref"], maps["dom"] = np.arange(len(maps)) % 2048, domid
    unmaps = _many(abi.GNTTAB_UNMAP_GRANT_REF)
    unmaps["handle"], unmaps["host_addr"] = np.arange(len(unmaps)) % 300, abi.XEN_PAGE_SIZE
    number = abi.HYPERVISOR_GRANT_TABLE_OP
    return _for_ever(
        me,
        [
            packet(number, abi.GNTTABOP_MAP_GRANT_REF, maps),
            packet(number, abi.GNTTABOP_UNMAP_GRANT_REF, unmaps),
        ],
    )


def maximal_copies(me: Attacker) -> Iterator[None]:
    """Full packets of copies: whole pages of its own, and each second one of somebody else's."""
    ops = _many(abi.GNTTAB_COPY)
    ops["len"] = abi.XEN_PAGE_SIZE
    ops["source"]["domid"] = np.where(np.arange(len(ops)) % 2, abi.DOMID_SELF, 1)
    ops["source"]["gmfn"], ops["dest"]["gmfn"] = np.arange(len(ops)) % 32, 40
    ops["dest"]["domid"] = abi.DOMID_SELF
    return _for_ever(me, [packet(abi.HYPERVISOR_GRANT_TABLE_OP, abi.GNTTABOP_COPY, ops)])


def garbage(me: Attacker) -> Iterator[None]:
    """Packets of chance, and chance in the arguments of calls there are."""
    rng = np.random.default_rng(RANDOM_SEED)
    numbers = (abi.HYPERVISOR_GRANT_TABLE_OP, abi.HYPERVISOR_EVENT_CHANNEL_OP, GATE_KICK)
    while True:
        size = int(rng.integers(1, MESSAGE_MAX))
        call(me, rng.bytes(size))
        number, cmd = int(rng.choice(numbers)), int(rng.integers(0, 12))
        for nbytes in (2, 4, 8, 12, 24, 16 * 24, 40 * 32):
            call(me, packet(number, cmd, np.frombuffer(rng.bytes(nbytes), np.uint8)))
            yield


def oversize(me: Attacker) -> Iterator[None]:
    """Packets of more than a packet may have."""
    return _for_ever(me, [bytes(MESSAGE_MAX + 1), bytes(4 * MESSAGE_MAX)])


def domctls(me: Attacker) -> Iterator[None]:
    """What only domain 0 may ask for."""
    domain, vcpu, memory = (np.zeros(1, d) for d in (DOMCTL_DOMAIN, DOMCTL_VCPU, DOMCTL_MEMORY))
    domain["domid"], domain["nr_vcpus"] = 1, 1
    domain["ram_frames"], domain["grant_frames"] = 16, 1
    memory["domid"], memory["segment"] = 1, b"ram"
    orders = (
        (DOMCTL_DESTROYDOMAIN, domain),
        (DOMCTL_CREATEDOMAIN, domain),
        (DOMCTL_GET_VCPU, vcpu),
        (DOMCTL_GET_MEMORY, memory),
    )
    return _for_ever(me, [packet(abi.HYPERVISOR_DOMCTL, cmd, args) for cmd, args in orders])


def descriptors(me: Attacker) -> Iterator[None]:
    """Calls with descriptors, as far as the seal lets them out."""
    args = np.zeros(1, abi.GNTTAB_QUERY_SIZE)
    message = packet(abi.HYPERVISOR_GRANT_TABLE_OP, abi.GNTTABOP_QUERY_SIZE, args)
    while True:
        with contextlib.suppress(PermissionError):
            socket.send_fds(me.hypercalls, [message], [me.store.fileno()] * 8)
            me.hypercalls.recv(MESSAGE_MAX)
        call(me, message)
        yield


def empty(me: Attacker) -> Iterator[None]:
    """Packets of nothing."""
    while True:
        me.stroke()  # before: it may be the death of it
        me.hypercalls.send(b"")
        yield


def unread(me: Attacker) -> Iterator[None]:
    """The largest answers, and it reads none."""
    ops = _many(abi.GNTTAB_MAP_GRANT_REF)
    yield from _send_only(me, [packet(abi.HYPERVISOR_GRANT_TABLE_OP, 0, ops)])


def unread_ports(me: Attacker) -> Iterator[None]:
    """Ports opened and closed; it reads no answer, and each brings two descriptors."""
    opened = np.zeros(1, abi.EVTCHN_ALLOC_UNBOUND)
    opened["dom"] = abi.DOMID_SELF
    closed = np.zeros(1, abi.EVTCHN_CLOSE)
    closed["port"] = 1
    number = abi.HYPERVISOR_EVENT_CHANNEL_OP
    yield from _send_only(
        me,
        [
            packet(number, abi.EVTCHNOP_ALLOC_UNBOUND, opened),
            packet(number, abi.EVTCHNOP_CLOSE, closed),
        ],
    )


def _send_only(me: Attacker, messages: Sequence[bytes]) -> Iterator[None]:
    while True:
        for message in messages:
            with contextlib.suppress(BlockingIOError, TimeoutError):
                me.hypercalls.send(message)
                me.stroke()
            yield


def ports_endless(me: Attacker) -> Iterator[None]:
    """Unbound ports for domain 0 until there are no more, then all closed, and again."""
    opened = np.zeros(1, abi.EVTCHN_ALLOC_UNBOUND)
    opened["dom"] = abi.DOMID_SELF
    reset = np.zeros(1, abi.EVTCHN_RESET)
    reset["dom"] = abi.DOMID_SELF
    number = abi.HYPERVISOR_EVENT_CHANNEL_OP
    while True:
        for _ in range(abi.EVTCHN_2L_NR_CHANNELS):
            reply = call(me, packet(number, abi.EVTCHNOP_ALLOC_UNBOUND, opened))
            yield
            if np.frombuffer(reply, HYPERCALL, count=1)["rc"][0] < 0:
                break
        call(me, packet(number, abi.EVTCHNOP_RESET, reset))
        yield


def ports_to_itself(me: Attacker) -> Iterator[None]:
    """Channels whose both ends are its own, as many as there are ports."""
    opened = np.zeros(1, abi.EVTCHN_ALLOC_UNBOUND)
    opened["dom"] = opened["remote_dom"] = abi.DOMID_SELF
    bound = np.zeros(1, abi.EVTCHN_BIND_INTERDOMAIN)
    bound["remote_dom"] = abi.DOMID_SELF
    number = abi.HYPERVISOR_EVENT_CHANNEL_OP
    while True:
        reply = call(me, packet(number, abi.EVTCHNOP_ALLOC_UNBOUND, opened))
        filled = np.frombuffer(reply, abi.EVTCHN_ALLOC_UNBOUND, offset=HYPERCALL.itemsize)
        bound["remote_port"] = filled["port"]
        call(me, packet(number, abi.EVTCHNOP_BIND_INTERDOMAIN, bound))
        yield


def ports_of_others(me: Attacker) -> Iterator[None]:
    """Everybody's ports: bound, closed, reset, asked for their state."""
    number = abi.HYPERVISOR_EVENT_CHANNEL_OP
    bound = np.zeros(1, abi.EVTCHN_BIND_INTERDOMAIN)
    status, reset = np.zeros(1, abi.EVTCHN_STATUS), np.zeros(1, abi.EVTCHN_RESET)
    while True:
        for domid in range(8):
            if domid == me.config.domid:
                continue
            status["dom"] = reset["dom"] = bound["remote_dom"] = domid
            call(me, packet(number, abi.EVTCHNOP_RESET, reset))
            for port in range(1, 9):
                bound["remote_port"] = status["port"] = port
                call(me, packet(number, abi.EVTCHNOP_BIND_INTERDOMAIN, bound))
                call(me, packet(number, abi.EVTCHNOP_STATUS, status))
                yield
