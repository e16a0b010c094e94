"""Which virtual disks dom0 has still to look at, and whose turn it is.

Owns: the order. Events only say "look": however many there are for a disk, it is looked at once.
Guests have their turns round robin, one look each, so that one guest's storm of events costs the
others one look between two of theirs.
"""

Key = tuple[int, int]  # frontend domid, device


class Due:
    """A set of keys with an order."""

    def __init__(self) -> None:
        self._devices: dict[int, dict[int, None]] = {}  # by domid; both in the order of turns

    def __bool__(self) -> bool:
        return bool(self._devices)

    def add(self, key: Key) -> None:
        """Have `key` looked at, if it is not going to be."""
        self._devices.setdefault(key[0], {})[key[1]] = None

    def take(self) -> Key:
        """The key whose turn it is; its guest's next has to wait until the others have had one."""
        domid = next(iter(self._devices))
        devices = self._devices.pop(domid)
        device = next(iter(devices))
        del devices[device]
        if devices:
            self._devices[domid] = devices
        return domid, device
