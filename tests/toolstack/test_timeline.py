"""A traced run as a timeline: put together from logs that are made by hand."""

import json
from typing import Any

import numpy as np
import pytest

from backend import steps as back
from common.abi import GNTTABOP_MAP_GRANT_REF, GNTTABOP_UNMAP_GRANT_REF
from common.trace_log import CALL_ENTRY, RING_NAME, STEP_ENTRY
from frontend import steps as front
from toolstack.timeline import CPUS, DOM0, HYPERVISOR, WITHIN_NS, Window, requests, timeline

XVDA, XVDB = 51712, 51728
DISKS = {(1, XVDA): (0, "xvda"), (1, XVDB): (1, "xvdb"), (2, XVDA): (0, "xvda")}
BEGIN, UNTIL = 1_000_000, 2_000_000
RINGS = [(1, XVDA), (1, XVDB), (2, XVDA)]  # dom0's numbers


def steps(*entries: tuple[int, int, int, int, int]) -> bytes:
    """Of (at_ns after BEGIN, ring, step, index, ident)."""
    rows = np.zeros(len(entries), STEP_ENTRY)
    for row, (at_ns, ring, step, index, ident) in zip(rows, entries, strict=True):
        row["at_ns"], row["ring"], row["step"] = BEGIN + at_ns, ring, step
        row["index"], row["ident"], row["sector"], row["operation"] = index, ident, 8, 1
    return rows.tobytes()


