"""The bench as one picture: IOPS against guests, ratios as bars, latencies."""

from pathlib import Path
from typing import Final

import matplotlib as mpl

from bench.contest import MODES, Sample
from bench.verdict import find

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLORS: Final = {
    "persistent": "#1f5fa8",
    "non-persistent": "#c4701b",
    "grant-copy": "#5b8c3a",
    "fio + nbdkit": "#8a8a8a",
}


def draw(path: Path, results: dict[str, Sample]) -> None:
    """Write the picture to `path` (PNG)."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.8), layout="constrained")
    _by_guests(axes[0], results)
    _bars(axes[1], results, "of_limit", "IOPS, of what the copies alone allow")
    _bars(axes[2], results, "p50_us", "Latency, median, us", also="p99_us")
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _by_guests(axes: Axes, results: dict[str, Sample]) -> None:
    for mode in MODES:
        points = sorted(
            (sample["guests"], sample["iops"])
            for sample in results.values()
            if sample["who"] == mode
            and (sample.get("rw"), sample.get("bs"), sample.get("iodepth")) == ("randrw", 4096, 32)
        )
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=COLORS[mode], label=mode)
    peer = find(results, "fio + nbdkit", iodepth=32)
    if peer:
        axes.axhline(peer["iops"], color=COLORS["fio + nbdkit"], ls="--", label="fio + nbdkit, one")
    axes.set(title="4 KiB random 70:30, depth 32", xlabel="guests", ylabel="IOPS, all guests")
    axes.set_yscale("log")
    axes.legend(frameon=False)


def _bars(
    axes: Axes, results: dict[str, Sample], key: str, title: str, also: str | None = None
) -> None:
    bars = []
    for depth in (1, 32):
        for who in (*MODES, "fio + nbdkit"):
            wanted = {"iodepth": depth, "rw": "randrw"}
            if who != "fio + nbdkit":
                wanted |= {"guests": 1, "bs": 4096}
            if sample := find(results, who, **wanted):
                bars.append((f"{who}\ndepth {depth}", sample, COLORS[who]))
    places = range(len(bars))
    axes.bar(places, [sample[key] for _, sample, _ in bars], color=[c for _, _, c in bars])
    if also:
        axes.plot(places, [sample[also] for _, sample, _ in bars], "k_", ms=14, label="p99")
        axes.legend(frameon=False)
    axes.set_xticks(places, [name for name, _, _ in bars], rotation=60, ha="right", fontsize=8)
    axes.set(title=title, yscale="log")
