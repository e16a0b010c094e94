"""Which tests run beside which: a machine of processes wants the CPUs for itself."""

import pytest


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start machines run one after another, in one of the workers."""
    for item in items:
        if item.get_closest_marker("system") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("machines"))
