import pytest

from xenstored.permissions import DOM0_ONLY, granted_now, parse_permissions
from xenstored.tree import NO_CHILDREN, Held, Tree, memory_of, subtree

GUEST = parse_permissions([b"n1"])
SHARED = parse_permissions([b"n0", b"r1", b"r2"])


@pytest.fixture
def tree():
    return Tree()


def put(tree, path, perms=GUEST, value=b""):
    """A new node at `path`, whose parent is there."""
    above, _, name = path.rpartition("/")
    parent = tree.get(above or "/")
    tree.apply(
        {
            above or "/": tree.renamed(parent, came=[name]),
            path: tree.make(value, perms, NO_CHILDREN, 0),
        }
    )


def paths(tree, top="/"):
    return [path for path, _ in subtree(tree.get, top)]


def total(tree, domid):
    """What `held` should say, counted one by one."""
    mine = [(path, node) for path, node in subtree(tree.get, "/") if node.owner == domid]
    return Held(len(mine), sum(memory_of(path, node) for path, node in mine))


def test_a_fresh_tree_is_what_xenstored_begins_with(tree):
    assert paths(tree) == ["/", "/tool", "/tool/xenstored"]
    assert (tree.held(0), tree.held(1)) == (total(tree, 0), Held(0, 0))


def test_children_keep_the_order_of_creation_and_count_their_names(tree):
    for path in ("/z", "/mm", "/aaa"):
        put(tree, path)
    node = tree.get("/")
    assert (list(node.children), node.name_bytes) == (["tool", "z", "mm", "aaa"], 5 + 2 + 3 + 4)
    fewer = tree.renamed(node, came=["b"], went=["z", "mm"])
    assert (list(fewer.children), fewer.name_bytes) == (["tool", "aaa", "b"], 5 + 4 + 2)
    assert list(node.children) == ["tool", "z", "mm", "aaa"]  # whoever has it sees no change


def test_a_generation_is_never_used_twice(tree):
    assert tree.make(b"", GUEST, NO_CHILDREN, 0).generation < tree.renamed(tree.get("/")).generation


def test_what_a_domain_holds_follows_every_change(tree):
    put(tree, "/a", value=b"12345")
    put(tree, "/a/b")
    assert (tree.held(1).nodes, tree.held(1)) == (2, total(tree, 1))
    node = tree.get("/a")
    tree.apply({"/a": tree.make(b"", node.perms, node.children, node.name_bytes)})
    assert (tree.held(1).nodes, tree.held(1)) == (2, total(tree, 1))
    tree.apply({"/a/b": tree.make(b"", DOM0_ONLY, NO_CHILDREN, 0)})
    assert (tree.held(1).nodes, tree.held(1), tree.held(0)) == (1, total(tree, 1), total(tree, 0))
    tree.apply({"/a/b": None, "/a": None, "/": tree.renamed(tree.get("/"), went=["a"])})
    assert (tree.held(1), tree.held(0)) == (Held(0, 0), total(tree, 0))


def test_forgetting_a_domain_takes_what_it_owned_and_all_below(tree):
    for path, perms in (
        ("/a", GUEST),
        ("/a/b", DOM0_ONLY),
        ("/a/b/c", GUEST),
        ("/d", DOM0_ONLY),
        ("/d/e", GUEST),
        ("/d/f", GUEST),
        ("/d/g", DOM0_ONLY),
    ):
        put(tree, path, perms)
    changes = tree.forget(1)
    assert {path for path, node in changes.items() if node is None} == {
        "/a", "/a/b", "/a/b/c", "/d/e", "/d/f",
    }  # fmt: skip
    tree.apply(changes)
    assert paths(tree) == ["/", "/tool", "/tool/xenstored", "/d", "/d/g"]
    assert (list(tree.get("/d").children), tree.get("/d").name_bytes) == (["g"], 2)
    assert (tree.held(1), tree.held(0)) == (Held(0, 0), total(tree, 0))


def test_the_root_of_a_domain_that_is_forgotten_is_domain_0s_again(tree):
    put(tree, "/a", DOM0_ONLY)
    root = tree.get("/")
    tree.apply({"/": tree.make(b"", GUEST, root.children, root.name_bytes)})
    tree.apply(tree.forget(1))
    assert (tree.get("/").owner, paths(tree)[-1]) == (0, "/a")
    assert (tree.held(1), tree.held(0)) == (Held(0, 0), total(tree, 0))


def test_a_forgotten_domain_is_named_nowhere_and_its_number_can_be_named_anew(tree):
    put(tree, "/s", SHARED)
    tree.apply(tree.forget(1))
    assert tree.get("/s").perms == parse_permissions([b"n0", b"r2"])
    again = granted_now(SHARED, tree.lives)
    tree.apply({"/s": tree.make(b"", again, NO_CHILDREN, 0)})
    assert [entry.domid for entry in tree.get("/s").perms] == [0, 1, 2]


def test_what_a_transaction_still_had_of_a_forgotten_domain_is_put_as_domain_0s(tree):
    theirs = tree.make(b"", GUEST, NO_CHILDREN, 0)
    tree.apply(tree.forget(1))
    tree.apply({"/": tree.renamed(tree.get("/"), came=["t"]), "/t": theirs})
    assert (tree.get("/t").owner, tree.held(1)) == (0, Held(0, 0))


def test_forgetting_looks_at_each_node_once_in_whatever_order_they_were_written(tree):
    """Leaf first is the worst order: each subtree holds all those before."""
    deep = ["/a" * level for level in range(1, 301)]
    for path in deep:
        put(tree, path, DOM0_ONLY)
    for path in reversed(deep):
        node = tree.get(path)
        tree.apply({path: tree.make(b"", GUEST, node.children, node.name_bytes)})
    looked = []
    get = tree.get
    tree.get = lambda path: looked.append(path) or get(path)
    tree.forget(1)
    assert len(looked) == len(deep) + 1  # and the root, which loses a child
