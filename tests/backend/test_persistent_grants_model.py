"""The tree of persistent grants against a dict: random operations, compiled and plain."""

import random
from types import ModuleType

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numba.core.dispatcher import Dispatcher

from backend import persistent_grants, red_black
from backend.persistent_grants import (
    GREF_MAX,
    PG_BUSY,
    PG_DUPLICATE,
    PG_FULL,
    check,
    erase,
    find,
    get,
    insert,
    new_tree,
    put,
)
from backend.red_black import NIL
from common.arena import Arena
from tests.backend.test_persistent_grants import EDGES, Arrays, walk


class AgainstADict(RuleBasedStateMachine):
    """Any operations on a tree of 12 do what they do on a dict, and leave a sound tree."""

    grefs = st.integers(0, 9) | st.integers(GREF_MAX - 9, GREF_MAX)

    def __init__(self) -> None:
        super().__init__()
        self.tree, self.nodes = new_tree(Arena(), 12)
        self.model: dict[int, int] = {}
        self.flying: set[int] = set()

    @rule(gref=grefs)
    def insert(self, gref: int) -> None:
        node = insert(self.tree, self.nodes, gref, gref << 12, 5)
        if gref in self.model:
            assert node == PG_DUPLICATE
        elif len(self.model) == 12:
            assert node == PG_FULL
        else:
            assert node not in self.model.values()
            self.model[gref] = node

    @rule(gref=grefs)
    def find(self, gref: int) -> None:
        assert find(self.tree, self.nodes, gref) == self.model.get(gref, NIL)

    @rule(gref=grefs)
    def get(self, gref: int) -> None:
        expected = PG_BUSY if gref in self.flying else self.model.get(gref, NIL)
        assert get(self.tree, self.nodes, gref) == expected
        self.flying |= {gref} & self.model.keys()

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        gref = data.draw(st.sampled_from(sorted(self.flying)))
        put(self.tree, self.nodes, self.model[gref])
        self.flying.remove(gref)

    @precondition(lambda self: self.model.keys() - self.flying)
    @rule(data=st.data())
    def erase(self, data: st.DataObject) -> None:
        gref = data.draw(st.sampled_from(sorted(self.model.keys() - self.flying)))
        erase(self.tree, self.nodes, self.model.pop(gref))

    @rule()
    def walk(self) -> None:
        assert walk(self.tree, self.nodes) == sorted(self.model)

    @invariant()
    def sound(self) -> None:
        assert check(self.tree, self.nodes) is None
        assert self.tree[0]["count"] == len(self.model)
        assert self.tree[0]["in_flight"] == len(self.flying)


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, database=None
)


def operate(
    module: ModuleType, arrays: Arrays, seed: int, operations: int, every: int
) -> list[int]:
    """A seeded run of `operations` against a dict; `check` at `every` so many. Its answers."""
    tree, nodes = arrays
    rng, model, answers = random.Random(seed), dict[int, int](), list[int]()
    for done in range(operations):
        gref = rng.choice(EDGES) if rng.random() < 0.02 else rng.randrange(2 * len(nodes))
        kind = rng.choice(["insert", "insert", "find", "get", "erase"])
        if kind == "insert":
            answer = module.insert(tree, nodes, gref, gref, done)
            if answer >= 0:
                model[gref] = answer
        else:
            answer = getattr(module, "get" if kind == "get" else "find")(tree, nodes, gref)
            assert answer == model.get(gref, NIL)
        if kind == "get" and answer >= 0:
            module.put(tree, nodes, answer)
        if kind == "erase" and answer >= 0:
            module.erase(tree, nodes, model.pop(gref))
        if done % every == 0:
            assert check(tree, nodes) is None
            assert walk(tree, nodes) == sorted(model)
        answers.append(int(answer))
    assert PG_FULL in answers and PG_DUPLICATE in answers
    return answers


def test_20000_operations_on_a_full_ring_of_grants_agree_with_a_dict() -> None:
    operate(persistent_grants, new_tree(Arena(), 352), seed=3, operations=20_000, every=500)


def test_the_pure_python_twin_answers_the_same_and_leaves_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled, plain = new_tree(Arena(), 24), new_tree(Arena(), 24)
    answers = operate(persistent_grants, compiled, seed=4, operations=2_000, every=200)
    for module in (persistent_grants, red_black):
        for name, function in list(vars(module).items()):
            if isinstance(function, Dispatcher):
                monkeypatch.setattr(module, name, function.py_func)
    assert operate(persistent_grants, plain, seed=4, operations=2_000, every=200) == answers
    assert [array.tobytes() for array in plain] == [array.tobytes() for array in compiled]
