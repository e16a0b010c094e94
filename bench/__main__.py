"""`./run.sh bench`: grantlab against the memory's own limit and against what people use instead."""

import json
from typing import Final

import click
from rich.console import Console

from bench.contest import Sample, case_of, medians, plan, run_round
from bench.peers import missing
from bench.pictures import draw
from bench.verdict import print_verdict
from toolstack.door import Command, Within, output_directory

OUT: Final = "results/bench"


@click.command("bench", cls=Command)
@click.option(
    "--rounds", type=Within(int, 1, 99), default=5, metavar="N", help="Rounds (default: 5)."
)
@click.option(
    "--seconds",
    type=Within(float, 0.1, 60),
    default=0.6,
    metavar="SECONDS",
    help="Each measurement (default: 0.6).",
)
@click.option("--quick", is_flag=True, help="4 KiB random 70:30 at depth 32, 1, 8 and 32 guests.")
@click.option("--out", default=OUT, metavar="DIR", help=f"Where to write (default: {OUT}).")
def main(rounds: int, seconds: float, quick: bool, out: str) -> None:
    """Measure in interleaved rounds; medians of ratios. Writes bench.json and bench.png."""
    directory = output_directory(out)
    console = Console(highlight=False)
    if absent := missing():
        console.print(f"not installed, so not measured: {', '.join(absent)}")
    contest, done = plan(quick, seconds), list[list[Sample]]()
    with console.status("") as status:
        for number in range(1, rounds + 1):
            for sample in run_round(contest, done):
                status.update(f"round {number} of {rounds}: {case_of(sample)}")
            document = {"schema": 1, "rounds": done, "medians": medians(done)}
            (directory / "bench.json").write_text(json.dumps(document, indent=2) + "\n")
    results = medians(done)
    print_verdict(console, results)
    draw(directory / "bench.png", results)
    console.print(f"wrote {directory / 'bench.json'} and {directory / 'bench.png'}")


if __name__ == "__main__":
    main()
