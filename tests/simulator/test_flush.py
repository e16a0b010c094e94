"""The flush lock and its IPIs: who gets it next, what a flush costs whom."""

from collections.abc import Callable

import pytest
import simpy

from simulator.costs import COSTS
from simulator.cpus import FLUSHES, HANDLERS, LOCK_WAIT, Cpu, Steps, Thread
from simulator.flush import FlushLock, send_ipis

HELD = 1000
HANDOVER = int(COSTS.lock_handover_ns)


def crowd(env: simpy.Environment, count: int) -> list[Thread]:
    return [Thread(Cpu(env, at, COSTS), str(at), True, COSTS, 1) for at in range(count)]


def take_turns(byte_lock: bool, seed: int, count: int = 6) -> list[tuple[str, int]]:
    """All ask at once, hold it for 1 us, and say when they had it."""
    env = simpy.Environment()
    lock = FlushLock(env, COSTS, byte_lock, seed)
    log: list[tuple[str, int]] = []

    def life(thread: Thread) -> Steps:
        yield from lock.acquire(thread)
        log.append((thread.name, int(env.now)))
        yield env.timeout(HELD)
        lock.release()

    for thread in crowd(env, count):
        env.process(life(thread))
    env.run()
    assert not lock.held
    assert lock.busy_ns == env.now
    return log


def test_a_ticket_lock_goes_to_who_came_first_and_each_waiter_costs() -> None:
    log = take_turns(byte_lock=False, seed=1, count=4)
    assert [name for name, _ in log] == ["0", "1", "2", "3"]
    waits = [HELD + HANDOVER * waiters for waiters in (3, 2, 1)]
    assert [at for _, at in log] == [0, waits[0], sum(waits[:2]), sum(waits)]


def test_a_byte_lock_goes_to_anybody_but_the_same_by_the_same_seed() -> None:
    orders = {tuple(name for name, _ in take_turns(True, seed)) for seed in range(8)}
    assert len(orders) > 1
    assert all(sorted(order) == list("012345") for order in orders)
    assert take_turns(True, 3) == take_turns(True, 3)


def test_waiting_is_spinning_and_interrupts_are_taken_meanwhile() -> None:
    env = simpy.Environment()
    lock = FlushLock(env, COSTS, False, 1)
    holder, waiter = crowd(env, 2)

    def hold() -> Steps:
        yield from lock.acquire(holder)
        yield env.timeout(HELD)
        waiter.cpu.stolen += 300
        lock.release()

    env.process(hold())
    env.process(lock.acquire(waiter))
    env.run()
    assert waiter.cpu.spent[LOCK_WAIT] == HELD + HANDOVER - 300


@pytest.mark.parametrize("targets", [[], [1], [1, 2, 3]])
@pytest.mark.parametrize("busy", [True, False])
def test_a_flush_takes_as_long_as_its_targets_need(targets: list[int], busy: bool) -> None:
    env = simpy.Environment()
    threads = crowd(env, 4)
    cpus = [thread.cpu for thread in threads]
    for thread in threads if busy else threads[:1]:
        list(thread.cpu.take(thread))
    run: Callable[[], None] = env.run
    env.process(send_ipis(threads[0], targets, cpus, COSTS))
    run()
    expected = COSTS.ipi_ack_ns + COSTS.ipi_send_ns * len(targets)
    expected += 0 if busy else COSTS.idle_exit_ns
    assert env.now == (int(expected) if targets else 0)
    assert cpus[0].spent[FLUSHES] == env.now
    for cpu in cpus:
        hit = int(COSTS.ipi_handler_ns) * (cpu.number in targets)
        assert cpu.stolen == cpu.spent[HANDLERS] == hit