def calls(*entries: tuple[int, int, int, int, list[int]]) -> bytes:
    """Of (at_ns, end_ns, command, flushes, CPUs interrupted)."""
    rows = np.zeros(len(entries), CALL_ENTRY)
    for row, (at_ns, end_ns, cmd, flushes, cpus) in zip(rows, entries, strict=True):
        row["at_ns"], row["end_ns"], row["cmd"] = BEGIN + at_ns, BEGIN + end_ns, cmd
        row["flushes"], row["ipis"] = flushes, len(cpus)
        for cpu in cpus:
            row["interrupted"][cpu // 64] |= np.uint64(1 << cpu % 64)
    return rows.tobytes()


def window(*logs: tuple[str, int, bytes], begin_ns: int = BEGIN) -> Window:
    rings = np.array(RINGS, RING_NAME).tobytes()
    taken = {"logs": [(kind, number, False, raw) for kind, number, raw in logs], "rings": rings}
    return Window(begin_ns, UNTIL, taken)


FRONT = steps(
    (10, 0, front.PUT, 40, 3), (12, 0, front.PUT, 41, 4), (14, 0, front.PUBLISH, 42, 4),
    (60, 0, front.FINISH, 41, 4), (70, 0, front.FINISH, 40, 3), (72, 0, front.FINISH, 40, 3),
)  # fmt: skip
BACK = steps(
    (20, 0, back.TAKE, 40, 0), (25, 0, back.RELEASE, 41, 0), (26, 0, back.TAKE, 41, 0),
    (30, 0, back.MAP, 42, 0), (36, 0, back.MAPPED, 42, 0), (40, 0, back.RELEASE, 42, 0),
    (44, 0, back.RESPOND, 42, 4), (48, 0, back.RESPOND, 42, 3), (50, 0, back.PUBLISH, 42, 0),
)  # fmt: skip


def test_a_request_is_followed_by_its_place_in_the_ring_and_by_its_id() -> None:
    first, second = requests(window(("front", 1, FRONT), ("back", 0, BACK)), DISKS)
    assert (first.index, first.ident, second.index, second.ident) == (40, 3, 41, 4)
    times = [
        [each.put, each.published, each.taken, each.responds, each.answered, each.finished]
        for each in (first, second)
    ]
    assert np.subtract(times, BEGIN).tolist() == [
        [10, 14, 20, 48, 50, 72],
        [12, 14, 26, 44, 50, 60],
    ]
    assert first.is_whole and second.is_whole


def test_disks_and_guests_with_the_same_places_are_told_apart() -> None:
    one_more = steps((10, 1, front.PUT, 40, 3), (15, 0, front.PUT, 40, 3))
    found = requests(
        window(
            ("front", 1, one_more),
            ("front", 2, steps((11, 0, front.PUT, 40, 3))),
            ("back", 0, steps((30, 1, back.TAKE, 40, 0), (40, 1, back.RESPOND, 41, 3))),
            ("back", 1, steps((31, 2, back.TAKE, 40, 0))),
        ),
        DISKS,
    )
    taken = {(each.domid, each.number): each.taken for each in found}
    assert taken == {(1, 1): BEGIN + 30, (1, 0): 0, (2, 0): BEGIN + 31}
    responds = {(each.domid, each.number): each.responds for each in found}
    assert responds == {(1, 1): BEGIN + 40, (1, 0): 0, (2, 0): 0}


def test_what_a_window_s_edge_cuts_is_counted_and_not_shown() -> None:
    whole = window(("front", 1, FRONT), ("back", 0, BACK))
    cut = window(("front", 1, FRONT), ("back", 0, BACK[: 4 * STEP_ENTRY.itemsize]))
    made = timeline([whole, cut], DISKS, 2)
    assert made["otherData"] == {
        "windows": 2, "requests": 2, "requests_cut": 2, "logs_full": 0
    }  # fmt: skip
    assert sum(event["ph"] == "b" for event in made["traceEvents"]) == 4  # in the guest, in dom0


@pytest.mark.parametrize(
    "wrong",
    [
        steps(
            (10, 0, front.PUT, 40, 3), (14, 0, front.PUBLISH, 41, 3), (15, 0, front.FINISH, 40, 3)
        ),
        steps((10, 0, front.PUT, 40, 3), (14, 0, front.PUBLISH, 41, 3)),
        steps((10, 0, front.FINISH, 40, 3), (90, 0, front.PUT, 40, 3)),
        steps(
            (-5, 0, front.PUT, 40, 3), (14, 0, front.PUBLISH, 41, 3), (90, 0, front.FINISH, 40, 3)
        ),
        steps(
            (10, 0, front.PUT, 40, 3),
            (14, 0, front.PUBLISH, 41, 3),
            (2 * WITHIN_NS, 0, front.FINISH, 40, 3),
        ),
        steps((10, 0xFFFFFFFF, front.PUT, 0xFFFFFFFF, 0xFFFFFFFF), (11, 9, 255, 0, 0)),
        bytes(STEP_ENTRY.itemsize * 3),
        b"\xff" * STEP_ENTRY.itemsize * 3,
        b"",
    ],
    ids=lambda raw: f"{len(raw)}-bytes",
)
def test_a_guest_s_lie_is_shown_as_nothing(wrong: bytes) -> None:
    made = timeline([window(("front", 1, wrong), ("back", 0, BACK))], DISKS, 2)
    assert made["otherData"]["requests"] == 0
    assert not [event for event in made["traceEvents"] if event["ph"] in "ben"]
    json.dumps(made)


def events(name: str, made: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in made["traceEvents"] if event["name"] == name]


def test_what_dom0_did_is_one_thing_after_the_other() -> None:
    made = timeline([window(("front", 1, FRONT), ("back", 1, BACK))], DISKS, 2)
    phases = [
        (each["name"], round(each["ts"] * 1000), round(each["dur"] * 1000), each["tid"])
        for each in made["traceEvents"]
        if each["ph"] == "X"
    ]
    assert phases == [
        ("take and move", 20, 5, 1), ("take", 26, 4, 1), ("map", 30, 6, 1), ("move", 36, 4, 1),
        ("release", 40, 4, 1), ("respond", 44, 4, 1), ("respond", 48, 2, 1),
    ]  # fmt: skip


def test_a_request_is_a_span_in_the_guest_and_one_in_dom0() -> None:
    made = timeline([window(("front", 1, FRONT), ("back", 0, BACK))], DISKS, 2)
    spans = [
        e for e in made["traceEvents"] if e["ph"] in "be" and e["id"].endswith(str(BEGIN + 10))
    ]
    assert [(each["pid"], each["ph"], round(each["ts"] * 1000)) for each in spans] == [
        (1, "b", 10), (1, "e", 72), (DOM0, "b", 20), (DOM0, "e", 50),
    ]  # fmt: skip
    assert {each["name"] for each in spans} == {"1:xvda WRITE"}
    assert spans[0]["args"] == {"ring index": 40, "id": 3, "sector": 8}


def test_hypercalls_flushes_and_whom_they_interrupt_are_shown() -> None:
    made = timeline(
        [
            window((
                "calls", 0,
                calls((10, 14, GNTTABOP_MAP_GRANT_REF, 0, []),
                      (20, 30, GNTTABOP_UNMAP_GRANT_REF, 1, [0, 63, 64, 255])),
            ))
        ],
        DISKS, 256,
    )  # fmt: skip
    (mapped,), (unmapped,) = events("map", made), events("unmap", made)
    assert (mapped["pid"], mapped["dur"], mapped["args"]["IPIs"]) == (HYPERVISOR, 0.004, 0)
    assert (unmapped["ts"], unmapped["dur"], unmapped["args"]["flushes"]) == (0.02, 0.01, 1)
    (flush,) = events("flush, 4 IPIs", made)
    assert (flush["pid"], flush["ts"]) == (HYPERVISOR, 0.03)
    assert [each["tid"] for each in events("IPI", made)] == [0, 63, 64, 255]
    assert {each["pid"] for each in events("IPI", made)} == {CPUS}


def test_everything_has_a_name() -> None:
    made = timeline([window()], DISKS, 2)
    named = {event["pid"]: event["args"]["name"] for event in events("process_name", made)}
    assert named == {1: "guest-1", 2: "guest-2", DOM0: "dom0", HYPERVISOR: "hypervisor",
                     CPUS: "worker CPUs"}  # fmt: skip
