"""Which devices are disks that a guest drives."""

import pytest

from machine.guest_disks import number_of


@pytest.mark.parametrize(
    ("device", "number"),
    [
        (51712, 0),
        (51728, 1),
        (51952, 15),
        (51713, None),
        (51968, None),
        (768, None),
        (1 << 28, None),
    ],
)
def test_a_disk_s_number_is_its_vdev_s(device: int, number: int | None) -> None:
    assert number_of(device) == number
