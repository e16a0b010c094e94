"""How fio writes numbers."""

import pytest

from toolstack.fio_units import block_sizes, each_way, seconds, size_in_bytes, size_or_share, truth


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("4096", 4096), ("4096b", 4096), ("4k", 4096), ("4KB", 4096), ("4ki", 4000),
        ("4KiB", 4000), ("1m", 1 << 20), ("1mi", 10**6), ("2G", 2 << 30), ("1t", 1 << 40),
        ("0x1000", 4096), ("0x10k", 16384), (" 8 k ", 8192), ("010", 10),
    ],
)  # fmt: skip
def test_sizes(text: str, nbytes: int) -> None:
    assert size_in_bytes(text) == size_or_share(text) == nbytes


@pytest.mark.parametrize("text", ["", "k", "4x", "-4k", "4.5k", "20%", "1e3", "4 4"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        size_in_bytes(text)


@pytest.mark.parametrize("text", ["101%", "-1%", "%", "x%", "1e1%"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ValueError, match="is no share"):
        size_or_share(text)
    assert size_or_share("12.5%") == "12.5%"


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("30", "s", 30.0), ("30", "us", 30e-6), ("500ms", "us", 0.5), ("2usec", "s", 2e-6),
        ("10m", "s", 600.0), ("1h", "s", 3600.0), ("2D", "s", 172800.0), ("1.5s", "us", 1.5),
    ],
)  # fmt: skip
def test_times(text: str, unit: str, expected: float) -> None:
    assert seconds(text, unit) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "s", "1w", "-1s", "1 2"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        seconds(text)


def test_truth_is_a_number_a_word_or_nothing() -> None:
    assert [truth(text) for text in ("", "1", "0", "True", "off")] == [
        True,
        True,
        False,
        True,
        False,
    ]
    with pytest.raises(ValueError, match="neither"):
        truth("2")


def test_each_way_has_its_own_or_the_same() -> None:
    assert each_way("4k") == ("4k", "4k")
    assert each_way("4k,8k") == each_way("4k,8k,512") == ("4k", "8k")
    assert each_way(",500") == ("", "500") and each_way("500,") == ("500", "")
    with pytest.raises(ValueError, match="more parts"):
        each_way("1,2,3,4")


def test_blank_shares_of_a_split_are_what_is_left() -> None:
    reads, writes = block_sizes("4k/50:1k/:32k/")
    assert reads == writes == ((4096, 50.0), (1024, 25.0), (32768, 25.0))
    assert block_sizes("2k/50:4k/50,4k/90:8k/10")[1] == ((4096, 90.0), (8192, 10.0))
    assert block_sizes("4k:8k") == (((4096, 50.0), (8192, 50.0)),) * 2
    assert block_sizes("64k/100:1k/0,8k") == (((65536, 100.0),), ((8192, 100.0),))


@pytest.mark.parametrize(
    "text", ["4k/60:8k/60", "4k/50:8k/40", ":".join(["4k/"] * 65), "4k/x", "x/100"]
)
def test_what_is_no_split(text: str) -> None:
    with pytest.raises(ValueError, match=r"has shares|more than 64|no whole|is no size"):
        block_sizes(text)
