"""What a machine takes of its host, and how one that does not fit is refused."""

from typing import Any

import pytest

from toolstack.limits import MAPPINGS_RESERVED, Host, Shape, check_host, host, mappings_of_ring
from toolstack.loadspec import ConfigError
from toolstack.settings import Settings

BOUNDLESS = Host(None, None, None, None)


def refused(there: Host = BOUNDLESS, **settings: Any) -> str:
    """The one line, or "" if the machine fits."""
    try:
        check_host(Settings(**settings), there)
    except ConfigError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def test_as_many_mappings_as_the_host_allows_are_accepted_and_one_less_refused() -> None:
    needed = 3 * mappings_of_ring(500, 1) + MAPPINGS_RESERVED
    shape: dict[str, Any] = {"guests": 3, "max_persistent_grants": 500}
    assert refused(BOUNDLESS._replace(mappings=needed), **shape) == ""
    line = refused(BOUNDLESS._replace(mappings=needed - 1), **shape)
    assert line == (
        f"max-persistent-grants: 500 for each of 3 disks may need {needed} mappings in dom0, and"
        f" this host allows {needed - 1} to a process; 499 would do, or a vm.max_map_count of"
        f" {needed}"
    )
    assert (
        refused(BOUNDLESS._replace(mappings=needed - 1), **{**shape, "max_persistent_grants": 499})
        == ""
    )


def test_every_disk_is_a_ring() -> None:
    many = Settings(guests=2, disks=["ram:1m"] * 3, guest=[{"disks": ["null:1m"]}])
    assert Shape.of(many).rings == 4


def test_a_ring_maps_its_page_what_it_keeps_and_what_is_in_flight() -> None:
    assert mappings_of_ring(0, 1) == 1 + 3 + 2 * 11 + 1  # pages and the holes between them
    assert mappings_of_ring(352, 32) == 1 + 3 + 352 + 352  # no more than there are slots
    assert Shape.of(Settings(persistent=False)).kept == 0
    assert Shape.of(Settings(batching="drain")).together == 32
    assert Shape.of(Settings().with_mode("grant-copy")).together == 0


def test_a_usual_host_takes_64_guests_and_64_by_4_that_keep_less() -> None:
    usual = Host(mappings=65_530, descriptors=4096, threads=30_000, shared=16 << 30)
    assert refused(usual, guests=64) == ""
    four = {"guests": 64, "disks": ["ram:1m"] * 4}
    assert "; 106 would do, or a vm.max_map_count of 185344" in refused(usual, **four)
    assert refused(usual, **four, max_persistent_grants=106) == ""


def test_threads_are_counted_to_the_last() -> None:
    # 3 of each of 5 processes and 2 guests, 2 vCPUs with a disk, and who makes large pages.
    assert refused(BOUNDLESS._replace(threads=24), guests=2, dom0_vcpus=24) == ""
    assert "may need 24 threads" in refused(BOUNDLESS._replace(threads=23), guests=2, dom0_vcpus=24)


@pytest.mark.parametrize(
    ("there", "settings", "parts"),
    [
        (
            BOUNDLESS._replace(descriptors=1024),
            {"guests": 64, "disks": ["ram:1m"] * 4},
            ["descriptors in dom0", "allows 1024", "ulimit -Hn"],
        ),
        (BOUNDLESS._replace(threads=50), {"guests": 16}, ["threads", "allows 50", "fewer guests"]),
        (
            BOUNDLESS._replace(shared=64 << 20),
            {"guests": 64, "buffer_mib": 1},
            ["buffer-mib", "of /dev/shm, which has 64 MiB free", "would do"],
        ),
        (
            BOUNDLESS,
            {"guests": 64, "disks": ["ram:1m"] * 16, "max_persistent_grants": 0},
            ["events: zeromq has 1023 sockets", "1024 disks", "pipe would do"],
        ),
        (
            BOUNDLESS,
            {"guests": 64, "disks": ["ram:1m"] * 16, "events": "pipe"},
            ["max-persistent-grants: 352", "maptrack handles", "262144", "; 244 would do"],
        ),
    ],
)
def test_each_limit_is_named_with_what_would_do(
    there: Host, settings: dict[str, Any], parts: list[str]
) -> None:
    line = refused(there, **settings)
    for part in parts:
        assert part in line


def test_what_would_do_does() -> None:
    shape: dict[str, Any] = {"guests": 64, "disks": ["ram:1m"] * 16, "events": "pipe"}
    assert refused(**shape, max_persistent_grants=244) == ""
    assert refused(**shape, max_persistent_grants=245)


def test_a_host_that_tells_nothing_refuses_nothing_of_its_own() -> None:
    assert refused(guests=64, max_persistent_grants=1000) == ""


def test_this_host_tells_its_limits() -> None:
    assert any(limit is not None for limit in host())
