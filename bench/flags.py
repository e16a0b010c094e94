"""Flags that several of `./run.sh bench`'s commands have, and what may be given to them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from toolstack.topology import MODES


class Several(click.ParamType[list[Any]]):
    """One or more values of a kind, with commas between; each once, in the order given."""

    name = "several"

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self.kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Any]:
        """A list of what `kind` makes of each part."""
        if isinstance(value, list):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        return list(dict.fromkeys(self.kind.convert(part, param, ctx) for part in parts))


GUESTS: Final = Several(click.IntRange(1, 64))
MODE: Final = click.Choice(list(MODES))

SECONDS = click.option(
    "--seconds",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Of load, for each sample.",
)


def out_to(default: str) -> Callable[[Any], Any]:
    """`--out`, and where it is without."""
    return click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=default,
        show_default=True,
        metavar="DIR",
        help="Where to write.",
    )
