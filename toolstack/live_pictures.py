"""The pictures of `report`: what a machine did from moment to moment.

Owns: how they look, as `toolstack/pictures.py` does for the simulator's.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from toolstack.pictures import COLORS
from toolstack.snapshot import Snapshot, difference

LINES_MAX: Final = 14  # colours, each drawn in two ways; more disks than that are drawn as one
COSTS: Final = {
    "maps": "map_ops", "unmaps": "unmap_ops", "copies": "copy_ops", "flushes": "flushes",
    "IPIs": "ipis",
}  # fmt: skip


def _between(moments: Sequence[Snapshot]) -> tuple[np.ndarray, list[Snapshot]]:
    """When each stretch ended, in seconds since the first moment; and what was counted in it."""
    ends = np.array([moment.at_s for moment in moments[1:]]) - moments[0].at_s
    return ends, [difference(b, a) for a, b in pairwise(moments)]


def _axes(height: float) -> tuple[Figure, Any]:
    picture = Figure(figsize=(12, height))
    axes = picture.subplots()
    axes.set(xlabel="seconds")
    return picture, axes


def throughput(moments: Sequence[Snapshot], labels: Mapping[tuple[int, int], str]) -> Figure:
    """I/Os a second. labels: the disks', by domid and number."""
    picture, axes = _axes(4.5)
    ends, changes = _between(moments)
    rates = {
        label: np.array(
            [int(change.frontend[domid]["ios"][number]) / change.at_s for change in changes]
        )
        for (domid, number), label in labels.items()
    }
    if len(rates) > LINES_MAX:
        rates = {f"{len(rates)} disks together": np.sum(list(rates.values()), axis=0)}
    for at, (label, rate) in enumerate(rates.items()):
        style = "-" if at < len(COLORS) else "--"
        axes.plot(ends, rate, style, color=COLORS[at % len(COLORS)], label=label, marker=".")
    axes.set(ylabel="I/Os a second", xlim=(0, ends[-1]), ylim=(0, None))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return picture


def costs(moments: Sequence[Snapshot]) -> Figure:
    """Maps, unmaps, copies, flushes and IPIs a request, of all disks together."""
    picture, axes = _axes(4.5)
    ends, changes = _between(moments)
    requests = np.array([_sum(change.frontend, "requests") for change in changes], float)
    for at, (label, field) in enumerate(COSTS.items()):
        counts = np.array([_sum(change.hypervisor, field) for change in changes], float)
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.where(requests > 0, counts / requests, np.nan)
        axes.plot(ends, each, color=COLORS[at], label=label, marker=".", linewidth=5 - at)
    axes.set(ylabel="for each request", xlim=(0, ends[-1]))
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(0, 300)  # no more CPUs are there to interrupt
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return picture


def ipis(moments: Sequence[Snapshot]) -> Figure:
    """Which of dom0's CPUs was interrupted when: a row for each CPU."""
    ends, changes = _between(moments)
    rates = np.array([change.cpus["ipis_received"] / change.at_s for change in changes]).T
    picture, axes = _axes(2 + 0.12 * len(rates))
    edges = np.concatenate([[0.0], ends])
    image = axes.pcolormesh(
        edges, np.arange(len(rates) + 1) - 0.5, rates, cmap="viridis", vmin=0,
        vmax=max(1.0, float(rates.max())),
    )  # fmt: skip
    axes.set(ylabel="dom0's CPU")
    axes.grid(visible=False)
    axes.yaxis.get_major_locator().set_params(integer=True)
    picture.colorbar(image, ax=axes, label="IPIs a second")
    return picture


def _sum(blocks: Mapping[int, np.ndarray], field: str) -> int:
    return sum(int(rows[field].sum()) for rows in blocks.values())
