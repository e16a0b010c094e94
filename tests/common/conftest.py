"""Where the tests of this package put their sockets."""

import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture
def run_dir() -> Iterator[str]:
    """A directory of this test's own; short, as socket paths are, and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="gl-", dir="/tmp") as path:
        yield path
