"""Physical CPUs in virtual time: whose turn it is, and what interrupts steal."""

from collections.abc import Callable

import numpy as np
import pytest
import simpy

from simulator.costs import COSTS
from simulator.cpus import EVENTS, REQUESTS, Cpu, Steps, Thread

SWITCH = int(COSTS.wakeup_ns)


@pytest.fixture
def env() -> simpy.Environment:
    return simpy.Environment()


@pytest.fixture
def cpu(env: simpy.Environment) -> Cpu:
    return Cpu(env, 0, COSTS)


def thread(cpu: Cpu, name: str, *, is_dom0: bool = True) -> Thread:
    return Thread(cpu, name, is_dom0, COSTS, 1)


def does(who: Thread, ns: int, log: list[tuple[str, int]]) -> Steps:
    yield from who.cpu.take(who)
    yield from who.work(ns, REQUESTS)
    log.append((who.name, int(who.env.now)))
    who.cpu.leave()


def at(env: simpy.Environment, ns: int, what: Callable[[], None]) -> Steps:
    yield env.timeout(ns)
    what()


def test_threads_run_one_after_another_with_a_switch_between(
    env: simpy.Environment, cpu: Cpu
) -> None:
    log: list[tuple[str, int]] = []
    for name in ("a", "b"):
        env.process(does(thread(cpu, name), 100, log))
    env.run()
    assert log == [("a", 100), ("b", 200 + SWITCH)]
    assert cpu.spent[REQUESTS] == 200
    assert cpu.spent[EVENTS] == SWITCH
    assert cpu.idle


def test_an_interrupt_makes_what_runs_that_much_later(env: simpy.Environment, cpu: Cpu) -> None:
    log: list[tuple[str, int]] = []
    env.process(does(thread(cpu, "a"), 100, log))

    def steal() -> None:
        cpu.stolen += 30

    env.process(at(env, 50, steal))
    env.process(at(env, 120, steal))  # while it makes up for the first
    env.run()
    assert log == [("a", 160)]


def test_an_interrupt_of_an_idle_cpu_delays_nobody(env: simpy.Environment, cpu: Cpu) -> None:
    log: list[tuple[str, int]] = []
    cpu.stolen += 30
    env.process(does(thread(cpu, "a"), 100, log))
    env.run()
    assert log == [("a", 100)]


def test_dom0s_words_follow_the_context_switches(env: simpy.Environment, cpu: Cpu) -> None:
    dirty, running = np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    cpu.pin(dirty, running)
    seen = []
    back, guest = thread(cpu, "back"), thread(cpu, "guest", is_dom0=False)
    for who in (back, guest):
        list(cpu.take(who))
        seen.append((int(dirty[0]), int(running[0])))
        cpu.leave()
        seen.append((int(dirty[0]), int(running[0])))
    assert seen == [(1, 1), (1, 0), (0, 0), (0, 0)]  # idle dom0 stays dirty; a guest cleans


def test_who_sleeps_runs_again_after_its_event_is_delivered(
    env: simpy.Environment, cpu: Cpu
) -> None:
    sleeper = thread(cpu, "a")
    woken: list[int] = []

    def sleeps() -> Steps:
        yield from cpu.take(sleeper)
        yield from sleeper.sleep()
        woken.append(int(env.now))

    env.process(sleeps())
    env.process(at(env, 1000, sleeper.wake))
    env.process(at(env, 1001, sleeper.wake))  # one more changes nothing
    env.run()
    assert woken == [1000 + int(COSTS.ipi_delivery_ns) + int(COSTS.wakeup_ns)]


def test_a_slice_is_over_only_if_another_wants_the_cpu(env: simpy.Environment, cpu: Cpu) -> None:
    first = thread(cpu, "a")
    list(cpu.take(first))
    env.run(until=int(COSTS.slice_us * 1000))
    assert not cpu.slice_is_over()
    env.process(does(thread(cpu, "b"), 1, []))
    env.run(until=env.now + 1)
    assert cpu.slice_is_over()


def test_software_times_vary_by_the_seed_and_stay_near_the_mean(cpu: Cpu) -> None:
    one, again, other = (Thread(cpu, "a", True, COSTS, seed) for seed in (1, 1, 2))
    times = [one.varied(1000) for _ in range(4000)]
    assert times == [again.varied(1000) for _ in range(4000)]
    assert times != [other.varied(1000) for _ in range(4000)]
    assert np.mean(times) == pytest.approx(1000, rel=0.02)
    assert np.std(times) / np.mean(times) == pytest.approx(COSTS.spread, rel=0.05)
