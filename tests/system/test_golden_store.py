"""Both directories of a running machine against those of a real Xen, key by key, in order."""

import re
from pathlib import Path

import pytest

from common.xenbus import backend_path, frontend_path
from common.xenstore import XenStoreClient
from machine.plug import XVDA
from toolstack.topology import Topology

pytestmark = pytest.mark.system

GOLDEN = Path(__file__).parents[1] / "golden"
LINE = re.compile(r'/local/domain/0/(?:device/vbd|backend/vbd/0)/51712/(\S+) = "([^"]*)"   ')

# What differs from the captured machine, and why: its paths and disk were others, and grantlab has
# no indirect descriptors and no multi-page rings yet.
OURS = {
    "frontend": frontend_path(1, XVDA),
    "frontend-id": "1",
    "backend": backend_path(1, XVDA),
    "params": "ram:32m",
    "feature-max-indirect-segments": "0",
    "max-ring-page-order": "0",
    "event-channel": "1",
}


def golden_nodes(name: str) -> list[tuple[str, str]]:
    """Backend's then frontend's keys and values, as captured, with our own differences put in."""
    found = LINE.findall((GOLDEN / name).read_text())
    assert len(found) > 25
    return [(key, OURS.get(key, value)) for key, value in found]


@pytest.mark.parametrize(
    ("backend_persistent", "golden"),
    [(True, "xenstore-both-persistent.txt"), (False, "xenstore-backend-without.txt")],
)
def test_a_connected_disk_looks_as_on_xen(backend_persistent: bool, golden: str) -> None:
    topology = Topology(guests=1, disk_mib=32, backend_persistent=backend_persistent)
    with topology.start() as machine, XenStoreClient(machine.xenstore_path) as store:
        ours = [
            (key, store.read(f"{directory}/{key}").decode())
            for directory in (backend_path(1, XVDA), frontend_path(1, XVDA))
            for key in store.directory(directory)
        ]
    assert ours == golden_nodes(golden)
