"""`./run.sh top`: a machine as it is now, on a terminal.

Owns: the screen, its keys, and how it ends. What it shows is `toolstack/top_figures.py`'s.
Rules: the machine is looked at on a thread of its own, so that keys are heard while a keeper does
not answer. Whatever ends it, the terminal is as it was. Nothing but `top` imports this: it brings
Textual.
"""

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.message import Message
from textual.widgets import DataTable, Footer, Static

from toolstack.failures import MachineError
from toolstack.heat_map import heat_map
from toolstack.seen import Seen
from toolstack.top_figures import DiskFigures, Figured, Figures, GuestFigures, figured
from toolstack.words import short

EVERY_S: Final = 1.0
STALE_S: Final = 3.0
ALL: Final = "all"
DEAD: Final = "dead"
RING_CELLS: Final = 4
GUEST_COLUMNS: Final = (
    ("guest", 8), ("state", 7), ("IOPS", 7), ("p50 us", 6), ("p99 us", 6), ("mapped", 6),
    ("maps/r", 6), ("flush/r", 7), ("IPIs/r", 6),
)  # fmt: skip
DISK_COLUMNS: Final = (
    ("disk", 8), ("state", 9), ("ring", 10), ("IOPS", 7), ("p99 us", 6), ("to back", 7),
    ("to front", 8), ("tree", 5),
)  # fmt: skip
WORDS: Final = ("guest", "disk", "state", "ring")  # columns that are not numbers

Look = Callable[[], Seen]


class Looked(Message):
    """The machine has been looked at: what was seen, or why nothing can be any more."""

    def __init__(self, seen: Seen | None, failure: str = "") -> None:
        super().__init__()
        self.seen, self.failure = seen, failure


class Top(App[None]):
    """first: what was seen before it began; look: look again. failure: why it ended, "" if it was
    asked to; ended_by: the signal that did."""

    CSS = """
    Screen { overflow: hidden; }
    Static { height: auto; text-wrap: nowrap; text-overflow: ellipsis; }
    #machine { text-style: bold; }
    #of { text-style: bold; height: 1; }
    DataTable { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit", priority=True),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("up,k", "pick(-1)", "pick a guest", priority=True, key_display="up/down"),
        Binding("down,j", "pick(1)", show=False, priority=True),
        Binding("a", "pick_all", "all guests", priority=True),
    ]

    def __init__(self, name: str, first: Seen, look: Look, every_s: float = EVERY_S) -> None:
        super().__init__()
        self.failure = ""
        self.ended_by: signal.Signals | None = None
        self._machine, self._look, self._every_s = name, look, every_s
        self._before = self._now = first
        self._figured = figured(first, first)
        self._seen_at_s = time.monotonic()
        self._picked = ALL
        self._left = threading.Event()

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield Static(id="machine", markup=False)
        yield Static(id="total", markup=False)
        yield DataTable(id="guests", cursor_type="row")
        yield Static(id="of", markup=False)
        yield DataTable(id="disks", cursor_type="none")
        yield Static(id="cpus", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        for table, columns in (("#guests", GUEST_COLUMNS), ("#disks", DISK_COLUMNS)):
            for name, width in columns:
                shown = Text(name, justify="left" if name in WORDS else "right")
                self.query_one(table, DataTable).add_column(shown, key=name, width=width)
        self._show()
        self.set_interval(self._every_s, self._tick)
        threading.Thread(target=self._watch, name="top", daemon=True).start()

    def on_unmount(self) -> None:
        """No more of it."""
        self._left.set()

    def _watch(self) -> None:
        """On a thread: look every so often, until there is nothing to see."""
        failure = ""
        while not failure and not self._left.wait(self._every_s):
            try:
                message = Looked(self._look())
            except MachineError as error:
                failure = str(error)
                message = Looked(None, failure)
            with suppress(RuntimeError):  # the screen has closed meanwhile
                if not self._left.is_set():
                    self.post_message(message)

    def on_looked(self, looked: Looked) -> None:
        """Show what was seen."""
        if looked.seen is None:
            self.failure = looked.failure
            self.exit(return_code=1)
            return
        self._before, self._now = self._now, looked.seen
        self._figured = figured(self._before, self._now)
        self._seen_at_s = time.monotonic()
        with suppress(NoMatches):  # it closes, and what it has on it has gone first
            self._show()

    def _tick(self) -> None:
        with suppress(NoMatches):
            self._show_machine()

    def end_by(self, signum: signal.Signals) -> None:
        """A signal has come."""
        self.ended_by = signum
        self.exit(return_code=128 + signum)

    # --- keys -------------------------------------------------------------------------------

    def action_pick(self, step: int) -> None:
        """Another guest: so many further down."""
        names = [ALL, *(guest.name for guest in self._figured.guests)]
        at = names.index(self._picked) + step if self._picked in names else 0
        self._picked = names[max(0, min(at, len(names) - 1))]
        self._show()

    def action_pick_all(self) -> None:
        """All guests' disks."""
        self._picked = ALL
        self._show()

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """By the mouse."""
        if event.data_table.id == "guests" and event.row_key.value not in (None, self._picked):
            self._picked = str(event.row_key.value)
            self._show()

    # --- what is shown ----------------------------------------------------------------------

    def _show(self) -> None:
        if self._picked not in (ALL, *(guest.name for guest in self._figured.guests)):
            self._picked = ALL  # who was picked has gone
        self._show_machine()
        self.query_one("#total", Static).update(_total(self._figured))
        guests = {guest.name: _guest_cells(guest) for guest in self._figured.guests}
        rows = {ALL: _all_cells(self._figured), **guests}
        table = self.query_one("#guests", DataTable)
        _fill(table, rows)
        table.move_cursor(row=list(rows).index(self._picked))
        disks = [disk for disk in self._figured.disks if self._is_shown(disk)]
        self.query_one("#of", Static).update(self._of())
        _fill(
            self.query_one("#disks", DataTable),
            {f"{disk.domid}:{disk.vdev}": _disk_cells(disk) for disk in disks},
        )
        width = self.size.width
        self.query_one("#cpus", Static).update(heat_map(self._figured.ipis_by_cpu, width))

    def _show_machine(self) -> None:
        described = self._now.described
        late_s = time.monotonic() - self._seen_at_s
        late = f", no answer for {late_s:.0f} s" if late_s > STALE_S * self._every_s else ""
        loads = self._figured.loads
        vcpus = len(self._figured.ipis_by_cpu)
        self.query_one("#machine", Static).update(
            f"{self._machine}: {described['mode']}, dom0 with {vcpus} vCPU{'s' * (vcpus != 1)},"
            f" {loads} load{'s' * (loads != 1)},"
            f" up {max(0, time.time() - described['since']):.0f} s{late}"
        )

    def _is_shown(self, disk: DiskFigures) -> bool:
        names = {guest.domid: guest.name for guest in self._figured.guests}
        return self._picked in (ALL, names.get(disk.domid))

    def _of(self) -> str:
        if self._picked == ALL:
            dead = [guest.failure or guest.name for guest in self._figured.guests if guest.failure]
            return "disks of all guests" + "".join(f"; {each}" for each in dead)
        guest = next(each for each in self._figured.guests if each.name == self._picked)
        return f"disks of {guest.name}" + (f"; {guest.failure}" if guest.failure else "")


