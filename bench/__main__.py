"""`./run.sh bench`: grantlab against the memory's own limit and against what people use instead."""

import json
from pathlib import Path

import click
from rich.console import Console

from bench.contest import Sample, case_of, medians, plan, run_round
from bench.peers import missing
from bench.pictures import draw
from bench.verdict import print_verdict


@click.command()
@click.option("--rounds", type=click.IntRange(1, 99), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1, 60), default=0.6, show_default=True)
@click.option("--quick", is_flag=True, help="4 KiB random 70:30 at depth 32, 1, 8 and 32 guests.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("results/bench")
)
def main(rounds: int, seconds: float, quick: bool, out: Path) -> None:
    """Measure in interleaved rounds; medians of ratios. Writes bench.json and bench.png to OUT."""
    out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    if absent := missing():
        console.print(f"not installed, so not measured: {', '.join(absent)}")
    contest, done = plan(quick, seconds), list[list[Sample]]()
    with console.status("") as status:
        for number in range(1, rounds + 1):
            for sample in run_round(contest, done):
                status.update(f"round {number} of {rounds}: {case_of(sample)}")
            document = {"schema": 1, "rounds": done, "medians": medians(done)}
            (out / "bench.json").write_text(json.dumps(document, indent=2) + "\n")
    results = medians(done)
    print_verdict(console, results)
    draw(out / "bench.png", results)
    console.print(f"wrote {out / 'bench.json'} and {out / 'bench.png'}")


if __name__ == "__main__":
    main()
