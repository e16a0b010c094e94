import pytest

from xenstored.permissions import DOM0_ONLY, parse_permissions
from xenstored.tree import Tree, subtree

GUEST = parse_permissions([b"n1"])


@pytest.fixture
def tree():
    return Tree.new()


def generation(tree, path):
    return tree.get(path).generation


def test_a_fresh_tree_is_what_xenstored_begins_with(tree):
    assert [path for path, _ in subtree(tree.root, "/")] == ["/", "/tool", "/tool/xenstored"]


def test_put_makes_missing_parents_without_a_value(tree):
    tree.put("/a/b/c", b"value", GUEST)
    found = [(path, node.value, node.perms) for path, node in subtree(tree.root, "/a")]
    assert found == [("/a", b"", GUEST), ("/a/b", b"", GUEST), ("/a/b/c", b"value", GUEST)]


def test_children_keep_the_order_of_creation_through_later_writes(tree):
    for name in ("z", "m", "a"):
        tree.put(f"/d/{name}", b"", GUEST)
    tree.put("/d/z", b"again", GUEST)
    assert list(tree.get("/d").children) == ["z", "m", "a"]


def test_a_snapshot_never_sees_later_changes_and_the_other_way_round(tree):
    tree.put("/a", b"old", GUEST)
    snapshot = tree.snapshot()
    tree.put("/a", b"new", GUEST)
    snapshot.put("/b", b"", GUEST)
    assert snapshot.get("/a").value == b"old"
    assert tree.get("/b") is None
    assert (tree.owned(1), snapshot.owned(1)) == (1, 2)


def test_a_snapshot_shares_all_nodes(tree):
    tree.put("/a/b", b"", GUEST)
    assert tree.snapshot().root is tree.root


def test_a_nodes_generation_changes_with_value_perms_and_names_of_children_only(tree):
    tree.put("/a/b", b"", GUEST)
    seen = [generation(tree, "/a")]
    for path, value, perms, changes in (
        ("/a", b"value", GUEST, True),
        ("/a", b"value", DOM0_ONLY, True),
        ("/a/c", b"", GUEST, True),
        ("/a/c", b"value", GUEST, False),
        ("/a/c/d", b"", GUEST, False),
        ("/other", b"", GUEST, False),
    ):
        tree.put(path, value, perms)
        assert (generation(tree, "/a") != seen[-1]) == changes, path
        seen.append(generation(tree, "/a"))
    tree.remove("/a/c")
    assert generation(tree, "/a") not in seen


def test_a_generation_is_never_used_twice_even_across_snapshots(tree):
    snapshot = tree.snapshot()
    tree.put("/a", b"", GUEST)
    snapshot.put("/a", b"", GUEST)
    assert generation(tree, "/a") != generation(snapshot, "/a")


def test_remove_takes_the_whole_subtree_and_its_count_of_owned_nodes(tree):
    tree.put("/a/b/c", b"", GUEST)
    tree.put("/a/d", b"", DOM0_ONLY)
    assert (tree.owned(1), tree.owned(0)) == (3, 4)
    tree.remove("/a")
    assert tree.get("/a") is None and tree.get("/a/b/c") is None
    assert (tree.owned(1), tree.owned(0)) == (0, 3)


def test_a_change_of_owner_moves_the_count(tree):
    tree.put("/a", b"", GUEST)
    tree.put("/a", b"", DOM0_ONLY)
    assert (tree.owned(1), tree.owned(0)) == (0, 4)


def test_the_deepest_path_that_fits_is_made_walked_and_removed(tree):
    deepest = "/a" * 1536
    tree.put(deepest, b"", GUEST)
    assert tree.owned(1) == 1536
    assert len(list(subtree(tree.root, "/a"))) == 1536
    tree.remove("/a")
    assert tree.owned(1) == 0
