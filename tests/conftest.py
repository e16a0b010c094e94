"""Which tests run beside which: a machine of processes wants the CPUs for itself."""

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Tests that start machines run one after another, in one of the workers."""
    if item.get_closest_marker("system") and not item.get_closest_marker("xdist_group"):
        item.add_marker(pytest.mark.xdist_group("machines"))
