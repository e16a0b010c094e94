"""Who is told what, and when."""

import pytest

from common.xenstore_wire import MessageType
from tests.xenstored.world import OK, World, path
from xenstored.watches import Above


@pytest.fixture
def world():
    world = World()
    world.dom0.do("write /a/b/c 1")
    return world


def told(client, watched, token="t"):
    """Watch, take the first event, and begin to listen."""
    assert client.do(f"watch {watched} {token}") == OK
    assert client.events() == [(watched, token)]


def test_a_watch_fires_once_when_it_is_set_even_on_nothing(world):
    assert world.dom0.do("watch /none t") == OK
    assert world.dom0.events() == [("/none", "t")]
    assert world.dom0.events() == []


def test_the_reply_to_a_watch_comes_before_its_first_event(world):
    world.dom0.post(MessageType.WATCH, path("/a", "t"))
    world.dom0.serve(1)
    first = world.dom0.connection.outgoing()
    assert int.from_bytes(first[:4], "little") == MessageType.WATCH
    assert b"OK\0" in first and first.endswith(b"/a\0t\0")


# what is watched, what is done, the paths told
MATCHES = [
    ("/a/b", "write /a/b 2", ["/a/b"]),
    ("/a", "write /a/b 2", ["/a/b"]),
    ("/", "write /a/b 2", ["/a/b"]),
    ("/a/b/c", "write /a/b 2", []),
    ("/a/b", "write /a/bb 2", []),
    ("/a/b", "write /a/b/c 1", ["/a/b/c"]),  # the same value is a write too
    ("/a", "mkdir /a/new/er", ["/a/new/er"]),
    ("/a", "mkdir /a/b", []),  # it is there: nothing happened
    ("/a", "perms /a/b r0", ["/a/b"]),
    ("/a", "read /a/b", []),
    ("/a", "rm /a/b/c", ["/a/b/c"]),
    ("/a", "rm /a/none", []),
    ("/a", "rm /a/b", ["/a/b"]),  # one event for a whole subtree
    ("/a/b/c", "rm /a", ["/a/b/c"]),  # but who watches within it hears of its own node
    ("/a/b/none", "rm /a", []),
    ("/a", "write /a/bad/ 2", []),
    ("@introduceDomain", "write /a/b 2", []),
]


@pytest.mark.parametrize(("watched", "operation", "paths"), MATCHES)
@pytest.mark.parametrize("in_transaction", [False, True])
def test_matches(world, watched, operation, paths, in_transaction):
    told(world.dom0, watched)
    actor = world.client(0)
    tx = actor.begin() if in_transaction else 0
    actor.do(operation, tx=tx)
    if in_transaction:
        assert world.dom0.events() == []
        assert actor.end(tx) == OK
    assert world.dom0.events() == [(path, "t") for path in paths]


def test_a_relative_watch_is_told_relative_paths(world):
    told(world.guest, "device")
    world.guest.do("write /local/domain/1/device/vbd/51712/state 1")
    assert world.guest.events() == [("device/vbd/51712/state", "t")]


def test_each_watch_has_its_own_event_with_its_own_token(world):
    told(world.dom0, "/a", "1")
    told(world.dom0, "/a", "2")
    told(world.dom0, "/a/b", "3")
    world.client(0).do("write /a/b 2")
    assert sorted(world.dom0.events()) == [("/a/b", "1"), ("/a/b", "2"), ("/a/b", "3")]


def test_a_client_hears_of_its_own_changes(world):
    told(world.dom0, "/a")
    world.dom0.do("write /a/b 2")
    assert world.dom0.events() == [("/a/b", "t")]


def test_a_watch_taken_back_is_silent_and_others_are_not(world):
    told(world.dom0, "/a", "1")
    told(world.dom0, "/a", "2")
    assert world.dom0.do("unwatch /a 1") == OK
    assert world.dom0.do("unwatch /a 1") == "ENOENT"
    world.dom0.do("write /a/b 2")
    assert world.dom0.events() == [("/a/b", "2")]


