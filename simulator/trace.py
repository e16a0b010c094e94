"""A timeline for Chrome's trace viewer and Perfetto: what each CPU did, for a few requests.

Owns: the spans of a window of virtual time. Format: the trace event format's complete events
("ph": "X"), microseconds, one process for each domain and one track for each CPU.
"""

from collections.abc import Sequence
from typing import Any, Final

SPANS_MAX: Final = 20_000
DOM0: Final = "dom0"


class Trace:
    """Keeps what begins in [`start_ns`, `end_ns`); empty if the two are equal."""

    def __init__(self, start_ns: int = 0, end_ns: int = 0) -> None:
        self._start, self._end = start_ns, end_ns
        self._spans: list[tuple[str, int, str, int, int]] = []
        self.wanted = end_ns > start_ns

    def add(self, who: str, cpu: int, what: str, start_ns: float, ns: float) -> None:
        """`who` (a domain) did `what` on `cpu` for `ns`."""
        if self._start <= start_ns < self._end and ns >= 1 and len(self._spans) < SPANS_MAX:
            self._spans.append((who, cpu, what, int(start_ns), int(ns)))

    def add_each(
        self, who: str, cpu: int, start_ns: float, parts: Sequence[tuple[str, float]]
    ) -> None:
        """One thing after another."""
        for what, ns in parts:
            self.add(who, cpu, what, start_ns, ns)
            start_ns += ns

    def chrome(self) -> dict[str, Any]:
        """The file's contents."""
        domains = sorted({span[0] for span in self._spans})
        numbers = {who: number for number, who in enumerate(domains)}
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": numbers[who], "args": {"name": who}}
            for who in domains
        ]
        events += [
            {
                "ph": "M",
                "name": "thread_name",
                "pid": numbers[who],
                "tid": cpu,
                "args": {"name": f"CPU {cpu}"},
            }
            for who, cpu in sorted({span[:2] for span in self._spans})
        ]
        events += [
            {
                "ph": "X",
                "name": what,
                "pid": numbers[who],
                "tid": cpu,
                "ts": start / 1000,
                "dur": ns / 1000,
            }
            for who, cpu, what, start, ns in self._spans
        ]
        return {"displayTimeUnit": "ns", "traceEvents": events}