def run_top(name: str, first: Seen, look: Look) -> Top:
    """Show the machine until somebody or something ends that; see the attributes of Top."""
    app = Top(name, first, look)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        # SIGHUP ends it at once: there is no terminal to restore, and nobody reads what is written.
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(each, app.end_by, each)
        await app.run_async()

    asyncio.run(run())
    return app


def _total(now: Figured) -> Text:
    total = now.total
    done = {"IOPS": total.iops, "MB/s": total.mb}
    paid = {
        "maps/s": total.maps, "unmaps/s": total.unmaps, "flushes/s": total.flushes,
        "IPIs/s": total.ipis,
    }  # fmt: skip
    first, second = (
        "  ".join(f"{short(value)} {name}" for name, value in part.items()) for part in (done, paid)
    )
    to_back, to_front = short(total.notify_to_back), short(total.notify_to_front)
    first += f"  notifications/s: {to_back} to back, {to_front} to front"
    return Text(f"{first}\n{second}", no_wrap=True)


def _all_cells(now: Figured) -> list[str]:
    dead = sum(guest.state != "running" for guest in now.guests)
    state = f"{dead} {DEAD}" if dead else "running"
    return _cells_of(ALL, state, sum(guest.mapped for guest in now.guests), now.total)


def _guest_cells(guest: GuestFigures) -> list[str]:
    return _cells_of(guest.name, guest.state, guest.mapped, guest.figures)


def _cells_of(name: str, state: str, mapped: int, of: Figures) -> list[str]:
    numbers = (of.iops, of.p50_us, of.p99_us, mapped, of.maps_a_request, of.flushes_a_request,
               of.ipis_a_request)  # fmt: skip
    return [name, state, *map(short, numbers)]


def _disk_cells(disk: DiskFigures) -> list[str]:
    of = disk.figures
    numbers = (of.iops, of.p99_us, of.notify_to_back, of.notify_to_front, disk.tree)
    return [f"{disk.domid}:{disk.vdev}", disk.state, _ring(disk), *map(short, numbers)]


def _ring(disk: DiskFigures) -> str:
    """A bar, and how many of how many."""
    if not disk.slots:
        return "none"
    full = round(disk.used / disk.slots * RING_CELLS)
    return f"{'█' * full}{'░' * (RING_CELLS - full)} {disk.used}/{disk.slots}"


def _fill(table: "DataTable[Text]", rows: dict[str, list[str]]) -> None:
    """Show these rows, by key; the place is kept where the keys are the same."""
    columns = [str(key.value) for key in table.columns]
    if [key.value for key in table.rows] != list(rows):
        table.clear()
        for key in rows:
            table.add_row(*(Text() for _ in columns), key=key)
    for key, cells in rows.items():
        for column, cell in zip(columns, cells, strict=True):
            style = "bold red" if cell.endswith(DEAD) else ""
            shown = Text(cell, style, justify="left" if column in WORDS else "right")
            table.update_cell(key, column, shown)
