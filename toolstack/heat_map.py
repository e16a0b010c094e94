"""A row of cells for the CPUs of a machine, each as hot as it is interrupted.

Owns: how hot is shown: by a colour, and by the height of the cell for who sees none.
"""

from collections.abc import Sequence
from typing import Final

from rich.text import Text

from toolstack.words import short

NOTHING: Final = "·"
HEIGHTS: Final = "▁▂▃▄▅▆▇█"
COLOURS: Final = (  # from cool to hot
    "#4575b4", "#6aa5d0", "#8fd0d8", "#c8e6a0", "#fee090", "#fdae61", "#f46d43", "#ff3b30",
)  # fmt: skip
CPUS_A_ROW: Final = 64
CELL_MAX: Final = 3


def heat_map(rates: Sequence[float], width: int) -> Text:
    """IPIs a second by CPU, in rows of up to 64; the hottest now is the measure of the others."""
    hottest = max(rates, default=0.0)
    text = Text("IPIs a second by CPU", no_wrap=True)
    text.append(f", the hottest {short(hottest)}" if hottest else ", none")
    label = len(str(len(rates)))
    for first in range(0, len(rates), CPUS_A_ROW):
        row = rates[first : first + CPUS_A_ROW]
        cell = min(CELL_MAX, max(1, (width - label - 1) // min(len(rates), CPUS_A_ROW)))
        text.append(f"\n{first:>{label}} ")
        for rate in row:
            text.append(*_cell(rate, hottest, cell))
    return text


def _cell(rate: float, hottest: float, width: int) -> tuple[str, str]:
    glyphs, gap = max(1, width - 1), " " * (width > 1)
    if rate <= 0:
        return NOTHING * glyphs + gap, "dim"
    level = min(len(HEIGHTS) - 1, int(rate / hottest * len(HEIGHTS)))
    return HEIGHTS[level] * glyphs + gap, COLOURS[level]
