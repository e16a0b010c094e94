"""The store as a table: (who, what, the reply). Each row stands alone, on the same small store."""

import pytest

from common.xenstore_wire import MessageType, unpack_strings
from tests.xenstored.world import OK, VERBS, World, path
from xenstored.requests import REQUESTS, TOKEN_MAX


@pytest.fixture
def world():
    """/a is dom0's own, /pub everybody may read, /drop only write; 1's `shared` 2 may read."""
    world = World()
    for line in (
        "write /a/b 1",
        "write /pub/x 2",
        "perms /pub r0",
        "perms /pub/x r0",
        "mkdir /drop",
        "perms /drop w0",
    ):
        assert world.dom0.do(line) == OK
    assert world.guest.do("write shared yes") == OK
    assert world.guest.do("perms shared n1 r2") == OK
    return world


HOME = "/local/domain/1"
NODES = [
    # reading
    (0, "read /a/b", b"1"),
    (0, "read /a", b""),
    (0, "read /none", "ENOENT"),
    (0, "ls /", b"tool\0local\0a\0pub\0drop\0"),
    (0, "ls /a/b", b""),
    (0, "ls /none", "ENOENT"),
    (1, "read shared", b"yes"),
    (1, f"read {HOME}/shared", b"yes"),
    (2, f"read {HOME}/shared", b"yes"),
    (2, "read shared", "ENOENT"),
    (2, f"ls {HOME}", "EACCES"),
    (1, "read /a/b", "EACCES"),
    (1, "read /a/none", "EACCES"),  # not a word about whether it exists
    (1, "read /pub/x", b"2"),
    (1, "read /pub/none", "ENOENT"),
    (1, "read /drop", "EACCES"),
    (0, "read /bad//path", "EINVAL"),
    (0, "read @introduceDomain", "EINVAL"),
    # writing
    (0, "write /a/b/c/d 3", OK),
    (1, "write /a/b 3", "EACCES"),
    (1, "write /pub/x 3", "EACCES"),
    (1, "write /pub/new 3", "EACCES"),
    (1, "write /drop/new/x 3", OK),
    (1, "write /drop 3", OK),
    (2, f"write {HOME}/shared 3", "EACCES"),
    (1, "write deep/er/still 3", OK),
    (1, "mkdir /drop/new", OK),
    (1, "mkdir /pub", "EACCES"),
    (0, "mkdir /a/b", OK),
    # removing
    (0, "rm /a", OK),
    (0, "rm /a/none", OK),
    (0, "rm /none/none", "ENOENT"),
    (0, "rm /", "EINVAL"),
    (1, "rm shared", OK),
    (1, "rm none/none", "ENOENT"),
    (1, "rm /a", "EACCES"),
    (1, "rm /pub/x", "EACCES"),
    (1, "rm /pub/none", "EACCES"),
    (1, "rm /", "EACCES"),
    (1, f"rm {HOME}", OK),
    (2, f"rm {HOME}/shared", "EACCES"),
    # permissions
    (0, "perms? /a", b"n0\0"),
    (1, "perms? shared", b"n1\0r2\0"),
    (2, f"perms? {HOME}/shared", b"n1\0r2\0"),
    (1, "perms? /a", "EACCES"),
    (1, "perms? none", "ENOENT"),
    (1, "perms shared b1 n2", OK),
    (1, "perms shared n2", "EPERM"),  # nobody gives a node away
    (2, f"perms {HOME}/shared n2", "EACCES"),
    (1, "perms /drop n1", "EACCES"),  # to write is not to own
    (0, "perms /a n1 r2", OK),
    (0, "perms /a x1", "EINVAL"),
    (0, "perms /a", "EINVAL"),
    (0, "perms /none n0", "ENOENT"),
    (1, "perms none n1", "ENOENT"),
    (0, "perms @releaseDomain n0 r1", OK),
    (1, "perms @releaseDomain n0 r1", "EACCES"),
    (0, "perms @other n0", "EINVAL"),
    # watches
    (1, "watch shared t", OK),
    (1, "watch /a t", OK),  # anything may be watched; not everything is told
    (1, "watch @releaseDomain t", OK),
    (1, "watch /bad/ t", "EINVAL"),
    (1, "watch shared", "EINVAL"),
    (1, "unwatch shared t", "ENOENT"),
]


