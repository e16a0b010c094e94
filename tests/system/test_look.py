"""Looking into real machines: what is shown agrees, and a busy one can be looked at."""

from pathlib import Path

import pytest

from looking.ring_page import RESPONSE
from tests.system.conftest import grantlab
from toolstack.loadspec import LoadSpec
from toolstack.topology import MODES, Mode, Topology

pytestmark = pytest.mark.system

SMALL = {"guests": 2, "dom0_vcpus": 2, "disks": ["ram:4m", "null:4m"]}


@pytest.mark.parametrize("mode", MODES)
def test_at_rest_all_parts_agree(mode: Mode) -> None:
    with Topology(**SMALL).with_mode(mode).start() as machine:
        for _ in machine.load(LoadSpec(ios=40, iodepth=4, rw="randwrite")):
            pass
        views = {(domid, vdev): machine.look(domid, vdev) for domid in (1, 2)
                 for vdev in ("xvda", "xvdb")}  # fmt: skip
    for view in views.values():
        assert view.ring is not None and view.ring.outstanding == 0
        assert (view.ring.req_prod, view.ring.rsp_prod) == (40, 40)
        answers = [slot for slot in view.ring.slots if slot.what == RESPONSE]
        assert len(answers) == 32 and {slot.status for slot in answers} == {"OKAY"}
        mapped = {grant.gref for grant in view.grants.grants if "reading" in grant.flags}
        assert {mapping.ref for mapping in view.maptrack.mappings} == mapped
        kept = {node.gref for node in view.tree.nodes} if view.tree is not None else set()
        assert bool(kept) == (mode == "persistent") and kept <= mapped
    for domid in (1, 2):
        one, other = (views[domid, vdev] for vdev in ("xvda", "xvdb"))
        trees = [{node.gref for node in view.tree.nodes} if view.tree else set()
                 for view in (one, other)]  # fmt: skip
        assert not trees[0] & trees[1]  # a gref is one disk's
        # All that is mapped is what the trees keep, and the two rings' pages.
        assert len(one.maptrack.mappings) == len(trees[0]) + len(trees[1]) + 2


def test_a_busy_machine_can_be_looked_at_and_goes_on() -> None:
    with Topology(guests=1, dom0_vcpus=2).start() as machine:
        load = machine.load(LoadSpec(runtime_s=2, iodepth=32), every_s=0.1)
        next(load)
        for _ in range(20):
            view = machine.look(1)
            assert view.ring is not None and view.ring.outstanding <= 32
            assert view.tree is not None and str(view.tree)
        rest = list(load)
    assert not rest[-1].frontend[1]["verify_errors"].any()


def test_the_command_shows_what_is_asked_for_and_draws_the_tree(
    run_base: str, tmp_path: Path
) -> None:
    flags = ["--ios", "50", "--show", "ring,tree", "--picture", str(tmp_path / "tree")]
    done = grantlab("look", *flags, run_base=run_base)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("persistent, guest 1's xvda, at rest\n\nring: req_prod 50 ")
    assert "\n\ntree: " in done.stdout and "maptrack" not in done.stdout
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"tree{suffix}").stat().st_size > 1000


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--at", "1:xvdq"], "at: '1:xvdq' is no disk there is; there are 1:xvda"),
        (["--at", "7"], "at: 7 is no disk there is; there are 1:xvda"),
        (["--show", "ring,heap"], "show: 'ring,heap' is not some of ring, grants, maptrack,"),
        (["--disk", "ram:0"], "disk: 'ram:0'"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(flags: list[str], said: str, run_base: str) -> None:
    done = grantlab("look", *flags, run_base=run_base)
    assert done.returncode == 2 and said in done.stderr
    assert len(done.stderr.splitlines()) == 1
