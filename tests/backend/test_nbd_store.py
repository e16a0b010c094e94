"""Disks that real NBD servers keep (nbdkit, qemu-nbd, nbd-server): whole, failing, late, killed."""

import logging
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backend.nbd_store import NbdStore, check_nbd, open_nbd
from backend.slots import DISCARD, FLUSH, READ, WRITE
from backend.store_jobs import CLOSE_S
from common.faults import LocalFault
from common.process import open_descriptors
from tests.backend.nbd_servers import SLOTS, Ring, Server, nbdkit, served, uri_of

OKAY, FAILED = 0, -1
SIZE = 8 << 20


@contextmanager
def opened(uri: str, timeout_s: float = 10.0, **how: int) -> Iterator[Ring]:
    store = open_nbd(uri, bool(how.get("read_only")), how.get("sector_size", 512), timeout_s)
    try:
        yield Ring(store)
    finally:
        store.close()


def command_of(kind: str, tmp_path: Path) -> list[str]:
    """A server of `disk` that listens on `socket`."""
    disk, sock = tmp_path / "disk", tmp_path / "socket"
    disk.write_bytes(bytes(SIZE))
    if kind == "nbdkit":
        return nbdkit(sock, "file", str(disk))
    if kind == "qemu-nbd":
        return ["qemu-nbd", "-k", str(sock), "-t", "-f", "raw", "-x", "disk", "--discard=unmap",
                str(disk)]  # fmt: skip
    config = tmp_path / "config"
    config.write_text(
        f"[generic]\nunixsock = {sock}\nlistenaddr = 127.0.0.1\nport = {free_port()}\n"
        f"[disk]\nexportname = {disk}\nflush = true\ntrim = true\n"
    )
    return ["nbd-server", "-C", str(config), "-p", str(tmp_path / "pid")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("kind", ["nbdkit", "qemu-nbd", "nbd-server"])
def test_each_server_keeps_what_is_written(kind: str, tmp_path: Path) -> None:
    rng = random.Random(7)
    model = bytearray(SIZE)
    uri = uri_of(tmp_path / "socket", "disk")
    pid = tmp_path / "pid" if kind == "nbd-server" else None
    with served(command_of(kind, tmp_path), tmp_path / "socket", pid):
        assert check_nbd(uri, False, 512, 10.0) == SIZE
        with opened(uri) as ring:
            assert ring.store.features.flush and ring.store.nr_sectors == SIZE // 512
            for _ in range(200):
                step(ring, rng, model)
            assert ring.do(FLUSH, 0) == OKAY
            assert (tmp_path / "disk").read_bytes() == model
            if ring.store.features.discard:
                assert ring.do(DISCARD, 0, SIZE) == OKAY
                assert ring.do(READ, 4096, 4096) == OKAY and not ring.pages[0, :4096].any()


def step(ring: Ring, rng: random.Random, model: bytearray) -> None:
    """All slots at once, each a region of its own: reads checked, writes noted."""
    asked = []
    for slot in range(SLOTS):
        nr_bytes = 512 * rng.randint(1, 88)
        offset = slot * (SIZE // SLOTS) + 512 * rng.randrange(SIZE // SLOTS // 512 - 88)
        kind = rng.choice([READ, WRITE])
        if kind == WRITE:
            data = rng.randbytes(nr_bytes)
            ring.pages[slot, :nr_bytes] = memoryview(data)  # type: ignore[call-overload]
        asked.append((slot, kind, offset, nr_bytes))
        ring.start(slot, kind, offset, nr_bytes)
    assert ring.wait_for(*range(SLOTS), within_s=20) == [OKAY] * SLOTS
    for slot, kind, offset, nr_bytes in asked:
        data = ring.pages[slot, :nr_bytes].tobytes()
        if kind == WRITE:
            model[offset : offset + nr_bytes] = data
        assert data == model[offset : offset + nr_bytes]


def test_a_disk_over_tcp_is_found_by_its_hosts_name(tmp_path: Path) -> None:
    port = free_port()
    command = ["nbdkit", "-f", "-p", str(port), "-i", "127.0.0.1", "-P", str(tmp_path / "pid")]
    with served([*command, "memory", "1M"], tmp_path / "pid"):
        for host in ("127.0.0.1", "localhost"):
            with opened(f"nbd://{host}:{port}/") as ring:
                assert ring.do(WRITE, 0, 4096) == OKAY


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_is_started_again_goes_on(
    how: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed under load: nothing fails, and nothing is mistaken for something else."""
    rng, model = random.Random(8), bytearray(SIZE)
    with served(command_of("nbdkit", tmp_path), tmp_path / "socket") as server:
        with opened(uri_of(tmp_path / "socket"), timeout_s=20) as ring:
            done = threading.Event()
            killer = threading.Thread(target=restart_often, args=(server, how, done))
            killer.start()
            while not done.is_set():
                step(ring, rng, model)
            lines = [record.message for record in caplog.records]
            assert sum("connection lost" in line for line in lines) == 4
            assert sum("back after" in line for line in lines) == 4
            assert ring.do(FLUSH, 0) == OKAY
            server.kill()
            killer.join()
        assert (tmp_path / "disk").read_bytes() == model


def restart_often(server: Server, how: int, done: threading.Event) -> None:
    """Stays until the last is gone: nbdkit may end with the thread that started it."""
    for pause_s in (0.03, 0.1, 0.11, 0.17):
        time.sleep(0.4 + pause_s)
        server.kill(how)
        time.sleep(0.05)
        server.start()
    time.sleep(0.8)
    done.set()
    server.wait()


def test_a_server_that_never_comes_back_is_an_error_in_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        served(nbdkit(tmp_path / "socket", "memory", "1M"), tmp_path / "socket") as server,
        opened(uri_of(tmp_path / "socket"), timeout_s=0.7) as ring,
    ):
        assert ring.do(READ, 0, 4096) == OKAY
        server.kill()
        began = time.monotonic()
        ring.start(1, READ, 0, 4096)
        ring.start(2, FLUSH, 0)
        assert ring.wait_for(1, 2) == [FAILED, FAILED]
        assert 0.6 < time.monotonic() - began < 1.5
    assert sum("no answer in time" in record.message for record in caplog.records) == 2


def test_a_server_that_hangs_is_an_error_in_time_and_is_asked_again(tmp_path: Path) -> None:
    with (
        served(nbdkit(tmp_path / "socket", "memory", "1M"), tmp_path / "socket") as server,
        opened(uri_of(tmp_path / "socket"), timeout_s=0.5) as ring,
    ):
        server._process.send_signal(signal.SIGSTOP)
        assert ring.do(READ, 0, 4096) == FAILED
        server._process.send_signal(signal.SIGCONT)
        assert ring.do(READ, 0, 4096) in (OKAY, FAILED)
        time.sleep(0.3)
        assert ring.do(READ, 0, 4096) == OKAY


def test_closing_ends_with_errors_within_its_bound(tmp_path: Path) -> None:
    command = nbdkit(tmp_path / "socket", "--filter=delay", "memory", "1M", "rdelay=60")
    with served(command, tmp_path / "socket") as server:
        with opened(uri_of(tmp_path / "socket"), timeout_s=60) as ring:
            ring.start(0, READ, 0, 4096)
            began = time.monotonic()
            ring.store.closing()
            assert ring.wait_for(0) == [FAILED]
            assert time.monotonic() - began < CLOSE_S
        with opened(uri_of(tmp_path / "socket"), timeout_s=60) as ring:
            server.kill()
            ring.start(0, READ, 0, 4096)
            ring.poll()
            ring.store.closing()
            began = time.monotonic()
            assert ring.wait_for(0) == [FAILED]
            assert time.monotonic() - began < 0.5


def test_an_error_is_its_own_requests_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = nbdkit(
        tmp_path / "socket", "--filter=error", "memory", "1M", "error=ENOSPC", "error-pwrite-rate=1"
    )
    with served(command, tmp_path / "socket"), opened(uri_of(tmp_path / "socket")) as ring:
        for _ in range(12):
            ring.start(0, READ, 0, 4096)
            ring.start(1, WRITE, 0, 4096)
            ring.start(2, FLUSH, 0)
            assert ring.wait_for(0, 1, 2) == [OKAY, FAILED, OKAY]
    lines = [record.message for record in caplog.records if "WRITE" in record.message]
    assert [line.rsplit(": ")[-1] for line in lines] == [
        "No space left on device (1 so far)",
        "No space left on device (10 so far)",
        "No space left on device (12 so far)",
    ]


def test_a_delay_holds_up_nobody_else(tmp_path: Path) -> None:
    command = nbdkit(tmp_path / "socket", "--filter=delay", "memory", "1M", "wdelay=500ms")
    with served(command, tmp_path / "socket"), opened(uri_of(tmp_path / "socket")) as ring:
        ring.start(1, WRITE, 0, 4096)
        for _ in range(50):
            assert ring.do(READ, 4096, 4096) == OKAY
        assert 1 not in ring.answers
        assert ring.wait_for(1) == [OKAY]


def test_a_read_only_export_is_refused_but_to_readers(tmp_path: Path) -> None:
    uri = uri_of(tmp_path / "socket")
    with served(nbdkit(tmp_path / "socket", "-r", "memory", "1M"), tmp_path / "socket"):
        with pytest.raises(LocalFault, match="read-only: the disk needs access=ro"):
            check_nbd(uri, False, 512, 5.0)
        with opened(uri, read_only=1) as ring:
            assert not ring.store.features.discard
            assert ring.do(READ, 0, 4096) == OKAY


@pytest.mark.parametrize(
    "arguments, sector_size, said",
    [
        (["memory", "0"], 512, "0 bytes"),
        (["memory", "513"], 512, "513 bytes, which is no multiple"),
        (["memory", "6144"], 4096, "6144 bytes, which is no multiple"),
        (["--filter=blocksize-policy", "memory", "1M", "blocksize-minimum=4096",
          "blocksize-error-policy=error"], 512, "sector-size=4096"),
    ],
)  # fmt: skip
def test_a_server_that_cannot_be_such_a_disk_is_one_line(
    arguments: list[str], sector_size: int, said: str, tmp_path: Path
) -> None:
    uri = uri_of(tmp_path / "socket")
    with (
        served(nbdkit(tmp_path / "socket", *arguments), tmp_path / "socket"),
        pytest.raises(LocalFault, match=said) as caught,
    ):
        check_nbd(uri, False, sector_size, 5.0)
    assert "\n" not in str(caught.value) and uri in str(caught.value)


def test_an_export_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with (
        served(command_of("qemu-nbd", tmp_path), tmp_path / "socket"),
        pytest.raises(LocalFault, match="export 'other' is not there"),
    ):
        check_nbd(uri_of(tmp_path / "socket", "other"), False, 512, 5.0)


def test_nobody_there_and_nobody_who_answers_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(LocalFault, match="No such file"):
        check_nbd(uri_of(tmp_path / "socket"), False, 512, 5.0)
    with pytest.raises(LocalFault, match=r"nbd://127.0.0.1:\d+/: Connection refused"):
        check_nbd(f"nbd://127.0.0.1:{free_port()}/", False, 512, 5.0)
    with pytest.raises(LocalFault, match="it is not nbd"):
        check_nbd("http://x/", False, 512, 5.0)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(LocalFault, match="does not answer in time"):
            check_nbd(uri_of(tmp_path / "silent"), False, 512, 0.3)
        assert time.monotonic() - began < 1


def test_a_server_that_comes_back_as_another_disk_stays_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        served(nbdkit(tmp_path / "socket", "memory", "1M"), tmp_path / "socket") as server,
        opened(uri_of(tmp_path / "socket"), timeout_s=1.0) as ring,
    ):
        server.kill()
        server._command[-1] = "2M"
        server.start()
        assert ring.do(READ, 0, 4096) == FAILED
        said = [record.message for record in caplog.records if "come back" in record.message]
        assert len(said) == 1 and "2097152 bytes, and not 1048576" in said[0]
        server.kill()
        server._command[-1] = "1M"
        server.start()
        time.sleep(0.8)
        assert OKAY in [ring.do(READ, 0, 4096) for _ in range(3)]


def test_nothing_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    with served(nbdkit(tmp_path / "socket", "memory", "1M"), tmp_path / "socket") as server:
        uri = uri_of(tmp_path / "socket")
        with opened(uri) as ring:
            ring.do(READ, 0, 4096)
        before, threads = open_descriptors(), threading.active_count()
        for _ in range(5):
            with opened(uri) as ring:
                ring.do(READ, 0, 4096)
            with pytest.raises(LocalFault):
                check_nbd(uri, False, 4096 * 512, 5.0)
        with opened(uri) as ring:
            server.kill()
            for _ in range(20):
                ring.poll(0.05)
        store: NbdStore = ring.store
        assert store.fileno() == -1
        assert open_descriptors() == before
        assert threading.active_count() == threads