@pytest.mark.parametrize(("domid", "operation", "reply"), NODES)
@pytest.mark.parametrize("in_transaction", [False, True])
def test_reply(world, domid, operation, reply, in_transaction):
    client = (world.dom0, world.guest, world.other)[domid]
    tx = client.begin() if in_transaction else 0
    assert client.do(operation, tx=tx) == reply


CALLS = [
    (0, MessageType.GET_DOMAIN_PATH, path("7"), b"/local/domain/7\0"),
    (1, MessageType.GET_DOMAIN_PATH, path("007"), b"/local/domain/7\0"),
    (1, MessageType.GET_DOMAIN_PATH, path("x"), "EINVAL"),
    (1, MessageType.GET_DOMAIN_PATH, path("65536"), "EINVAL"),
    (0, MessageType.IS_DOMAIN_INTRODUCED, path("1"), b"T\0"),
    (0, MessageType.IS_DOMAIN_INTRODUCED, path("0"), b"T\0"),
    (0, MessageType.IS_DOMAIN_INTRODUCED, path("9"), b"F\0"),
    (1, MessageType.IS_DOMAIN_INTRODUCED, path("1"), "EACCES"),
    (0, MessageType.INTRODUCE, path("9", "0", "0"), OK),
    (0, MessageType.INTRODUCE, path("1", "0", "0"), OK),
    (0, MessageType.INTRODUCE, path("0", "0", "0"), "EINVAL"),
    (0, MessageType.INTRODUCE, path("32752", "0", "0"), "EINVAL"),
    (0, MessageType.INTRODUCE, path("9"), "EINVAL"),
    (1, MessageType.INTRODUCE, path("9", "0", "0"), "EACCES"),
    (0, MessageType.RELEASE, path("1"), OK),
    (0, MessageType.RELEASE, path("9"), "ENOENT"),
    (0, MessageType.RELEASE, path("0"), "EINVAL"),
    (1, MessageType.RELEASE, path("2"), "EACCES"),
    (1, MessageType.RESET_WATCHES, path(""), OK),
    (1, MessageType.RESET_WATCHES, b"", OK),
    (0, MessageType.CONTROL, path("check"), "ENOSYS"),
    (0, MessageType.RESUME, path("1"), "ENOSYS"),
    (0, MessageType.SET_TARGET, path("1", "2"), "ENOSYS"),
    (0, MessageType.WATCH_EVENT, path("/a", "t"), "ENOSYS"),
    (0, MessageType.ERROR, path("EINVAL"), "ENOSYS"),
    (0, 20, b"", "ENOSYS"),
    (0, 0xFFFFFFFF, b"", "ENOSYS"),
]


@pytest.mark.parametrize(("domid", "kind", "payload", "reply"), CALLS)
def test_call(world, domid, kind, payload, reply):
    assert (world.dom0, world.guest)[domid].ask(kind, payload) == reply


# The payload of these is not looked at.
EMPTY = (MessageType.TRANSACTION_START, MessageType.RESET_WATCHES)


@pytest.mark.parametrize("kind", [kind for kind in REQUESTS if kind not in EMPTY])
@pytest.mark.parametrize("payload", [b"", b"no nul", b"\xff\0\xff"])
def test_a_malformed_payload_is_an_error_and_changes_nothing(world, kind, payload):
    before = world.nodes()
    assert world.dom0.ask(kind, payload) == "EINVAL"
    assert world.nodes() == before


@pytest.mark.parametrize("verb", ["read", "ls", "mkdir", "rm", "perms?"])
def test_a_payload_of_two_strings_where_one_belongs_is_einval(world, verb):
    assert world.dom0.ask(VERBS[verb], path("/a", "/a")) == "EINVAL"


@pytest.mark.parametrize("kind", REQUESTS)
def test_an_unknown_transaction_is_enoent_but_for_what_never_is_in_one(world, kind):
    reply = world.dom0.ask(kind, path("/a", "t"), tx=77)
    if kind == MessageType.WATCH:
        assert reply == OK
    else:  # UNWATCH: there is no such watch
        assert reply == "ENOENT"


