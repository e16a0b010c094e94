"""Which virtual disks dom0 has still to look at, and whose turn it is.

Owns: the order. Events only say "look": however many there are for a disk, it is looked at once.
Guests have their turns round robin, one look each, so that one guest's storm of events costs the
others one look between two of theirs. A guest that has had too much time (`common/shares.py`) has
its next turn later: a storm of writes costs dom0 and xenstored more than the guest.
"""

Key = tuple[int, int]  # frontend domid, device


class Due:
    """A set of keys with an order. Times are in nanoseconds, of any clock that never goes back."""

    def __init__(self) -> None:
        self._devices: dict[int, dict[int, None]] = {}  # by domid; both in the order of turns
        self._rests: dict[int, int] = {}  # until when a guest has no turn

    def __bool__(self) -> bool:
        return bool(self._devices)

    def add(self, key: Key) -> None:
        """Have `key` looked at, if it is not going to be."""
        self._devices.setdefault(key[0], {})[key[1]] = None

    def rest(self, domid: int, until_ns: int) -> None:
        """The guest has no turn until then."""
        self._rests[domid] = until_ns

    def hurry(self, domid: int) -> None:
        """It has: what is due is not its own doing."""
        self._rests.pop(domid, None)

    def take(self, now_ns: int = 0) -> Key | None:
        """The key whose turn it is, None if all that are due rest; its guest's next has to wait
        until the others have had one."""
        for domid in self._devices:
            if self._rests.get(domid, 0) <= now_ns:
                break
        else:
            return None
        self._rests.pop(domid, None)
        devices = self._devices.pop(domid)
        device = next(iter(devices))
        del devices[device]
        if devices:
            self._devices[domid] = devices
        return domid, device

    def pause_ns(self, now_ns: int) -> int | None:
        """How long until somebody has a turn: 0 is now, None never, as nothing is due."""
        if not self._devices:
            return None
        return max(0, min(self._rests.get(domid, 0) for domid in self._devices) - now_ns)
