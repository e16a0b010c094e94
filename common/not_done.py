"""What a status says of an operation that nobody has made yet: never that it is okay.

None of these is Xen's, and none goes over a ring. A driver that forgets an operation, or a
hypercall that fails as a whole (-errno) and so fills no status, is an error and no success.
"""

from typing import Final

GNTST_UNFILLED: Final = -0x8000  # in a grant-table op, until the hypervisor fills it
NOT_DONE: Final = 1  # in a request or an I/O, where BLKIF_RSP_* are 0 and below
