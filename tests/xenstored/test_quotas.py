"""Each limit on its own: the last that fits, the first that does not, and dom0 above it all."""

import pytest

from common.xenstore_wire import MessageType
from tests.xenstored.world import OK, World


def test_a_guest_owns_as_many_nodes_as_the_quota_says_and_removing_gives_room():
    world = World(nodes=4)  # its home is one
    assert world.guest.do("write a/b/c 1") == OK
    assert world.guest.do("mkdir d") == "ENOSPC"
    assert world.guest.do("rm a/b") == OK
    assert world.guest.do("mkdir d") == OK


def test_a_creation_over_the_quota_creates_no_part_of_the_path():
    world = World(nodes=3)
    assert world.guest.do("mkdir a/b/c") == "ENOSPC"
    assert world.guest.do("ls /local/domain/1") == b""
    assert world.store.tree.held(1).nodes == 1


def test_one_guests_nodes_are_not_charged_to_another():
    world = World(nodes=2)
    assert world.guest.do("mkdir a") == OK
    assert world.other.do("mkdir a") == OK


@pytest.mark.parametrize(("nbytes", "reply"), [(92, OK), (93, "ENOSPC")])
def test_a_node_is_limited_in_size(nbytes, reply):
    world = World(node_bytes=100)  # 8 for its one permission
    assert world.guest.do("write a " + "x" * nbytes) == reply


def test_the_names_of_children_count_to_the_size_of_a_node():
    world = World(node_bytes=100)
    assert world.guest.do("mkdir " + "n" * 91) == OK
    assert world.guest.do("mkdir m") == "ENOSPC"
    assert world.guest.do("mkdir " + "n" * 91 + "/" + "o" * 92) == "ENOSPC"
    assert world.guest.do("mkdir p/" + "o" * 92) == "ENOSPC"


def test_a_node_has_a_limited_number_of_permissions():
    world = World(permissions=2)
    assert world.guest.do("perms /local/domain/1 n1 r2") == OK
    assert world.guest.do("perms /local/domain/1 n1 r2 r0") == "ENOSPC"


def test_watches_are_limited_and_taking_one_back_gives_room():
    world = World(watches=2)
    assert world.guest.do("watch a t") == OK
    assert world.guest.do("watch a u") == OK
    assert world.guest.do("watch b t") == "E2BIG"
    assert world.guest.do("unwatch a t") == OK
    assert world.guest.do("watch b t") == OK


def test_a_watch_that_exists_is_eexist_and_charged_once():
    world = World(watches=2)
    assert [world.guest.do("watch a t") for _ in range(3)] == [OK, "EEXIST", "EEXIST"]
    assert world.guest.do("watch b t") == OK


def test_open_transactions_are_limited_and_ending_one_gives_room():
    world = World(transactions=2)
    first = world.guest.begin()
    world.guest.begin()
    assert world.guest.ask(MessageType.TRANSACTION_START) == "ENOSPC"
    assert world.guest.end(first, "F") == OK
    world.guest.begin()


def test_a_transaction_looks_at_a_limited_number_of_nodes():
    world = World(transaction_nodes=6)
    tx = world.guest.begin()
    assert world.guest.do("mkdir a", tx=tx) == OK  # looks at a and at home
    assert world.guest.do("mkdir b", tx=tx) == OK
    assert world.guest.do("mkdir c", tx=tx) == OK
    assert world.guest.do("write a again", tx=tx) == OK
    assert [world.guest.do(f"mkdir {name}", tx=tx) for name in "defg"][-1] == "ENOSPC"


def test_a_removal_that_a_transaction_cannot_hold_removes_nothing():
    world = World(transaction_nodes=4)
    for name in "abcd":
        world.guest.do(f"mkdir top/{name}")
    tx = world.guest.begin()
    assert world.guest.do("rm top", tx=tx) == "ENOSPC"
    assert world.guest.do("ls top", tx=tx) == b"a\0b\0c\0d\0"
    assert world.guest.end(tx) == OK
    assert world.guest.do("ls top") == b"a\0b\0c\0d\0"


def test_two_transactions_cannot_pass_the_node_quota_together():
    world = World(nodes=3)
    world.guest.do("mkdir a")
    world.dom0.do("mkdir /shared")
    world.dom0.do("perms /shared b0")
    first, second = world.guest.begin(), world.guest.begin()
    assert world.guest.do("mkdir a/x", tx=first) == OK
    assert world.guest.do("mkdir /shared/y", tx=second) == OK
    assert world.guest.end(first) == OK
    assert world.guest.end(second) == "ENOSPC"
    assert world.store.tree.held(1).nodes == 3


