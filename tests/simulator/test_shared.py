"""What threads share: booked resources, memory's bandwidth, the pool of requests."""

import pytest
import simpy

from simulator.costs import COSTS
from simulator.cpus import Steps
from simulator.shared import COLD_TRAFFIC, Channel, Memory, RequestPool


def test_a_booked_channel_serves_one_after_another() -> None:
    env = simpy.Environment()
    channel = Channel(env)
    assert [channel.book(100) for _ in range(3)] == [100, 200, 300]
    env.run(until=250)
    assert channel.book(100) == 150
    env.run(until=1000)
    assert channel.book(100) == 100
    assert channel.busy_ns == 500


def test_a_copy_is_as_fast_as_its_cpu_until_memory_is_full() -> None:
    memory = Memory(simpy.Environment(), COSTS)
    traffic_ns = COLD_TRAFFIC * 4096 * 1000 / COSTS.memory_bytes_a_us
    times = [memory.cold_ns(4096) for _ in range(10)]
    assert times[0] == int(COSTS.copy_cold_ns)
    assert times[-1] == pytest.approx(10 * traffic_ns, abs=1)
    assert memory.hot_ns(2048) == int(COSTS.copy_hot_ns / 2)


def test_a_pool_without_a_size_has_room_for_all() -> None:
    pool = RequestPool(simpy.Environment(), None)
    pool.take(1000)
    assert pool.room(32) == 32


def test_who_waits_for_the_pool_is_told() -> None:
    env = simpy.Environment()
    pool = RequestPool(env, 2)
    pool.take(2)
    assert pool.room(32) == 0
    got: list[int] = []

    def waits() -> Steps:
        yield from pool.wait()
        got.append(pool.room(32))

    env.process(waits())
    env.run()
    assert got == []
    pool.give(1)
    env.run()
    assert got == [1]
    with pytest.raises(AssertionError):
        pool.take(2)
