"""What is shown while a load runs: a live table on a terminal, a plain line a second elsewhere.

Owns: the figures of the moment. It has no clock: a snapshot's `at_s` is the time.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from toolstack.jobs import Job
from toolstack.snapshot import Snapshot, difference

LINE_EVERY_S: Final = 1.0


class Progress:
    """Show a load that began at `started`; a context manager. Call `update` with each snapshot."""

    def __init__(self, console: Console, mode: str, jobs: Sequence[Job], started: Snapshot) -> None:
        self._console, self._mode, self._jobs = console, mode, jobs
        self._started = self._before = started
        self._line_at_s = started.at_s + LINE_EVERY_S
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, now: Snapshot) -> None:
        """What was before is not shown any more: the ramp is over."""
        self._started = self._before = now

    def update(self, now: Snapshot) -> None:
        """Show the machine as it is at `now`."""
        if self._live is not None:
            self._live.update(self._table(now), refresh=True)
            self._before = now
        elif now.at_s >= self._line_at_s:
            self._line_at_s += LINE_EVERY_S
            if now.at_s >= self._line_at_s:  # the machine stood still: no lines are owed for it
                self._line_at_s = now.at_s + LINE_EVERY_S
            self._console.print(self._line(now), highlight=False, soft_wrap=True)
            self._before = now

    def _table(self, now: Snapshot) -> Table:
        done, recent = difference(now, self._started), difference(now, self._before)
        table = Table(box=SIMPLE_HEAD, title=self._time(now), title_justify="left")
        table.add_column(self._mode)
        for name in ("IOPS now", "requests done", "verify errors"):
            table.add_column(name, justify="right")
        for name, domids in [
            ("all", sorted(done.frontend)),
            *((f"guest {domid}", [domid]) for domid in sorted(done.frontend)),
        ]:
            table.add_row(
                name,
                f"{_rate(recent, domids):,.0f}",
                f"{_sum(done, 'requests', domids):,}",
                f"{_sum(done, 'verify_errors', domids):,}",
            )
        return table

    def _line(self, now: Snapshot) -> str:
        done, recent = difference(now, self._started), difference(now, self._before)
        domids = sorted(done.frontend)
        rates = [_rate(recent, [domid]) for domid in domids]
        return (
            f"{self._mode}: {self._time(now)}; {sum(rates):,.0f} IOPS now"
            f" ({min(rates):,.0f} to {max(rates):,.0f} a guest);"
            f" {_sum(done, 'requests', domids):,} requests done,"
            f" {_sum(done, 'verify_errors', domids):,} verify errors"
        )

    def _time(self, now: Snapshot) -> str:
        left = self.remaining_s(now)
        elapsed = f"{now.at_s - self._started.at_s:.0f} s elapsed"
        return elapsed if left is None else f"{elapsed}, about {left:.0f} s left"

    def remaining_s(self, now: Snapshot) -> float | None:
        """Seconds until the load ends, at the pace of its slowest disk; None if unknown yet."""
        done = difference(now, self._started)
        left = [_left_s(job, done) for job in self._jobs]
        known = [seconds for seconds in left if seconds is not None]
        return max(0.0, *known) if known and len(known) == len(left) else None


def _left_s(job: Job, done: Snapshot) -> float | None:
    """Of one disk's job."""
    ends = []
    if job.spec.runtime_s is not None:
        ends.append(job.spec.runtime_s - done.at_s)
    if job.spec.ios is not None:
        ios = int(done.frontend[job.disk.domid]["ios"][job.disk.number])
        if ios:
            ends.append(done.at_s * (job.spec.ios - ios) / ios)
    return min(ends) if ends else None


def _sum(change: Snapshot, name: str, domids: list[int]) -> int:
    return sum(int(change.frontend[domid][name].sum()) for domid in domids)


def _rate(change: Snapshot, domids: list[int]) -> float:
    return _sum(change, "ios", domids) / change.at_s if change.at_s > 0 else 0.0
