"""CPU time of a machine's processes, of those that have ended too."""

import psutil


class CpuTime:
    """User and system seconds, by pid, as they were last seen."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def seconds(self, pids: list[int]) -> float:
        """The sum over `pids` and all that were ever asked for."""
        for pid in pids:
            try:
                times = psutil.Process(pid).cpu_times()
            except psutil.NoSuchProcess:
                continue
            self._seconds[pid] = times.user + times.system
        return sum(self._seconds.values())
