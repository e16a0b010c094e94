"""The user's side of grantlab: what to run, how to start it, and what came out.

Kept light: nothing here imports Numba, so that `--help` and a refused setting answer at once.
"""

from toolstack.attached import attach
from toolstack.loadspec import LoadSpec
from toolstack.topology import ConfigError, Topology

__all__ = ["ConfigError", "LoadSpec", "Topology", "attach"]
