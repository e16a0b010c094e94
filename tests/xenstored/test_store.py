"""What is left when a client or a domain goes: nothing; and who waits for whom."""

import pytest

from common.xenstore_wire import MessageType
from tests.xenstored.world import OK, World, always, path
from xenstored.connection import OUTPUT_PAUSE
from xenstored.store import go_on


@pytest.fixture
def world():
    return World()


def test_a_client_that_goes_takes_its_watches_and_transactions_along(world):
    second = world.client(1)
    second.do("watch a t")
    second.do("write b 1", tx=second.begin())
    usage = second.session.usage
    assert (usage.watches, usage.transactions, usage.nbytes > 0) == (1, 1, True)
    second.connection.close()
    assert (usage.watches, usage.transactions, usage.nbytes) == (0, 0, 0)
    assert world.guest.do("write a 1") == OK
    assert second.session.outbox.size == 0


def test_a_released_domain_is_cut_off(world):
    assert world.release(1)
    assert world.guest.connection.finished
    world.guest.post(MessageType.MKDIR, path("late"))
    assert not world.guest.connection.runnable


def test_a_released_domain_leaves_no_node_no_count_and_no_permission(world):
    world.guest.do("write a/b 1")
    world.dom0.do("write /shared/x 1")
    world.dom0.do("perms /shared/x n0 r1 r2 w1")
    world.release(1)
    assert world.store.tree.held(1).nodes == 0
    assert world.dom0.do("read /local/domain/1") == "ENOENT"
    assert world.dom0.do("perms? /shared/x") == b"n0\0r2\0"
    assert world.dom0.do("read /shared/x") == b"1"


def reborn(world):
    """Domain 1 goes, and another of its number comes, with a home."""
    world.release(1)
    world.guest.connection.close()
    world.introduce(1)
    world.dom0.do("mkdir /local/domain/1")
    world.dom0.do("perms /local/domain/1 n1")
    return world.client(1)


def test_a_domain_of_the_same_number_starts_from_nothing(world):
    world.dom0.do("write /shared 1")
    world.dom0.do("perms /shared n0 r1")
    world.dom0.do("perms @introduceDomain n0 r1")
    world.guest.do("watch a t")
    world.guest.do("write a 1")
    guest = reborn(world)
    assert guest.do("read a") == "ENOENT"
    assert guest.do("read /shared") == "EACCES"
    assert guest.do("write a 2") == OK
    assert guest.events() == []
    assert (guest.session.usage.watches, guest.session.usage.nbytes) == (0, 0)
    guest.do("watch @introduceDomain t")
    guest.events()
    world.introduce(9)
    assert guest.events() == []


def test_what_is_given_to_the_new_domain_of_the_number_is_its_own(world):
    guest = reborn(world)
    world.dom0.do("write /shared 1")
    world.dom0.do("perms /shared n0 r1")
    assert guest.do("read /shared") == b"1"
    assert world.dom0.do("perms? /shared") == b"n0\0r1\0"


def test_a_node_given_to_a_domain_in_a_transaction_that_outlives_it_is_not_the_next_ones(world):
    world.dom0.do("mkdir /x")
    tx = world.dom0.begin()
    world.dom0.do("perms /x n1", tx=tx)
    guest = reborn(world)
    assert world.dom0.end(tx) == OK
    assert world.dom0.do("perms? /x") == b"n0\0"
    assert guest.do("read /x") == "EACCES"


def test_what_is_still_to_be_told_is_not_told_to_the_next_domain_of_the_number(world):
    world.dom0.do("write /x 1")
    world.dom0.do("perms /x n0 r1")
    told = world.store.access(world.dom0.session)
    told.write("/x", b"2")
    telling = world.store.publish(told)
    guest = reborn(world)
    guest.do("watch /x t")
    guest.events()
    assert go_on(telling, always)
    assert guest.events() == []


def test_a_release_is_told_after_the_domains_nodes_are_gone(world):
    world.guest.do("write state 4")
    world.dom0.do("watch /local/domain/1/state s")
    world.dom0.do("watch @releaseDomain r")
    world.dom0.events()
    world.release(1)
    assert world.dom0.events() == [("/local/domain/1/state", "s"), ("@releaseDomain", "r")]


def test_a_release_of_a_domain_that_was_not_introduced_tells_nobody(world):
    world.dom0.do("watch @releaseDomain r")
    world.dom0.events()
    assert not world.release(9)
    assert world.dom0.events() == []


def test_a_release_makes_a_transaction_that_saw_the_domains_nodes_conflict(world):
    world.guest.do("write state 4")
    tx = world.dom0.begin()
    world.dom0.do("read /local/domain/1/state", tx=tx)
    world.release(1)
    assert world.dom0.end(tx) == "EAGAIN"


def flood(client, count):
    """Events for whoever watches, each on a path of its own."""
    for number in range(count):
        assert client.do(f"mkdir flood/{number}") == OK


