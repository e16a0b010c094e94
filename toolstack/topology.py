"""What a machine is to its user: settings that can be started.

Owns: how a machine is started, and what is then known of it by those who need not know the machine
itself. What the settings are, and when they are refused, is `toolstack/settings.py`'s.
"""

import contextlib
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from toolstack.disk_checks import check_disks
from toolstack.loadspec import ConfigError, LoadSpec
from toolstack.settings import MODES, PRESETS, SPARE_DISKS, Mode, Settings
from toolstack.snapshot import Snapshot

if TYPE_CHECKING:
    from toolstack.look import View
    from toolstack.verify_state import Verdict

__all__ = ["MODES", "PRESETS", "ConfigError", "Mode", "RunningMachine", "Topology"]


class RunningMachine(Protocol):
    """What `Topology.start` returns, as far as a run of a load needs it.

    booted, connected, closed: taken when the processes are up, when every disk is Connected, and
    when every disk is closed; None before. close_failure: why `closed` is None after `close`;
    failures: the guests that died or failed, and how.
    """

    booted: Snapshot | None
    connected: Snapshot | None
    closed: Snapshot | None
    close_failure: str
    failures: dict[str, str]
    run_dir: str
    xenstore_path: str

    @property
    def pids(self) -> dict[str, int]: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def snapshot(self) -> Snapshot: ...

    def load(
        self, load: LoadSpec | Sequence[LoadSpec], every_s: float = 0.5
    ) -> Generator[Snapshot, None, None]: ...

    def guest(self, domid: int) -> Any: ...

    def judge(self) -> "list[Verdict]": ...

    def look(self, domid: int, vdev: str = ...) -> "View": ...

    def counters(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class Topology(Settings):
    __doc__ = Settings.__doc__

    def start(self) -> RunningMachine:
        """Start the machine's processes and connect every disk. Raises MachineError, and
        ConfigError where this host is too small for it.

        The machine is imported only now: it brings Numba, which takes a while.
        """
        from toolstack.plugged_machine import PluggedMachine  # noqa: PLC0415

        self.check_host()
        self.check_disks()
        return PluggedMachine(self).start()

    def check_host(self) -> None:
        """Does this host allow it? Raises ConfigError."""
        from toolstack.limits import check_host  # noqa: PLC0415

        check_host(self)

    def check_disks(self) -> None:
        """Are the files and servers of its disks there? Raises ConfigError."""
        check_disks(self)


def with_spare_disks(topology: Topology) -> Topology:
    """The same with room for disks that come later, where nothing was said of that: as many as this
    host has room for."""
    if "spare_disks" in topology.model_fields_set:
        return topology
    for spare in range(SPARE_DISKS, 0, -1):
        with contextlib.suppress(ConfigError):
            roomy = Topology(**{**topology.given(), "spare_disks": spare})
            roomy.check_host()
            return roomy
    return topology
