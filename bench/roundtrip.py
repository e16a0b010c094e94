"""What a round trip between two processes costs here, with nothing in it.

Owns: the two limits that a request at depth 1 is held against: a blocking ping-pong over ZeroMQ
PAIR sockets on a unix socket, as event channels use, and one by spinning on shared memory.
"""

import multiprocessing
import os
import tempfile
import time
from typing import Final

import numpy as np
import zmq

from common.atomics import load_acquire, pause, store_release
from common.compiled import kernel
from common.memory import create_segment, map_segment

TRIPS_ZMQ: Final = 2_000
TRIPS_SHARED: Final = 200_000
PING: Final = 0
PONG: Final = 16  # a cache line away
US: Final = 1e6


@kernel
def _ping(words: np.ndarray, trips: int) -> None:
    for trip in range(1, trips + 1):
        store_release(words, PING, trip)
        while load_acquire(words, PONG) != trip:
            pause()


@kernel
def _pong(words: np.ndarray, trips: int) -> None:
    for trip in range(1, trips + 1):
        while load_acquire(words, PING) != trip:
            pause()
        store_release(words, PONG, trip)


def _pong_process(words: np.ndarray) -> None:
    _pong(words, TRIPS_SHARED)


def shared_memory_us() -> float:
    """Microseconds there and back, both ends spinning."""
    words = map_segment(create_segment(f"grantlab-bench-{os.getpid()}", 4096)).view(np.uint32)
    _ping(words, 0), _pong(words, 0)  # compiled before the fork
    other = multiprocessing.get_context("fork").Process(target=_pong_process, args=(words,))
    other.start()
    started = time.perf_counter()
    _ping(words, TRIPS_SHARED)
    elapsed = time.perf_counter() - started
    other.join()
    return elapsed / TRIPS_SHARED * US


def _echo_process(address: str) -> None:
    context = zmq.Context()
    sock: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    sock.connect(address)
    for _ in range(TRIPS_ZMQ):
        sock.send(sock.recv())
    context.destroy(linger=1000)


def zeromq_us() -> float:
    """Microseconds there and back, both ends blocking."""
    with tempfile.TemporaryDirectory(prefix="gl-") as directory:
        address = f"ipc://{directory}/ping"
        context = zmq.Context()
        sock: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        sock.bind(address)
        other = multiprocessing.get_context("fork").Process(target=_echo_process, args=(address,))
        other.start()
        sock.send(b"\1")
        sock.recv()
        started = time.perf_counter()
        for _ in range(TRIPS_ZMQ - 1):
            sock.send(b"\1")
            sock.recv()
        elapsed = time.perf_counter() - started
        other.join()
        context.destroy(linger=0)
    return elapsed / (TRIPS_ZMQ - 1) * US
