"""Imported by the fork server before its first fork: brings every process's code in, compiled."""

from backend import dom0
from frontend import guest
from hypervisor import broker
from toolstack.warm import warm

__all__ = ["broker", "dom0", "guest"]

warm()
