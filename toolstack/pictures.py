"""The pictures of `figure` and `whatif`, drawn with matplotlib from what the simulator found.

Owns: how things look. It computes nothing but shares and ratios of its arguments.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

# Okabe and Ito's palette, which the colour-blind can tell apart.
COLORS: Final = ("#0072B2", "#D55E00", "#CC79A7", "#009E73", "#E69F00", "#56B4E9", "#999999")
MARKERS: Final = ("o", "s", "x", "^", "v")
DPI: Final = 130
MILLION: Final = 1e6
GAINS: Final = (0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 4, 8, 16, 32, 64)
LABELLED: Final = (0.9, 1.1, 1.25, 1.5, 2, 4, 8, 16, 32)

mpl.use("Agg")
mpl.rcParams.update(
    {
        "svg.hashsalt": "grantlab",  # the same picture is the same file
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "figure.constrained_layout.use": True,
    }
)


def save(picture: Figure, path: Path) -> None:
    """As `path`.png and `path`.svg."""
    picture.savefig(path.with_suffix(".png"), dpi=DPI, metadata={"Software": None})
    picture.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def throughput(frame: pd.DataFrame, lines: Iterable[str], published: Mapping[int, int]) -> Figure:
    """IOPS against guests, 2012 and today side by side, with the published points."""
    picture = Figure(figsize=(12, 5))
    axes = picture.subplots(1, 2, sharey=True)
    _lines(axes, frame, lines, "iops", 1 / MILLION)
    guests, iops = list(published), [value / MILLION for value in published.values()]
    axes[0].plot(guests, iops, "*", color="black", markersize=14, label="published", zorder=5)
    for at, value in zip(guests, iops, strict=True):
        axes[0].annotate(
            f"{value * 1000:.0f} k", (at, value), (4, 8), textcoords="offset points", weight="bold"
        )
    axes[0].set_ylabel("million I/Os a second, all guests")
    axes[0].legend(loc="upper left", frameon=False)
    picture.suptitle("4-KiB I/Os on ramdisks, dom0 with 24 vCPUs (simulated)")
    return picture


def interrupts(frame: pd.DataFrame, lines: Iterable[str]) -> Figure:
    """IPIs a request against guests."""
    picture = Figure(figsize=(12, 4))
    axes = picture.subplots(1, 2, sharey=True)
    _lines(axes, frame, lines, "ipis_per_request", 1)
    axes[0].set_ylabel("IPIs a request")
    axes[0].legend(frameon=False)
    picture.suptitle("TLB-flush interrupts for each request")
    return picture


def _lines(axes: Any, frame: pd.DataFrame, lines: Iterable[str], column: str, scale: float) -> None:
    for axis, era in zip(axes, ("2012", "today"), strict=True):
        for at, line in enumerate(lines):
            rows = frame[(frame.era == era) & (frame.line == line)].sort_values("guests")
            style = {"color": COLORS[at], "marker": MARKERS[at], "markersize": 4}
            axis.plot(rows.guests, rows[column] * scale, label=line, **style)
        axis.set(title=f"preset {era}", xlabel="guests")
    axes[0].set_ylim(0, None)  # once both are drawn: they share it


def cpu_time(details: Sequence[Any], kinds: Sequence[str]) -> Figure:
    """Where the time of each of dom0's CPUs goes: a stacked bar for each CPU."""
    picture = Figure(figsize=(12, 3.2 * len(details)))
    axes = picture.subplots(len(details), 1, sharex=True)
    for axis, detail in zip(axes, details, strict=True):
        base = np.zeros(len(detail.shares))
        for at, kind in enumerate(kinds):
            share = 100 * detail.shares[:, at]
            axis.bar(range(len(base)), share, 0.8, base, color=COLORS[at], label=kind)
            base += share
        axis.set(title=detail.title, ylabel="% of time", ylim=(0, 105))
        axis.grid(axis="x", visible=False)
    axes[0].legend(ncols=len(kinds), loc="lower center", bbox_to_anchor=(0.5, 1.12), frameon=False)
    axes[-1].set(xlabel="dom0's CPU", xticks=range(0, len(details[-1].shares), 2))
    picture.suptitle("Where dom0's CPUs spend their time (the rest is idle)")
    return picture


def heat_map(details: Sequence[Any]) -> Figure:
    """IPIs a thousand requests from each CPU to each."""
    picture = Figure(figsize=(6 * len(details), 6))
    axes = picture.subplots(1, len(details))
    top = max(float((1000 * detail.matrix).max()) for detail in details)
    for axis, detail in zip(axes, details, strict=True):
        image = axis.imshow(1000 * detail.matrix, cmap="viridis", vmin=0, vmax=top)
        axis.set(title=detail.title, xlabel="to CPU", ylabel="from CPU")
        axis.grid(visible=False)
    picture.colorbar(image, ax=list(axes), label="IPIs for 1,000 requests", shrink=0.8)
    return picture


def contours(panels: Mapping[str, pd.DataFrame], title: str, tie: float) -> Figure:
    """Gain of persistent grants: a panel each, vCPUs (rows) against guests (columns).

    tie: what is above it and below 1 counts as 1.
    """
    picture = Figure(figsize=(4.3 * len(panels), 5))
    axes = np.atleast_1d(picture.subplots(1, len(panels), sharey=True))
    levels = np.log2(
        [tie if gain == 1 else gain for gain in GAINS]
    )  # in colour as in size: twice and half are as far from 1
    norm = mpl.colors.TwoSlopeNorm(0, np.log2(0.7), np.log2(64))
    for axis, (name, gain) in zip(axes, panels.items(), strict=True):
        x, y, z = gain.columns.to_numpy(), gain.index.to_numpy(), np.log2(gain.to_numpy())
        shades = axis.contourf(x, y, z, levels, cmap="RdBu", norm=norm, extend="both")
        drawn = axis.contour(x, y, z, np.log2(LABELLED), colors="black", linewidths=0.6)
        axis.clabel(drawn, fmt=lambda value: f"{2**value:.3g}x", fontsize=8)
        axis.contour(x, y, z, [np.log2(tie)], colors="black", linewidths=2.5, linestyles="-")
        axis.set(title=name, xlabel="guests", xscale="log", yscale="log")
        axis.set_xticks(x, [str(at) for at in x])
        axis.set_yticks(y, [str(at) for at in y])
        axis.minorticks_off()
    axes[0].set_ylabel("dom0's vCPUs")
    bar = picture.colorbar(shades, ax=list(axes), label="persistent / non-persistent IOPS")
    bar.set_ticks(levels.tolist(), labels=[f"{gain:g}" for gain in GAINS])
    picture.suptitle(title)
    return picture
