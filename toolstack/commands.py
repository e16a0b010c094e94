"""Every command behind `./run.sh`, put together: `run` and those that have files of their own.

A command's file takes what it needs from `toolstack/cli.py`, which therefore cannot name them.
"""

from toolstack.cli import RunEnded, cli
from toolstack.simulate import simulate

__all__ = ["RunEnded", "cli"]

for command in (simulate,):
    cli.add_command(command)
