"""The figure's report: one HTML file that needs nothing else, pictures and traces inside.

Owns: what goes into the template (`toolstack/templates/figure.html.j2`).
"""

from pathlib import Path
from typing import Any, Final

import pandas as pd

from simulator.costs import TABLE
from toolstack.html import embedded, rendered

PICTURES: Final = {
    "iops": "Throughput against guests. The stars are what was published.",
    "ipis": "Interrupts that TLB flushes send, for each request.",
    "cpus": "What each of dom0's CPUs does with its time.",
    "heatmap": "Who interrupts whom: IPIs from CPU to CPU, for 1,000 requests.",
}


def write_report(
    directory: Path, predictions: list[dict[str, Any]], frame: pd.DataFrame, traces: dict[str, str]
) -> None:
    """Write `directory`/report.html, with the pictures and traces that lie beside it inside."""
    table = frame.pivot_table(index="guests", columns=["era", "line"], values="iops")
    text = rendered(
        "figure",
        predictions=predictions,
        pictures=[
            {"name": name, "caption": caption, "data": _encoded(directory / f"{name}.png")}
            for name, caption in PICTURES.items()
        ],
        traces=[
            {"mode": mode, "name": name, "data": _encoded(directory / name)}
            for mode, name in traces.items()
        ],
        parameters=[row._asdict() for row in TABLE],
        columns=[f"{line} ({era})" for era, line in table.columns],
        rows=[(guests, [f"{iops:,.0f}" for iops in row]) for guests, *row in table.itertuples()],
    )
    (directory / "report.html").write_text(text)


def _encoded(path: Path) -> str:
    return embedded(path.read_bytes())
