"""Paths: which are valid, what a relative one means, who is whose parent.

Rule: past `resolve`, a path is an absolute, valid `str`; nothing else looks at a guest's spelling.

Source: Xen's `docs/misc/xenstore.txt`.
"""

import re
from typing import Final

from common.abi import DOMID_FIRST_RESERVED
from common.xenstore_wire import XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX
from xenstored.refusal import Refusal

ROOT: Final = "/"
SPECIAL: Final = "@"  # begins the name of an event that is no node's

_VALID: Final = re.compile(r"/|(?:/[A-Za-z0-9_@-]+)+", re.ASCII)


def home(domid: int) -> str:
    """Where the relative paths of `domid` begin."""
    return f"/local/domain/{domid}"


def resolve(raw: bytes, domid: int) -> str:
    """The absolute path that `domid` means by `raw`. Refuses what is none, `@...` too (EINVAL)."""
    path = raw.decode("latin-1")
    if not path.startswith(ROOT):
        if len(path) > XENSTORE_REL_PATH_MAX or path.startswith(SPECIAL):
            raise Refusal("EINVAL")
        path = f"{home(domid)}/{path}"
    if len(path) > XENSTORE_ABS_PATH_MAX or not _VALID.fullmatch(path):
        raise Refusal("EINVAL")
    return path


def parse_domid(raw: bytes) -> int:
    """A real domain's id in decimal. Refuses anything else (EINVAL)."""
    if not raw.isdigit() or len(raw) > 5 or int(raw) >= DOMID_FIRST_RESERVED:
        raise Refusal("EINVAL")
    return int(raw)


def parent(path: str) -> str:
    """The path one level up; the root's is the root."""
    return path[: path.rindex("/")] or ROOT


def child(path: str, name: str) -> str:
    """The path of `name` under `path`."""
    return f"/{name}" if path == ROOT else f"{path}/{name}"