def test_a_request_outside_a_transaction_looks_at_no_more_nodes_than_one_inside():
    world = World(transaction_nodes=4)
    for name in ("top", "top/a", "top/b", "top/c"):
        world.guest.do(f"mkdir {name}")
    assert world.guest.do("rm top") == "ENOSPC"  # these, and the home
    assert world.guest.do("mkdir v/w/x/y") == "ENOSPC"
    assert world.guest.do("ls /local/domain/1") == b"top\0"
    assert world.guest.do("rm top/a") == OK
    assert world.guest.do("rm top") == OK


def used(world):
    """Bytes of memory that guest 1 is charged with."""
    return world.store.tree.held(1).nbytes + world.guest.session.usage.nbytes


def test_memory_is_charged_for_nodes_watches_and_transactions_and_given_back():
    world = World()
    least = used(world)
    steps = []
    world.guest.do("write a 12345")
    steps.append(used(world) - least)
    world.guest.do("watch a token")
    steps.append(used(world) - least)
    tx = world.guest.begin()
    world.guest.do("read a", tx=tx)
    world.guest.do("read none", tx=tx)
    world.guest.do("write a/new 1", tx=tx)
    world.guest.do("rm a", tx=tx)
    steps.append(used(world) - least)
    assert steps == sorted(set(steps))
    assert world.guest.end(tx) == OK
    assert world.guest.do("unwatch a token") == OK
    assert used(world) == least


@pytest.mark.parametrize(
    "operation",
    [
        "write a 1",
        "mkdir a",
        "watch a t",
        "read /local/domain/1",
        "write /local/domain/1 " + "x" * 1900,
    ],
)
def test_a_request_over_the_memory_quota_is_enomem_and_changes_nothing(operation):
    world = World()
    in_transaction = operation.startswith("read")
    tx = world.guest.begin() if in_transaction else 0
    world.store.quotas.__dict__["memory"] = used(world) + 500
    before, charged = world.nodes(), used(world)
    assert world.guest.do(operation, tx=tx) == "ENOMEM"
    assert (world.nodes(), used(world)) == (before, charged)


def test_a_transaction_cannot_hold_more_memory_than_is_left_nor_lose_count_when_refused():
    world = World()
    tx = world.guest.begin()
    world.guest.do("write a 1", tx=tx)
    world.store.quotas.__dict__["memory"] = used(world) + 1000
    charged = used(world)
    assert world.guest.do("write a " + "x" * 2000, tx=tx) == "ENOMEM"
    assert used(world) == charged
    assert world.guest.do("read a", tx=tx) == b"1"
    assert world.guest.end(tx, "F") == OK
    assert world.guest.session.usage.nbytes == 0


def test_what_another_quota_refuses_is_not_charged():
    world = World(nodes=2)
    tx = world.guest.begin()
    world.guest.do("mkdir a", tx=tx)
    charged = []
    for _ in range(2):
        assert world.guest.do("mkdir b", tx=tx) == "ENOSPC"
        charged.append(used(world))
    assert charged[0] == charged[1]


def test_transactions_and_watches_leave_less_memory_for_nodes():
    world = World()
    tx = world.guest.begin()
    world.guest.do("write a " + "x" * 2000, tx=tx)
    world.store.quotas.__dict__["memory"] = used(world) + 1000
    assert world.guest.do("write b " + "x" * 2000) == "ENOMEM"
    assert world.guest.end(tx, "F") == OK
    assert world.guest.do("write b " + "x" * 2000) == OK


def test_what_a_guest_writes_into_anothers_node_is_charged_to_the_owner():
    world = World()
    world.guest.do("mkdir board")
    world.guest.do("perms board n1 b2")
    world.store.quotas.__dict__["memory"] = used(world) + 500
    assert world.other.do("write /local/domain/1/board " + "x" * 400) == OK
    assert world.other.do("write /local/domain/1/board " + "x" * 501) == "ENOMEM"


def test_dom0_has_no_quotas():
    world = World(
        nodes=1,
        node_bytes=1,
        permissions=1,
        watches=0,
        transactions=0,
        transaction_nodes=1,
        memory=1,
    )
    assert world.dom0.do("write /a/b/c " + "x" * 4000) == OK
    assert world.dom0.do("perms /a n0 r1 r2 r3") == OK
    assert world.dom0.do("watch /a t") == OK
    assert world.dom0.do("write /a/d 1", tx=world.dom0.begin()) == OK
