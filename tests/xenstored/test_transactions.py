"""Isolation, conflicts, and what a commit carries over."""

import pytest

from common.xenstore_wire import MessageType
from tests.xenstored.world import OK, World, path


@pytest.fixture
def world():
    world = World()
    for name in ("a", "b", "c/d"):
        world.dom0.do(f"write /top/{name} 1")
    return world


def test_nobody_sees_a_change_before_the_commit_and_everybody_after(world):
    tx = world.dom0.begin()
    world.dom0.do("write /top/a 2", tx=tx)
    assert world.dom0.do("read /top/a", tx=tx) == b"2"
    assert world.dom0.do("read /top/a") == b"1"
    assert world.dom0.end(tx) == OK
    assert world.dom0.do("read /top/a") == b"2"


def test_what_a_transaction_has_looked_at_stays_as_it_was(world):
    tx = world.dom0.begin()
    assert world.dom0.do("read /top/a", tx=tx) == b"1"
    assert world.dom0.do("read /top/new", tx=tx) == "ENOENT"
    world.dom0.do("write /top/a 2")
    world.dom0.do("write /top/new 2")
    assert world.dom0.do("read /top/a", tx=tx) == b"1"
    assert world.dom0.do("read /top/new", tx=tx) == "ENOENT"


def test_what_it_has_not_looked_at_is_as_it_is_and_one_mixed_view_is_a_conflict(world):
    tx = world.dom0.begin()
    assert world.dom0.do("ls /top", tx=tx) == b"a\0b\0c\0"
    world.dom0.do("write /top/b 2")
    world.dom0.do("rm /top/c")
    assert world.dom0.do("read /top/b", tx=tx) == b"2"
    assert world.dom0.do("read /top/c/d", tx=tx) == "ENOENT"
    assert world.dom0.do("rm /top", tx=tx) == OK
    assert world.dom0.end(tx) == "EAGAIN"
    assert world.dom0.do("ls /top") == b"a\0b\0"


def test_a_node_that_came_under_one_seen_without_it_can_be_used_and_is_a_conflict(world):
    tx = world.dom0.begin()
    assert world.dom0.do("ls /top/a", tx=tx) == b""
    world.dom0.do("mkdir /top/a/new")
    assert world.dom0.do("rm /top/a/new", tx=tx) == OK
    assert world.dom0.do("write /top/a/new/x 1", tx=tx) == OK
    assert world.dom0.end(tx) == "EAGAIN"


def test_a_discarded_transaction_leaves_nothing(world):
    tx = world.dom0.begin()
    world.dom0.do("write /new 1", tx=tx)
    world.dom0.do("rm /top", tx=tx)
    assert world.dom0.end(tx, "F") == OK
    assert world.dom0.do("read /new") == "ENOENT"
    assert world.dom0.do("read /top/a") == b"1"


# in the transaction, meanwhile outside it, what its end says
CONFLICTS = [
    ("read /top/a", "write /top/a 2", "EAGAIN"),
    ("read /top/a", "write /top/b 2", OK),
    ("read /top/a", "perms /top/a r0", "EAGAIN"),
    ("read /top/a", "rm /top/a", "EAGAIN"),
    ("read /top/a", "rm /top", "EAGAIN"),
    ("read /top/new", "write /top/new 1", "EAGAIN"),  # a missing node is an answer too
    ("ls /top", "write /top/a 2", OK),
    ("ls /top", "mkdir /top/new", "EAGAIN"),
    ("ls /top", "rm /top/b", "EAGAIN"),
    ("ls /top", "mkdir /top/c/new", OK),
    ("write /top/a 3", "write /top/a 2", "EAGAIN"),
    ("write /top/a 3", "write /top/b 2", OK),
    ("write /top/new 3", "mkdir /top/other", "EAGAIN"),
    ("write /top/c/d 3", "mkdir /top/other", OK),
    ("rm /top/c", "write /top/c/d 2", "EAGAIN"),
    ("rm /top/c", "mkdir /top/c/new", "EAGAIN"),
    ("rm /top/c", "write /top/a 2", OK),
    ("perms /top/a r0", "write /top/a 2", "EAGAIN"),
    ("perms? /top/a", "perms /top/a r0", "EAGAIN"),
    ("mkdir /top/a", "write /top/a 2", "EAGAIN"),
]


@pytest.mark.parametrize(("inside", "meanwhile", "verdict"), CONFLICTS)
def test_conflicts(world, inside, meanwhile, verdict):
    tx = world.dom0.begin()
    world.dom0.do(inside, tx=tx)
    assert world.dom0.do(meanwhile) == OK
    assert world.dom0.end(tx) == verdict


