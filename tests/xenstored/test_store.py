"""What is left when a client or a domain goes: nothing; and who waits for whom."""

import pytest

from common.xenstore_wire import MessageType
from tests.xenstored.world import OK, World, path


@pytest.fixture
def world():
    return World()


def test_a_client_that_goes_takes_its_watches_and_transactions_along(world):
    second = world.client(1)
    second.do("watch a t")
    second.begin()
    usage = second.session.usage
    assert (usage.connections, usage.watches, usage.transactions) == (2, 1, 1)
    second.connection.close()
    assert (usage.connections, usage.watches, usage.transactions) == (1, 0, 0)
    assert world.guest.do("write a 1") == OK
    assert second.session.outbox.size == 0


def test_a_released_domain_is_cut_off_and_may_not_come_back_until_introduced(world):
    world.store.release(1)
    assert world.guest.connection.finished
    assert world.store.join(1) is None
    world.store.introduce(1)
    assert world.store.join(1) is not None


def test_a_released_domain_leaves_no_node_no_count_and_no_permission(world):
    world.guest.do("write a/b 1")
    world.dom0.do("write /shared/x 1")
    world.dom0.do("perms /shared/x n0 r1 r2 w1")
    world.dom0.do("perms @releaseDomain n0 r1")
    world.store.release(1)
    assert world.store.tree.owned(1) == 0
    assert world.dom0.do("read /local/domain/1") == "ENOENT"
    assert world.dom0.do("perms? /shared/x") == b"n0\0r2\0"
    assert world.dom0.do("read /shared/x") == b"1"
    assert len(world.store.special["@releaseDomain"]) == 1


def test_a_domain_of_the_same_number_starts_from_nothing(world):
    world.guest.do("watch a t")
    world.guest.do("write a 1")
    world.store.release(1)
    world.guest.connection.close()
    world.store.introduce(1)
    world.dom0.do("mkdir /local/domain/1")
    world.dom0.do("perms /local/domain/1 n1")
    reborn = world.client(1)
    assert reborn.do("read a") == "ENOENT"
    assert reborn.do("write a 2") == OK
    assert reborn.events() == []
    assert reborn.session.usage.watches == 0


def test_a_release_is_told_after_the_domains_nodes_are_gone(world):
    world.guest.do("write state 4")
    world.dom0.do("watch /local/domain/1/state s")
    world.dom0.do("watch @releaseDomain r")
    world.dom0.events()
    world.store.release(1)
    assert world.dom0.events() == [("/local/domain/1/state", "s"), ("@releaseDomain", "r")]


def test_a_release_of_a_domain_that_was_not_introduced_tells_nobody(world):
    world.dom0.do("watch @releaseDomain r")
    world.dom0.events()
    assert not world.store.release(9)
    assert world.dom0.events() == []


def test_a_release_makes_a_transaction_that_saw_the_domains_nodes_conflict(world):
    world.guest.do("write state 4")
    tx = world.dom0.begin()
    world.dom0.do("read /local/domain/1/state", tx=tx)
    world.store.release(1)
    assert world.dom0.end(tx) == "EAGAIN"


def flood(world, client, count, start=0):
    """Events for whoever watches, each on a path of its own."""
    for number in range(start, start + count):
        client.post(MessageType.MKDIR, path(f"flood/{number}"))
    client.connection.step(count)


def test_a_guest_whose_events_dom0_has_not_read_waits_and_goes_on_when_it_has():
    world = World(outstanding_events=5)
    world.dom0.do("watch /local t")
    world.dom0.read()
    world.store.take_touched()
    flood(world, world.guest, 20)
    assert world.guest.session.usage.outstanding_events == 5
    assert not world.guest.connection.runnable and not world.guest.connection.wants_input
    world.dom0.read()
    assert world.guest.connection.runnable
    assert world.guest.session in world.store.take_touched()
    world.guest.connection.step(20)
    assert len(world.dom0.events()) == 1 + 10


def test_a_guest_that_waits_so_does_not_hold_another_up():
    world = World(outstanding_events=5)
    world.dom0.do("watch /local t")
    flood(world, world.guest, 20)
    flood(world, world.other, 1)
    assert world.other.session.usage.outstanding_events == 1
    assert world.other.connection.wants_input


def test_a_second_connection_of_the_guest_waits_with_the_first_and_after_it():
    world = World(outstanding_events=5)
    second = world.client(1)
    world.dom0.do("watch /local t")
    world.dom0.read()
    flood(world, world.guest, 20)
    second.post(MessageType.MKDIR, path("more"))
    assert not second.connection.runnable
    world.guest.connection.close()
    assert not second.connection.runnable
    world.dom0.read()
    assert second.connection.runnable


def test_dom0_is_never_held_back_nor_cut_off_by_its_own_events():
    world = World(outstanding_events=5, output_bytes=100)
    watcher = world.client(0)
    watcher.do("watch /x t")
    for number in range(50):
        assert world.dom0.do(f"mkdir /x/{number}") == OK
    assert len(watcher.events()) == 51


def test_events_of_dom0s_clients_that_leave_are_charged_no_longer():
    world = World(outstanding_events=5)
    watcher = world.client(0)
    watcher.do("watch /local t")
    flood(world, world.guest, 20)
    watcher.connection.close()
    assert world.guest.session.usage.outstanding_events == 0
    assert world.guest.connection.runnable


def test_a_guest_that_never_reads_its_events_is_cut_off_and_its_watches_go():
    world = World(output_bytes=1000)
    world.dom0.do("perms /local/domain/1 n1 r2")
    world.other.do("watch /local/domain/1 t")
    for number in range(100):
        world.guest.do(f"mkdir {number}")
    assert world.other.connection.finished
    assert world.other.session.outbox.size < 1000 + 4112
    world.other.connection.close()
    assert world.store.watches.count(world.other.session) == 0


def test_the_same_event_over_and_over_takes_no_room():
    world = World(output_bytes=1000)
    world.other.do("watch x t")
    home = "/local/domain/2"
    for number in range(1000):
        world.dom0.do(f"write {home}/x {number}")
    assert world.other.connection.finished is None
    assert world.other.events() == [("x", "t"), ("x", "t")]
