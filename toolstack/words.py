"""How numbers and tables look in reports, for people."""

from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

Value = float | int | None

MB: Final = 1_000_000


def number(value: Value) -> str:
    """At least three digits, thousands apart; 0 is exactly none, and "-" is not known."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 0.01:
        return "<0.01"
    if isinstance(value, int):
        return str(value)
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def ratio(part: Value, whole: Value) -> float | None:
    """`part` for each of `whole`; None if there is nothing to divide, or by."""
    return None if part is None or not whole else part / whole


def new_table(title: str) -> Table:
    """A table as all reports have it."""
    return Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )


def short(value: Value) -> str:
    """In six places at most, for a column that is narrow; as `number` below ten thousand."""
    if value is None or abs(value) < 10_000:
        return number(value)
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size * 0.9995:
            part = value / size
            return f"{part:.{2 if part < 9.995 else 1 if part < 99.95 else 0}f}{unit}"
    raise AssertionError(value)
