"""Pages of 2 MiB for ram disks, made of small ones once those are in use.

Owns: a thread that does for the shared memory of disks what the host does by itself for private
memory, and for shared as a rule not: random blocks of a large disk miss the TLB each time, and a
fifth of each copy is spent there. docs/performance.md has the figures.
Rules
1. The first disks' are made huge before anybody uses them, as long as they are `AT_ONCE` together:
   a load on a new machine is as fast from its first request on.
2. Of all others a stretch is made huge only if an eighth of it is in use, so that a disk that is
   hardly used stays small.
3. A pass that finds nothing to do makes the next one later. Where the host does not let us there is
   no next one.
"""

import ctypes
import errno
import threading
from typing import Final

import numpy as np

from common.abi import XEN_PAGE_SIZE
from common.copying import address_of
from common.memory import HUGE_PAGE
from common.process import name_thread

PAGES: Final = HUGE_PAGE // XEN_PAGE_SIZE
IN_USE: Final = PAGES // 8
AT_ONCE: Final = 256 << 20  # bytes
MADV_COLLAPSE: Final = 25  # since Linux 6.1
PAUSE_S: Final = 0.1
PAUSE_S_MAX: Final = 10.0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


class HugePages:
    """`watch` the memory of a disk until `forget`; the thread begins with the first."""

    def __init__(self) -> None:
        self._small: dict[int, tuple[np.ndarray, list[int]]] = {}  # by address: what is not huge
        self._resident = np.zeros(PAGES, np.uint8)
        self._at_once = AT_ONCE // HUGE_PAGE  # stretches
        self._stirred, self._ends, self._refused = threading.Event(), False, False
        self._thread = threading.Thread(target=self._main, name="hugepages", daemon=True)

    def watch(self, memory: np.ndarray) -> int:
        """memory: u8, mapped as `map_shared` does; what to `forget`."""
        stretches = list(range(0, len(memory) - HUGE_PAGE + 1, HUGE_PAGE))
        if stretches and not self._refused:
            self._small[address_of(memory)] = memory, stretches
            self._stirred.set()
            if self._thread.ident is None:
                self._thread.start()
        return address_of(memory)

    def forget(self, watched: int) -> None:
        """It may be unmapped, and is once a stretch that is being looked at has been."""
        self._small.pop(watched, None)

    def close(self) -> None:
        """End the thread."""
        self._ends = True
        self._stirred.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _main(self) -> None:
        name_thread(self._thread.name)
        pause_s = PAUSE_S
        while not self._ends and not self._refused:
            made = self.look()
            pause_s = PAUSE_S if made else min(2 * pause_s, PAUSE_S_MAX)
            if self._stirred.wait(pause_s):
                self._stirred.clear()
                pause_s = PAUSE_S
        self._small.clear()

    def look(self) -> int:
        """One pass over all that is not huge yet; how many stretches have become so."""
        made = 0
        for memory, stretches in list(self._small.values()):
            for at in list(stretches):
                if self._ends or address_of(memory) not in self._small:
                    break
                if self._make_huge(memory[at : at + HUGE_PAGE]):
                    stretches.remove(at)
                    made += 1
        return made

    def _make_huge(self, memory: np.ndarray) -> bool:
        """If its turn has come. Raises nothing: a stretch that stays small is only slower."""
        address = address_of(memory)
        if self._at_once:
            memory[0]  # where no page of it has been used there is nothing to be made huge
            self._at_once -= 1
        elif not self._is_used(address):
            return False
        done: bool = _libc.madvise(address, HUGE_PAGE, MADV_COLLAPSE) == 0
        self._refused = self._refused or (not done and ctypes.get_errno() == errno.EINVAL)
        return done

    def _is_used(self, address: int) -> bool:
        if _libc.mincore(address, HUGE_PAGE, self._resident.ctypes.data) != 0:
            return False
        return int((self._resident & 1).sum()) >= IN_USE
