"""The timeline: a window of spans, in the trace viewer's format."""

import json

from simulator.machine import Machine
from simulator.trace import Trace
from tests.simulator.points import run


def test_only_what_begins_in_the_window_is_kept() -> None:
    trace = Trace(100, 200)
    for start in (99, 100, 199, 200):
        trace.add("dom0", 0, "copy", start, 10)
    trace.add_each("guest 1", 3, 150, [("submit", 20), ("nothing", 0), ("copy", 5)])
    chrome = trace.chrome()
    spans = [event for event in chrome["traceEvents"] if event["ph"] == "X"]
    assert [(span["ts"], span["name"]) for span in spans] == [
        (0.1, "copy"),
        (0.199, "copy"),
        (0.15, "submit"),
        (0.17, "copy"),
    ]
    names = {event["args"]["name"] for event in chrome["traceEvents"] if event["ph"] == "M"}
    assert names == {"dom0", "guest 1", "CPU 0", "CPU 3"}


def test_without_a_window_nothing_is_kept() -> None:
    trace = Trace()
    trace.add("dom0", 0, "copy", 0, 10)
    assert not trace.wanted and trace.chrome()["traceEvents"] == []


def test_a_request_can_be_followed_and_a_cpu_does_one_thing_at_a_time() -> None:
    trace = Trace(0, 100_000)
    machine = Machine(run().config, trace=trace).run()
    spans = [event for event in trace.chrome()["traceEvents"] if event["ph"] == "X"]
    assert {"submit", "complete", "request", "map", "copy", "flush", "unmap"} <= {
        span["name"] for span in spans
    }
    assert json.loads(json.dumps(spans)) == spans
    assert {span["tid"] for span in spans} <= {cpu.number for cpu in machine.cpus}
