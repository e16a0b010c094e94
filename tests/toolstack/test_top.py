"""What `top` shows: its figures, its heat map, its screen and its keys."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from tests.patience import PATIENCE_S
from tests.toolstack.seen_by_hand import disk, seen
from toolstack.failures import MachineError
from toolstack.heat_map import COLOURS, heat_map
from toolstack.seen import Seen
from toolstack.top_figures import figured
from toolstack.top_screen import Top
from toolstack.words import short

XVDA, XVDB, OTHERS = disk(1, 0, "xvda"), disk(1, 1, "xvdb"), disk(2, 0, "xvda")

# --- figures --------------------------------------------------------------------------------------


def test_figures_are_of_the_time_between_two_looks() -> None:
    before = seen(
        [XVDA], 10.0, frontend={1: {"ios": 100, "requests": 100}}, ipis_received=(5, 5),
        hypervisor={1: {"map_ops": 50, "ipis": 500}}, latency={1: (10,) * 9},
    )  # fmt: skip
    after = seen(
        [XVDA], 12.0, frontend={1: {"ios": 300, "requests": 400, "bytes_read": 8_000_000,
        "notify_to_back": 6}}, backend={1: {"notify_to_front": 8}}, ipis_received=(5, 45),
        hypervisor={1: {"map_ops": 350, "unmap_ops": 30, "flushes": 60, "ipis": 6500}},
        latency={1: (10,) * 9 + (50,)},
    )  # fmt: skip
    now = figured(before, after)
    (guest, dead), total = now.guests, now.total
    assert (total.iops, total.mb, total.notify_to_back, total.notify_to_front) == (100, 4, 3, 4)
    assert (total.maps, total.unmaps, total.flushes, total.ipis) == (150, 15, 30, 3000)
    assert (total.maps_a_request, total.flushes_a_request, total.ipis_a_request) == (1, 0.2, 20)
    assert total.p50_us == total.p99_us == pytest.approx(50, rel=0.02)  # not those of before
    assert guest.figures == total
    assert (dead.state, dead.failure) == ("dead", "guest-2 was killed by SIGKILL")
    assert now.ipis_by_cpu == [0, 20]
    assert (now.seconds, now.loads) == (2, 3)


def test_a_disk_has_its_own_and_what_the_hypervisor_counts_by_guest_is_not_known() -> None:
    disks = [XVDA, {**XVDB, "grants_kept": 77, "ring": {"used": 31, "slots": 32}}]
    later = seen(
        disks, 1.0, disks=2, frontend={1: [{}, {"ios": 5, "requests": 5}]},
        backend={1: [{}, {"map_ops": 10}]}, hypervisor={1: {"flushes": 9, "map_ops": 11}},
    )  # fmt: skip
    first, second = figured(seen(disks, 0.0, disks=2), later).disks
    assert (first.figures.iops, first.figures.maps, first.figures.p99_us) == (0, 0, None)
    assert (second.figures.iops, second.figures.maps, second.figures.maps_a_request) == (5, 10, 2)
    assert (second.figures.flushes, second.figures.ipis_a_request) == (None, None)
    assert (second.tree, second.used, second.slots) == (77, 31, 32)


def test_disks_come_and_go_between_two_looks() -> None:
    ios = {1: [{"ios": 100}, {"ios": 40}]}
    came = figured(
        seen([XVDA], 0.0, disks=1, frontend={1: {"ios": 90}}),
        seen([XVDA, XVDB], 1.0, disks=2, frontend=ios),
    )
    assert [each.figures.iops for each in came.disks] == [10, 40]
    assert came.total.iops == 50
    gone = figured(
        seen([XVDA, XVDB], 0.0, disks=2, frontend=ios),
        seen([XVDA], 1.0, disks=1, frontend={1: {"ios": 130}}),
    )
    assert [each.vdev for each in gone.disks] == ["xvda"] and gone.total.iops == 30
    listed_only = figured(seen([XVDA]), seen([XVDA, disk(1, 9, "xvdj"), disk(7, 0, "xvda")], 1.0))
    assert [each.figures.iops for each in listed_only.disks] == [0, 0, 0]


def test_another_disk_in_a_disk_s_place_counts_from_nothing() -> None:
    before = seen([XVDA], 0.0, frontend={1: {"ios": 900}})
    by_name = seen([{**XVDA, "vdev": "xvdc"}], 1.0, frontend={1: {"ios": 950}})
    assert figured(before, by_name).total.iops == 950
    shrunk = seen([XVDA], 1.0, frontend={1: {"ios": 30}})
    assert figured(before, shrunk).total.iops == 30


def test_before_the_second_look_there_are_no_rates() -> None:
    look = seen([{**XVDA, "ring": None}], 5.0, frontend={1: {"ios": 9}})
    now = figured(look, look)
    assert (now.total.iops, now.total.maps_a_request, now.disks[0].slots) == (0, None, 0)


# --- how numbers and heat look --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (0.5, "0.50"), (9_999, "9,999"), (10_000, "10.0k"), (99_960, "100k"),
     (999_400, "999k"), (999_700, "1.00M"), (1.5e6, "1.50M"), (999_900_000, "1.00G")],
)  # fmt: skip
def test_a_number_is_short(value: float | None, text: str) -> None:
    assert short(value) == text and len(text) <= 6


@pytest.mark.parametrize(("cpus", "rows"), [(1, 1), (24, 1), (64, 1), (65, 2), (256, 4)])
def test_every_cpu_has_a_cell_that_80_columns_hold(cpus: int, rows: int) -> None:
    head, *lines = heat_map([1.0] * cpus, 80).plain.split("\n")
    assert head == "IPIs a second by CPU, the hottest 1.00"
    assert len(lines) == rows and max(map(len, lines)) <= 80
    cells = "".join(line.split(maxsplit=1)[1] for line in lines)
    assert cells.count("█") == cpus * (2 if cpus <= 24 else 1)


def test_a_cell_is_as_hot_as_the_hottest_makes_it() -> None:
    text = heat_map([0, 1, 500, 1000], 80)
    assert text.plain.split("\n")[1] == "0 ·· ▁▁ ▅▅ ██ "
    styles = [str(span.style) for span in text.spans]
    assert styles[-4:] == ["dim", COLOURS[0], COLOURS[4], COLOURS[-1]]
    assert heat_map([0, 0], 80).plain == "IPIs a second by CPU, none\n0 ·· ·· "


# --- the screen -----------------------------------------------------------------------------------

Drive = Callable[[Pilot[None]], Awaitable[None]]


def shown(
    first: Seen, looks: Iterable[Seen | MachineError], drive: Drive, every_s: float = 0.05
) -> Top:
    """The screen of 80 by 24, driven; what is looked at last is looked at again and again."""
    queue, last = iter(looks), [first]

    def look() -> Seen:
        each = next(queue, last[0])
        if isinstance(each, MachineError):
            raise each
        last[0] = each
        return each

    app = Top("m", first, look, every_s)

    async def run() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            await drive(pilot)

    asyncio.run(run())
    return app


async def until(pilot: Pilot[None], holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        await pilot.pause(0.01)


def rows(pilot: Pilot[None], table: str) -> list[list[str]]:
    found = pilot.app.query_one(f"#{table}", DataTable)
    return [[cell.plain for cell in found.get_row(key)] for key in found.rows]


def text(pilot: Pilot[None], name: str) -> str:
    return str(pilot.app.query_one(f"#{name}", Static).render())


def test_the_screen_shows_guests_their_disks_and_cpus() -> None:
    busy = seen(
        [XVDA, OTHERS], 1.0, frontend={1: {"ios": 4000, "requests": 4000}},
        hypervisor={1: {"ipis": 92_000, "flushes": 4000, "map_ops": 4000}}, ipis_received=(0, 900),
    )  # fmt: skip

    async def drive(pilot: Pilot[None]) -> None:
        # The look after this one finds nothing new: the rates are caught on their way.
        await until(pilot, lambda: rows(pilot, "guests")[0][2] == "4,000")
        assert "4,000 IOPS" in text(pilot, "total") and "92.0k IPIs/s" in text(pilot, "total")
        assert rows(pilot, "guests")[0][-3:] == ["1.00", "1.00", "23.0"]
        assert rows(pilot, "guests")[2][:2] == ["guest-2", "dead"]
        assert rows(pilot, "disks")[0][:4] == ["1:xvda", "Connected", "█░░░ 5/32", "4,000"]
        assert "the hottest 900" in text(pilot, "cpus")
        assert text(pilot, "machine").startswith("m: persistent, dom0 with 2 vCPUs, 3 loads, up ")
        assert "guest-2 was killed by SIGKILL" in text(pilot, "of")

    idle = seen([XVDA, OTHERS], 0.0)
    shown(idle, (each for _ in range(10_000) for each in (busy, idle)), drive)


def test_everything_fits_80_by_24_however_much_there_is() -> None:
    disks = [
        disk(domid, number, f"xvd{chr(97 + number)}") for domid in (1, 2) for number in range(16)
    ]
    much = seen(disks, 0.0, disks=16, ipis_received=(7,) * 256)

    async def drive(pilot: Pilot[None]) -> None:
        for name in ("machine", "total", "guests", "of", "disks", "cpus"):
            region = pilot.app.query_one(f"#{name}").region
            assert region.right <= 80 and region.bottom <= 23 and region.height > 0, name
        for name in ("guests", "disks"):
            table = pilot.app.query_one(f"#{name}", DataTable)
            assert table.region.height >= 4 and table.virtual_size.width <= 80

    shown(much, [], drive)


def test_keys_pick_a_guest() -> None:
    async def drive(pilot: Pilot[None]) -> None:
        names = lambda: [row[0] for row in rows(pilot, "disks")]  # noqa: E731
        assert names() == ["1:xvda", "1:xvdb", "2:xvda"]
        await pilot.press("down")
        assert names() == ["1:xvda", "1:xvdb"] and text(pilot, "of") == "disks of guest-1"
        await pilot.press("j", "j", "j")  # no further than the last
        assert names() == ["2:xvda"]
        assert text(pilot, "of") == "disks of guest-2; guest-2 was killed by SIGKILL"
        await pilot.press("k")
        assert names() == ["1:xvda", "1:xvdb"]
        await pilot.press("a")
        assert len(names()) == 3

    shown(seen([XVDA, XVDB, OTHERS], disks=2), [], drive, every_s=600)


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
def test_a_key_ends_it(key: str) -> None:
    async def drive(pilot: Pilot[None]) -> None:
        await pilot.press(key)

    app = shown(seen([XVDA]), [], drive)
    assert (app.return_code, app.failure) == (0, "")


def test_disks_and_guests_that_come_and_go_are_shown_and_not_shown() -> None:
    first = seen([XVDA, OTHERS], 0.0)
    more = seen([XVDA, XVDB, OTHERS], 1.0, disks=2)
    alone = seen([XVDA], 2.0)
    alone = alone._replace(status={**alone.status, "domains": alone.status["domains"][:1]})
    turn = [more]

    async def drive(pilot: Pilot[None]) -> None:
        await pilot.press("down", "down")  # guest-2, which will go
        await pilot.press("k", "j")
        assert text(pilot, "of").startswith("disks of guest-2")
        turn[0] = alone
        await until(pilot, lambda: len(rows(pilot, "guests")) == 2)
        assert text(pilot, "of") == "disks of all guests"
        assert [row[0] for row in rows(pilot, "disks")] == ["1:xvda"]
        turn[0] = more
        await until(pilot, lambda: len(rows(pilot, "disks")) == 3)

    shown(first, (turn[0] for _ in range(100_000)), drive)


def test_a_machine_that_dies_ends_it_and_says_how() -> None:
    async def drive(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: pilot.app.return_code)

    app = shown(seen([XVDA]), [seen([XVDA], 1.0), MachineError("dom0 was killed")], drive)
    assert (app.return_code, app.failure) == (1, "dom0 was killed")


def test_a_machine_that_does_not_answer_is_said_and_keys_are_heard() -> None:
    asked: list[Any] = []

    async def drive(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "no answer for" in text(pilot, "machine"))
        await pilot.press("q")

    def hangs() -> Iterable[Seen]:
        asked.append(time.sleep(0.5))
        yield seen([XVDA], 1.0)

    app = shown(seen([XVDA]), hangs(), drive)
    assert app.return_code == 0


def test_only_top_brings_textual() -> None:
    heavy = {"textual", "prometheus_client", "numba"}
    asked = f"import sys, toolstack.commands; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