def test_a_guests_events_that_dom0_has_not_read_are_folded_over_the_limit_and_it_goes_on():
    world = World(outstanding_events=5)
    world.dom0.do("watch /local/domain t")
    world.dom0.do("watch /local/domain/1 u")
    flood(world.guest, 20)
    told = world.dom0.events()[2:]
    assert len(told) == 5 + 2
    assert sorted(told[-2:]) == [("/local/domain", "t"), ("/local/domain/1", "u")]
    flood_again = [world.guest.do("write flood/0 1") for _ in range(3)]
    assert flood_again == [OK, OK, OK]
    assert world.dom0.events() == [("/local/domain/1/flood/0", token) for token in "ut"]


def test_one_guests_flood_does_not_fold_anothers_events():
    world = World(outstanding_events=5)
    world.dom0.do("watch /local/domain/2 t")
    world.dom0.do("watch /local/domain/1 t")
    flood(world.guest, 20)
    flood(world.other, 2)
    told = [path for path, _ in world.dom0.events() if path.startswith("/local/domain/2")]
    assert told == [f"/local/domain/2{name}" for name in ("", "/flood/0", "/flood/1")]


def test_a_client_that_never_reads_holds_a_limited_number_of_bytes_and_one_event_a_watch():
    world = World(output_bytes=1000)
    watcher = world.client(0)
    for token in "tuv":
        watcher.do(f"watch /local/domain/1 {token}")
    for number in range(100):
        world.dom0.do(f"mkdir /local/domain/1/{number}")
    assert watcher.session.outbox.size < 1000 + 3 * 64
    told = watcher.events()
    folded = [event for event in told[3:] if event[0] == "/local/domain/1"]
    assert sorted(folded) == [("/local/domain/1", token) for token in "tuv"]
    assert watcher.connection.finished is None
    assert world.dom0.do("mkdir /local/domain/1/after") == OK
    assert watcher.events() == [("/local/domain/1/after", token) for token in "tuv"]


def test_a_folded_watch_is_told_nothing_more_until_its_event_is_on_its_way():
    world = World(output_bytes=1000)
    watcher = world.client(0)
    watcher.do("watch /local/domain/1 t")
    flood(world.guest, 100)
    queue = watcher.session.outbox
    queue.sent(queue.size - 34)  # all but the folded one
    world.guest.do("mkdir quiet")
    assert queue.size == 34
    queue.sent(1)
    world.guest.do("mkdir told")
    assert queue.pending(1000).endswith(b"/local/domain/1/told\0t\0")


def test_a_guest_that_never_reads_its_events_is_not_cut_off_and_holds_nobody_up():
    world = World(output_bytes=1000)
    world.guest.do("perms /local/domain/1 n1 r2")
    world.other.do("watch /local/domain/1 t")
    flood(world.guest, 100)
    assert world.other.session.outbox.size < 1000 + 64
    assert world.other.connection.finished is None
    assert world.other.events()[-1] == ("/local/domain/1", "t")


def test_the_same_event_over_and_over_takes_no_room():
    world = World(output_bytes=1000)
    world.other.do("watch x t")
    home = "/local/domain/2"
    for number in range(1000):
        world.dom0.do(f"write {home}/x {number}")
    assert world.other.events() == [("x", "t"), ("x", "t")]


def test_a_request_that_is_told_to_many_is_interrupted_and_answered_when_all_know():
    world = World()
    world.dom0.events()
    watchers = [world.client(0) for _ in range(100)]
    for watcher in watchers:
        watcher.do("watch /a t")
        watcher.events()
    world.dom0.post(MessageType.MKDIR, path("/a"))
    world.dom0.post(MessageType.MKDIR, path("/b"))
    told = []
    while "/b" not in world.nodes():
        told.append(sum(watcher.events() == [("/a", "t")] for watcher in watchers))
        world.dom0.read()
        assert len(world.dom0._replies) == (sum(told) == 100)
        world.dom0.connection.step(lambda: False)
    assert told == [0, 32, 32, 32, 4]


def test_what_a_client_did_is_told_after_it_has_gone():
    world = World()
    world.dom0.do("watch /local/domain/1/x t")
    world.dom0.events()
    watchers = [world.client(0) for _ in range(40)]
    for watcher in watchers:
        watcher.do("watch /local/domain/1/x t")
    world.guest.post(MessageType.MKDIR, path("x"))
    world.guest.connection.step(lambda: False)
    world.guest.connection.close()
    (telling,) = world.store.announcements
    assert go_on(telling, always)
    assert watchers[-1].events() == [("/local/domain/1/x", "t")] * 2


def test_what_a_client_did_is_told_whether_it_reads_or_not():
    world = World()
    watchers = [world.client(0) for _ in range(40)]
    for watcher in watchers:
        watcher.do("watch /local/domain/1/x t")
    world.guest.post(MessageType.MKDIR, path("x"))
    world.guest.connection.step(lambda: False)
    world.guest.session.outbox.reply(b"x" * OUTPUT_PAUSE)
    assert watchers[-1].events() == [("/local/domain/1/x", "t")]
    world.guest.serve(1)
    assert watchers[-1].events() == [("/local/domain/1/x", "t")]
    assert not world.guest.connection.runnable
