import pytest

from xenstored.paths import child, parent, parse_domid, resolve
from xenstored.refusal import Refusal


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/", "/"),
        (b"/a", "/a"),
        (b"/a/b-c_d@e/F0", "/a/b-c_d@e/F0"),
        (b"device/vbd", "/local/domain/7/device/vbd"),
        (b"/" + b"x" * 3071, "/" + "x" * 3071),
        (b"y" * 2048, "/local/domain/7/" + "y" * 2048),
    ],
)
def test_a_valid_path_means_a_node_and_a_relative_one_lies_under_home(raw, path):
    assert resolve(raw, 7) == path


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"//",
        b"/a/",
        b"/a//b",
        b"a/",
        b"/a b",
        b"/a.b",
        b"/\xe4",
        b"/a\n",
        b"/a\0b",
        b"@special",
        b"/" + b"x" * 3072,
        b"y" * 2049,
    ],
)
def test_anything_else_is_einval(raw):
    with pytest.raises(Refusal, match="EINVAL"):
        resolve(raw, 7)


@pytest.mark.parametrize("raw", [b"", b"-1", b"+1", b" 1", b"1x", b"32752", b"65536", b"000001"])
def test_what_is_no_real_domid_is_einval(raw):
    with pytest.raises(Refusal, match="EINVAL"):
        parse_domid(raw)


def test_a_domid_is_decimal():
    assert [parse_domid(raw) for raw in (b"0", b"7", b"32751")] == [0, 7, 32751]


def test_the_root_is_its_own_parent():
    assert [parent(path) for path in ("/a/b", "/a", "/")] == ["/a", "/", "/"]


def test_a_child_is_one_name_further_down():
    assert child("/", "a") == "/a"
    assert child("/a", "b") == "/a/b"
