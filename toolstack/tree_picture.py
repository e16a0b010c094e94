"""A red-black tree as a picture.

Owns: how it looks: each node by its gref's place in the order, and its level; what is in flight has
a thick rim.
"""

from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from looking.tree import Tree
from toolstack.pictures import save

INK: Final = {"red": "#D55E00", "black": "#222222"}
IN_FLIGHT: Final = "#56B4E9"
LABELS_MAX: Final = 64  # nodes that still have room for their grefs


def draw_tree(tree: Tree, title: str, path: Path) -> None:
    """Write `path`.png and `path`.svg."""
    nodes = tree.nodes
    picture = Figure(figsize=(min(4 + len(nodes) * 0.3, 40), 2 + tree.height * 0.7))
    axes = picture.subplots()
    for node in nodes:
        if node.parent is not None:
            above = nodes[node.parent]
            line = ([above.rank, node.rank], [-above.depth, -node.depth])
            axes.plot(*line, color="#999999", linewidth=1, zorder=1)
    size = 420 if len(nodes) <= LABELS_MAX else 40
    axes.scatter(
        [node.rank for node in nodes],
        [-node.depth for node in nodes],
        s=size,
        c=[INK.get(node.colour, "#999999") for node in nodes],
        edgecolors=[IN_FLIGHT if node.in_flight else "white" for node in nodes],
        linewidths=[3 if node.in_flight else 1 for node in nodes],
        zorder=2,
    )
    if len(nodes) <= LABELS_MAX:
        for node in nodes:
            place = (node.rank, -node.depth)
            axes.annotate(str(node.gref), place, color="white", ha="center", va="center", size=8)
    axes.set(title=title)
    axes.set_axis_off()
    save(picture, path)
