"""The store of a running machine, seen by the clients people already have."""

import os
import shutil
import subprocess

import pytest
from pyxs import Client

from common.xenbus import backend_path, frontend_path
from machine.plug import XVDA
from toolstack.topology import Topology

pytestmark = pytest.mark.system


@pytest.mark.skipif(not shutil.which("xenstore-ls"), reason="Debian's xenstore-utils is missing")
def test_xenstore_ls_prints_both_ends_connected() -> None:
    with Topology(guests=2).start() as machine:
        listing = subprocess.run(
            ["xenstore-ls", "-fp"],
            env={**os.environ, "XENSTORED_PATH": machine.xenstore_path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for domid in (1, 2):
            for path in (frontend_path(domid, XVDA), backend_path(domid, XVDA)):
                assert f'{path}/state = "4"' in listing
                assert f'{path}/feature-persistent = "1"' in listing


def test_pyxs_reads_the_disk_that_the_backend_announced() -> None:
    with (
        Topology(guests=1, disk_mib=16).start() as machine,
        Client(unix_socket_path=machine.xenstore_path) as client,
    ):
        path = backend_path(1, XVDA).encode()
        assert client[path + b"/sectors"] == str(16 * 2048).encode()


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("backend_persistent", [True, False])
def test_each_end_announces_its_own_setting(persistent: bool, backend_persistent: bool) -> None:
    """In 2022 both waited for the other to say it first, and it was off everywhere."""
    topology = Topology(guests=1, persistent=persistent, backend_persistent=backend_persistent)
    with topology.start() as machine, Client(unix_socket_path=machine.xenstore_path) as client:
        for path, setting in (
            (frontend_path(1, XVDA), persistent),
            (backend_path(1, XVDA), backend_persistent),
        ):
            announced = client[f"{path}/feature-persistent".encode()]
            assert announced == str(int(setting)).encode()
