"""How a disk's target is written, and how one that cannot be is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.targets import FORM, SIZE_MAX, Target, joined, read_target, size_of, split_target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("ram:64m", Target("ram", nr_bytes=64 << 20)),
        ("RAM:4K,name=boot", Target("ram", nr_bytes=4096, name="boot")),
        ("null:1g,sector-size=4096", Target("null", nr_bytes=1 << 30, sector_size=4096)),
        ("file:/a/b.img", Target("file", "/a/b.img")),
        ("file:rel,cache=none", Target("file", "rel", cache="none")),
        ("file:/a,,b", Target("file", "/a,b")),
        ("nbd://host/x", Target("nbd", "nbd://host/x")),
        (
            "nbd+unix:///x?socket=/s,timeout=2.5",
            Target("nbd", "nbd+unix:///x?socket=/s", timeout_s=2.5),
        ),
        ("volatile:file:/a,seed=7", Target("file", "/a", volatile=True, seed=7)),
        ("volatile:ram:1m,name=x", Target("ram", nr_bytes=1 << 20, name="x", volatile=True)),
    ],
)
def test_a_target_is_what_is_written(text: str, target: Target) -> None:
    assert read_target(text) == target


def test_a_path_may_be_one_for_each_guest() -> None:
    assert read_target("file:/disks/{domid}/a.img").path_of(12) == "/disks/12/a.img"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", f"'' is not {FORM}"),
        ("disk:x", f"'disk:x' is not {FORM}"),
        ("/dev/ram0", f"'/dev/ram0' is not {FORM}"),
        ("file:", f"'file:' is not {FORM}"),
        ("ram:ten", "'ram:ten' is not ram:SIZE, as in ram:64m"),
        ("ram:0", "'ram:0' has a size that is no multiple of 512 in 512..64g"),
        ("ram:4k,sector-size=1024", "sector-size: '1024' is not one of 512, 4096"),
        ("ram:512,sector-size=4096", "has a size that is no multiple of 4096 in 4096..64g"),
        ("null:1m,name=x", "name: null has no such option; allowed are sector-size"),
        ("ram:1m,cache=none", "cache: ram has no such option; allowed are name, sector-size"),
        ("file:/a,cache=directsync", "cache: 'directsync' is not one of writeback, none"),
        ("file:/a,seed=1", "seed: file has no such option; allowed are cache, sector-size"),
        ("ram:1m,name=a/b", "name: 'a/b' is not 1..32 letters, digits, '_', '.' or '-'"),
        ("ram:1m,name=a,name=b", "says something twice"),
        ("nbd://h/x,timeout=0", "timeout: '0' is not above 0, at most 3600 (seconds)"),
        ("nbd://h/x,timeout=3601", "timeout: '3601' is not above 0"),
        ("volatile:file:/a,seed=-1", "seed: '-1' is not a number of 1 to 18 digits"),
        ("volatile:nbd://h/x", "is not volatile:ram:SIZE or volatile:file:PATH"),
        ("nbds://h/x", f"is not {FORM}"),
        ("nbd+unix:///x", "?socket=PATH"),
    ],
)
def test_one_that_cannot_be_is_told_in_a_line(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=r".*") as caught:
        read_target(text)
    assert why in str(caught.value) and "\n" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_target_or_a_line(text: str) -> None:
    try:
        assert isinstance(read_target(text), Target)
    except ValueError as error:
        assert "\n" not in str(error)


@given(st.lists(st.text(), min_size=1).filter(lambda parts: "\0" not in "".join(parts)))
def test_commas_of_their_own_are_doubled(parts: list[str]) -> None:
    if all(part and not part.startswith(",") for part in parts):
        assert split_target(joined(parts)) == parts


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512), ("1G", 1 << 30), ("1q", None), ("", None)]
)
def test_sizes_are_fio_s(text: str, size: int | None) -> None:
    assert size_of(text) == size and size_of("64g") == SIZE_MAX
