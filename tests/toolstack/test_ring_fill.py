"""How full a ring is: read from a page that its guest may write anything into."""

from typing import Any

import numpy as np
import pytest

from common import abi
from common.ring import REQ, RSP
from common.xenstore import XenStoreError
from toolstack import ring_fill
from toolstack.ring_fill import RingFills

DOMID, DEVICE, GREF = 3, 51712, 9
FULL = {"used": 32, "slots": 32}


class Around:
    """A guest's memory of four frames, its node in the store, and its grant table."""

    def __init__(self, ring_frame: int = 2) -> None:
        self.ram = np.zeros(4 * abi.XEN_PAGE_SIZE, np.uint8)
        self.ring_ref: bytes | None = str(GREF).encode()
        self.granted = {GREF: ring_frame}
        self.asked = 0

    def segment(self, name: str, domid: int) -> np.ndarray:
        assert (name, domid) == ("ram", DOMID)
        return self.ram

    def read(self, path: str) -> bytes:
        assert path == f"/local/domain/{DOMID}/device/vbd/{DEVICE}/ring-ref"
        if self.ring_ref is None:
            raise XenStoreError("ENOENT", path, "read")
        return self.ring_ref

    def ask(self, *message: Any) -> list[Any]:
        self.asked += 1
        first = message[-1]
        assert message == ("hypervisor", "grants", DOMID, first)
        grefs = sorted(gref for gref in self.granted if gref >= first)
        entries = np.zeros(len(grefs), abi.GRANT_ENTRY_V1)
        entries["frame"] = [self.granted[gref] for gref in grefs]
        return [64, np.array(grefs, "<u4").tobytes(), entries.tobytes()]

    def publish(self, requests: int, responses: int, frame: int = 2) -> None:
        words = self.ram[frame * abi.XEN_PAGE_SIZE :].view(np.uint32)
        words[REQ], words[RSP] = requests, responses

    def fills(self) -> RingFills:
        return RingFills(self, self, self.ask)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("requests", "responses", "used"), [(0, 0, 0), (40, 9, 31), (2, 0xFFFFFFFE, 4), (32, 0, 32)]
)
def test_a_ring_holds_what_is_published_and_not_answered(
    requests: int, responses: int, used: int
) -> None:
    around = Around()
    around.publish(requests, responses)
    assert around.fills().of(DOMID, DEVICE) == {"used": used, "slots": 32}


def test_the_hypervisor_is_asked_once_where_a_ring_is(monkeypatch: pytest.MonkeyPatch) -> None:
    around = Around()
    fills = around.fills()
    for requests in range(5):
        around.publish(requests, 0)
        assert fills.of(DOMID, DEVICE) == {"used": requests, "slots": 32}
    assert around.asked == 1
    monkeypatch.setattr(ring_fill, "TRUSTED_S", -1.0)
    fills.of(DOMID, DEVICE)
    assert around.asked == 2


def test_a_ring_that_has_moved_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    around = Around()
    fills = around.fills()
    around.publish(1, 0)
    fills.of(DOMID, DEVICE)
    around.granted = {GREF: 1, 20: 3}
    around.publish(77_777, 5)  # the old page holds data now
    around.publish(6, 4, frame=1)
    assert fills.of(DOMID, DEVICE) == {"used": 2, "slots": 32}
    around.ring_ref = b"20"
    around.publish(9, 4, frame=3)
    assert fills.of(DOMID, DEVICE) == {"used": 5, "slots": 32}


def test_a_guest_s_lie_is_a_full_ring_at_most() -> None:
    around = Around()
    around.publish(0, 1)
    assert around.fills().of(DOMID, DEVICE) == FULL


@pytest.mark.parametrize("ring_ref", [None, b"", b"-1", b"nine", b"99999999999999999999", b"8"])
def test_where_no_ring_is_shared_there_is_none(ring_ref: bytes | None) -> None:
    around = Around()
    around.ring_ref = ring_ref
    assert around.fills().of(DOMID, DEVICE) is None


def test_a_frame_that_is_no_frame_of_the_guest_s_is_not_followed() -> None:
    assert Around(ring_frame=4).fills().of(DOMID, DEVICE) is None
    assert Around(ring_frame=0xFFFFFFFF).fills().of(DOMID, DEVICE) is None