def test_reset_watches_drops_watches_and_transactions(world):
    told(world.guest, "x")
    tx = world.guest.begin()
    assert world.guest.ask(MessageType.RESET_WATCHES) == OK
    world.guest.do("write x 1")
    assert world.guest.events() == []
    assert world.guest.do("read x", tx=tx) == "ENOENT"
    assert world.guest.session.usage.watches == world.guest.session.usage.transactions == 0


def test_another_connection_cannot_take_a_watch_back(world):
    told(world.dom0, "/a")
    assert world.client(0).do("unwatch /a t") == "ENOENT"


def test_a_guest_is_told_nothing_of_what_it_may_not_read(world):
    told(world.guest, "/a")
    world.dom0.do("write /a/b 2")
    world.dom0.do("rm /a/b")
    world.dom0.do("mkdir /a/new")
    assert world.guest.events() == []


def test_a_guest_is_told_of_what_it_may_read_and_of_its_removal(world):
    world.dom0.do("perms /a/b n0 r1")
    told(world.guest, "/a/b")
    world.dom0.do("write /a/b 2")
    assert world.guest.events() == [("/a/b", "t")]
    world.dom0.do("rm /a")
    assert world.guest.events() == [("/a/b", "t")]


def test_a_guest_that_may_read_the_parent_is_told_that_a_child_came(world):
    world.dom0.do("perms /a n0 r1")
    told(world.guest, "/a")
    world.dom0.do("mkdir /a/new")
    assert world.guest.events() == [("/a/new", "t")]
    world.dom0.do("perms /a/new n0")
    world.guest.events()
    assert world.guest.do("read /a/new") == "EACCES"
    world.dom0.do("rm /a/new")
    assert world.guest.events() == [("/a/new", "t")]


@pytest.mark.parametrize("change", ["perms /a/b n0", "perms /a/b n0 r1"])
def test_a_guest_is_told_when_it_gains_or_loses_the_right_to_read(world, change):
    world.dom0.do("perms /a/b n0 r1" if change == "perms /a/b n0" else "perms /a/b n0")
    told(world.guest, "/a/b")
    world.dom0.do(change)
    assert world.guest.events() == [("/a/b", "t")]


def test_only_dom0_hears_of_domains_coming_and_going(world):
    for client in (world.dom0, world.guest):
        told(client, "@introduceDomain", "i")
        told(client, "@releaseDomain", "r")
    world.introduce(9)
    world.release(9)
    assert world.dom0.events() == [("@introduceDomain", "i"), ("@releaseDomain", "r")]
    assert world.guest.events() == []


def test_dom0_can_let_a_guest_hear_of_domains(world):
    assert world.dom0.do("perms @introduceDomain n0 r1") == OK
    told(world.guest, "@introduceDomain")
    told(world.other, "@introduceDomain")
    world.introduce(9)
    assert world.guest.events() == [("@introduceDomain", "t")]
    assert world.other.events() == []


def test_a_watch_on_the_root_is_not_a_watch_on_domains(world):
    told(world.dom0, "/")
    world.introduce(9)
    assert world.dom0.events() == []


class Asked(set):
    """Watched paths; counts how often one is asked for."""

    count = 0

    def __contains__(self, path):
        self.count += 1
        return super().__contains__(path)


def test_the_watches_above_a_deep_path_are_looked_for_once_for_all_events_of_a_request():
    deep = ["/a" * level for level in range(1, 301)]
    watched, above = Asked({"/", "/a/a", deep[-1]}), Above()
    assert list(above.places(deep[2], watched)) == ["/a/a", "/"]
    found = [list(above.places(path, watched)) for path in deep]
    assert found[:3] == [["/"], ["/a/a", "/"], ["/a/a", "/"]]
    assert found[-1] == [deep[-1], "/a/a", "/"]
    assert watched.count == len(deep) + 1