def test_a_conflicting_transaction_changes_nothing(world):
    tx = world.dom0.begin()
    world.dom0.do("write /top/a 3", tx=tx)
    world.dom0.do("write /top/b 3", tx=tx)
    world.dom0.do("write /top/b 2")
    assert world.dom0.end(tx) == "EAGAIN"
    assert world.dom0.do("read /top/a") == b"1"
    assert world.dom0.do("read /top/b") == b"2"


def test_of_two_that_read_and_write_the_same_the_second_conflicts(world):
    first, second = world.dom0.begin(), world.dom0.begin()
    for tx in (first, second):
        world.dom0.do("read /top/a", tx=tx)
        world.dom0.do("write /top/b 2", tx=tx)
    assert world.dom0.end(second) == OK
    assert world.dom0.end(first) == "EAGAIN"


def test_a_commit_keeps_what_others_changed_elsewhere(world):
    tx = world.dom0.begin()
    world.dom0.do("write /top/a 2", tx=tx)
    world.dom0.do("write /elsewhere/x 5")
    assert world.dom0.end(tx) == OK
    assert world.dom0.do("read /elsewhere/x") == b"5"


def test_a_subtree_removed_and_made_anew_in_one_transaction_has_lost_its_old_children(world):
    tx = world.dom0.begin()
    world.dom0.do("rm /top", tx=tx)
    world.dom0.do("write /top/c/e 9", tx=tx)
    assert world.dom0.end(tx) == OK
    assert world.dom0.do("ls /top") == b"c\0"
    assert world.dom0.do("ls /top/c") == b"e\0"
    assert world.dom0.do("read /top/c/e") == b"9"


def test_what_was_made_and_removed_in_one_transaction_never_was(world):
    tx = world.dom0.begin()
    world.dom0.do("watch / t")
    world.dom0.events()
    world.dom0.do("write /new/x 1", tx=tx)
    world.dom0.do("rm /new", tx=tx)
    assert world.dom0.end(tx) == OK
    assert world.dom0.events() == []
    assert world.dom0.do("read /new") == "ENOENT"


@pytest.mark.parametrize("verdict", ["T", "F"])
def test_an_ended_transaction_is_enoent(world, verdict):
    tx = world.dom0.begin()
    world.dom0.end(tx, verdict)
    assert world.dom0.do("read /top/a", tx=tx) == "ENOENT"
    assert world.dom0.end(tx) == "ENOENT"


def test_a_transaction_is_its_connections_own(world):
    tx = world.dom0.begin()
    assert world.client(0).do("read /top/a", tx=tx) == "ENOENT"


def test_transactions_do_not_nest(world):
    tx = world.dom0.begin()
    assert world.dom0.ask(MessageType.TRANSACTION_START, tx=tx) == "EBUSY"


@pytest.mark.parametrize("payload", [b"", b"T", b"X\0", b"T\0T\0", b"\0"])
def test_an_end_that_is_neither_true_nor_false_is_einval_and_ends_nothing(world, payload):
    tx = world.dom0.begin()
    assert world.dom0.ask(MessageType.TRANSACTION_END, payload, tx) == "EINVAL"
    assert world.dom0.end(tx) == OK


def test_an_end_without_a_transaction_is_enoent(world):
    assert world.dom0.ask(MessageType.TRANSACTION_END, path("T")) == "ENOENT"


def test_ids_are_not_reused_while_open_and_wrap_round_zero(world):
    world.dom0.session._last_tx_id = 0xFFFFFFFE
    assert [world.dom0.begin() for _ in range(3)] == [0xFFFFFFFF, 1, 2]
    world.dom0.session._last_tx_id = 0
    assert world.dom0.begin() == 3


def test_a_guests_permissions_hold_inside_a_transaction(world):
    tx = world.guest.begin()
    assert world.guest.do("read /top/a", tx=tx) == "EACCES"
    assert world.guest.do("write mine 1", tx=tx) == OK
    assert world.guest.end(tx) == OK
    assert world.dom0.do("perms? /local/domain/1/mine") == b"n1\0"


DEEP = 950  # levels; with its home a guest may own 1,000 nodes


class Counted(dict):
    """The tree's table of nodes; counts what is put into it and taken out."""

    changes = 0

    def __setitem__(self, key, value):
        Counted.changes += 1
        super().__setitem__(key, value)

    def pop(self, *args):
        Counted.changes += 1
        return super().pop(*args)


def deep_commit(world, levels):
    """How many nodes a commit touches that has made a path of so many levels, one by one."""
    tx = world.guest.begin()
    for level in range(1, levels + 1):
        assert world.guest.do("mkdir " + "/".join("d" * level), tx=tx) == OK
    world.store.tree._nodes = Counted(world.store.tree._nodes)
    Counted.changes = 0
    assert world.guest.end(tx) == OK
    return Counted.changes


def test_a_commit_puts_each_changed_node_in_its_place_once_however_deep(world):
    assert deep_commit(world, DEEP) == DEEP + 1  # and the home, whose child is new
    assert world.store.tree.held(1).nodes == DEEP + 1
