"""A table of text, as every view here is shown.

Owns: how columns are laid out. No colours and no box: it is read in terminals, logs and tests.
"""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]], nothing: str) -> str:
    """Left-aligned columns under `head`; `nothing`, if there are no rows."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return nothing
    widths = [max(len(row[at]) for row in (list(head), *cells)) for at in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (list(head), *cells)
    ]
    return "\n".join(lines)