@pytest.mark.parametrize("value", [b"", b"\0", b"a\0b\0", bytes(range(256)), b"x" * 4090])
def test_values_are_any_bytes_and_come_back_as_they_were(world, value):
    assert world.dom0.ask(MessageType.WRITE, b"/v\0" + value) == OK
    assert world.dom0.do("read /v") == value


def test_a_new_node_inherits_from_its_parent_and_a_guest_owns_it(world):
    world.guest.do("perms shared b1 r2")
    world.guest.do("mkdir shared/mine")
    world.dom0.do(f"mkdir {HOME}/shared/dom0s")
    world.guest.do("mkdir /drop/x/y")
    assert world.dom0.do(f"perms? {HOME}/shared/mine") == b"b1\0r2\0"
    assert world.dom0.do(f"perms? {HOME}/shared/dom0s") == b"b1\0r2\0"
    assert world.dom0.do("perms? /drop/x") == b"w1\0"
    assert world.dom0.do("perms? /drop/x/y") == b"w1\0"


def test_mkdir_leaves_a_value_alone_and_write_leaves_children_and_permissions(world):
    world.guest.do("mkdir shared")
    assert world.guest.do("read shared") == b"yes"
    world.guest.do("mkdir shared/child")
    world.guest.do("write shared new")
    assert world.guest.do("ls shared") == b"child\0"
    assert world.guest.do("perms? shared") == b"n1\0r2\0"


def many(world, count):
    """/many with `count` children, in one transaction."""
    tx = world.dom0.begin()
    for number in range(count):
        world.dom0.do(f"mkdir /many/child-{number:05}", tx=tx)
    assert world.dom0.end(tx) == OK
    return [f"child-{number:05}".encode() for number in range(count)]


def parts(world, offset=0):
    """(generation, names, is it the last) of one DIRECTORY_PART."""
    reply = world.dom0.ask(MessageType.DIRECTORY_PART, path("/many", str(offset)))
    generation, _, names = reply.partition(b"\0")
    return generation, names


@pytest.mark.parametrize(("count", "fits"), [(341, True), (342, False)])
def test_a_listing_longer_than_a_payload_is_e2big(world, count, fits):
    children = many(world, count)  # 12 bytes each
    reply = world.dom0.do("ls /many")
    assert (unpack_strings(reply) == children) if fits else (reply == "E2BIG")


def test_a_listing_in_parts_is_whole_names_in_one_generation_with_an_empty_one_at_the_end(world):
    children = many(world, 800)
    generations, listing = set(), b""
    while not listing.endswith(b"\0\0"):
        generation, names = parts(world, len(listing))
        assert len(generation) + 1 + len(names) <= 4096
        generations.add(generation)
        listing += names
    assert listing[:-1].split(b"\0")[:-1] == children
    assert len(generations) == 1


def test_a_part_behind_the_end_is_an_empty_name(world):
    many(world, 2)
    assert parts(world, 24)[1] == b"\0"
    assert parts(world, 9999999999)[1] == b"\0"


def test_the_generation_in_a_part_tells_of_a_new_child(world):
    many(world, 2)
    before = parts(world)[0]
    world.dom0.do("write /many/child-00000 1")
    assert parts(world)[0] == before
    world.dom0.do("mkdir /many/new")
    assert parts(world)[0] != before


@pytest.mark.parametrize("offset", ["", "-1", "x", "99999999999"])
def test_an_offset_that_is_no_number_is_einval(world, offset):
    assert world.dom0.ask(MessageType.DIRECTORY_PART, path("/a", offset)) == "EINVAL"


def test_the_longest_token_on_the_longest_path_still_makes_an_event(world):
    longest = "/" + "x" * 3071
    assert world.dom0.do(f"watch {longest} {'t' * TOKEN_MAX}") == OK
    assert world.dom0.events() == [(longest, "t" * TOKEN_MAX)]
    assert world.dom0.do(f"watch /a {'t' * (TOKEN_MAX + 1)}") == "EINVAL"
