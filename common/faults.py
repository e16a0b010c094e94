"""The three forms a failure has, the same on each side of a door.

- LocalFault: something of ours, or of our host, cannot be had (memory, a descriptor, a file). It
  fails what was being done, and is told in one line.
- PeerFault: the other end of a device broke the ring or the protocol. It closes that device, with
  the text as its reason in the log and in the store's `error` node, and does nothing else.
- Our bug is an AssertionError: that process dies, and the supervisor names it.

A bad *request* is none of them: it is answered with an error, and the ring goes on.
"""


class LocalFault(Exception):
    """Something here cannot be had; the text says what, and what would help."""


class PeerFault(Exception):
    """The other end broke the protocol; the text says how."""
