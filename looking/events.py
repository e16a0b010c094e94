"""The words of a domain's event channels, decoded: which ports are pending or masked, at which end.

Owns: how they are decoded. They lie with the domain that allocated the port: its own in its
shared-info page, the far ends' in the page behind it (`common/event_channel.py`).
"""

from typing import NamedTuple

import numpy as np

from common.abi import EVTCHN_2L_NR_CHANNELS, SHARED_INFO, XEN_PAGE_SIZE
from looking.table import table


class Port(NamedTuple):
    """Of one end of a channel; number: the allocating domain's."""

    number: int
    end: str
    pending: bool
    masked: bool


class Events(NamedTuple):
    """Both ends of every port that is open at one of them, or pending, by number."""

    ports: tuple[Port, ...]

    def __str__(self) -> str:
        rows = [
            (p.number, p.end, "pending" if p.pending else "-", "masked" if p.masked else "-")
            for p in self.ports
        ]
        return table(("port", "end", "pending", "mask"), rows, "no port is open")


def events(segment: np.ndarray) -> Events:
    """Decode a copy of a domain's `event` segment (u8, two pages). A port is open that is unmasked
    at an end; who has closed one masks it."""
    ends = [_bits(segment[:XEN_PAGE_SIZE]), _bits(segment[XEN_PAGE_SIZE : 2 * XEN_PAGE_SIZE])]
    (numbers,) = np.nonzero(np.any([pending | ~masked for pending, masked in ends], axis=0))
    return Events(
        tuple(
            Port(int(number), name, bool(pending[number]), bool(masked[number]))
            for number in numbers
            for name, (pending, masked) in zip(("own", "far"), ends, strict=True)
        )
    )


def _bits(page: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pending and masked by port: bool, shape (EVTCHN_2L_NR_CHANNELS,)."""
    info = page.view(SHARED_INFO)[0]
    pending, masked = (
        np.unpackbits(info[name].view(np.uint8), bitorder="little").astype(bool)
        for name in ("evtchn_pending", "evtchn_mask")
    )
    assert len(pending) == len(masked) == EVTCHN_2L_NR_CHANNELS
    return pending, masked
