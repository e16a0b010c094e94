"""What a disk may hold is known at any moment: at each phase of a run its bounds hold."""

import numpy as np
import pytest

from common.arena import Arena
from common.copying import address_of
from common.effects import DONE, WAIT
from common.steps import ANY_STEP, STEP
from frontend import journal, load, steps
from frontend.journal import certain_versions, new_journal
from frontend.judge import NAMED_MAX, judge, new_judgement
from frontend.load import LoadPlan, new_load
from frontend.pattern import UNKNOWN, fill
from tests.frontend.answering import FLUSH, Answering
from tests.pair import EOPNOTSUPP, ERROR, WRITE

DISK, BLOCKS = 1, 64
NR_SECTORS = BLOCKS * 8


class Volatile(Answering):
    """Keeps what is written to itself until a flush: `lasting` (u8) is what survives its end.

    lies: what it says is flushed is not.
    """

    def __init__(self, mode: str = "persistent", **options: object) -> None:
        super().__init__(mode, **options)  # type: ignore[arg-type]
        assert self.store.memory is not None
        self.lasting, self.lies = self.store.memory.copy(), False
        self.flushed, self.issued = np.zeros((2, NR_SECTORS), np.uint32)
        self.journal = new_journal(Arena(), self.flushed, self.issued)
        self.versions = np.zeros(NR_SECTORS, np.uint32)

    def _answer(self, slot: np.ndarray) -> None:
        if slot["operation"] == FLUSH and self.statuses.get(FLUSH, 0) == 0 and not self.lies:
            assert self.store.memory is not None
            self.lasting[:] = self.store.memory
        super()._answer(slot)

    def plan(self, **changes: object) -> LoadPlan:
        plan = {"rw": "randwrite", "bs": 4096, "iodepth": 4, "read_percent": 50, "ios": 60}
        plan |= {"runtime_s": None, "seed": 3, "verify": True, "fsync": 5}
        return LoadPlan(**{**plan, **changes})  # type: ignore[arg-type]

    def job(self, plan: LoadPlan) -> load.Load:
        known = self.versions, self.latency, DISK, 0
        return new_load(Arena(), plan, self.front, *known, real_time=False, kept=self.journal)

    def load(self, **changes: object) -> None:
        self.driver.run_one(0, self.job(self.plan(**changes)), lambda: None)

    def judged(self, image: np.ndarray | None = None) -> dict[str, int]:
        """What an image of the disk is, by the journal as it stands: of what lasts by default."""
        return judged(self.lasting if image is None else image, self.flushed, self.issued)


def judged(image: np.ndarray, flushed: np.ndarray, issued: np.ndarray) -> dict[str, int]:
    found = new_judgement(Arena(1 << 16))
    judge(found, address_of(image), DISK, 0, NR_SECTORS, flushed, issued)
    return {name: int(found.found[name][0]) for name in found.found.dtype.names or ()}


def crashes(pair: Volatile, seed: int) -> np.ndarray:
    """Of what is not flushed, sectors that a crash happens to leave."""
    assert pair.store.memory is not None
    kept = np.random.default_rng(seed).integers(0, 2, NR_SECTORS).astype(bool)
    image = pair.lasting.reshape(-1, 512).copy()
    image[kept] = pair.store.memory.reshape(-1, 512)[kept]
    return image.reshape(-1)


def each_phase(pair: Volatile, plan: LoadPlan) -> int:
    """Stop at each phase of both ends, and judge what would be there; the most outside."""
    pair.front_job = pair.job(plan)
    outside, phases = 0, 0
    while True:
        effect = pair.front_run(ANY_STEP)
        if effect == DONE:
            return outside
        for image in (pair.lasting, pair.store.memory, crashes(pair, phases)):
            outside = max(outside, pair.judged(image)["outside"])
        phases += 1
        assert phases < 20_000
        if effect == WAIT:
            pair.serve()


@pytest.mark.parametrize("slow", [(), (FLUSH,), (WRITE,)])
@pytest.mark.parametrize("fsync", [1, 5])
@pytest.mark.parametrize("mode", ["persistent", "non-persistent"])
def test_the_bounds_hold_at_every_phase(mode: str, fsync: int, slow: tuple[int, ...]) -> None:
    pair = Volatile(mode)
    pair.slow |= set(slow)
    assert each_phase(pair, pair.plan(fsync=fsync, ios=30)) == 0
    assert (pair.flushed > 0).any() and pair.journal.head["keeps"][0] == 1


def test_a_flush_that_does_nothing_is_found() -> None:
    pair = Volatile()
    pair.lies = True
    assert each_phase(pair, pair.plan(ios=30)) > 0


def test_a_flush_marked_done_before_its_answer_would_be_found() -> None:
    """What the journal would say if it believed a flush that is only queued."""
    pair, outside = Volatile(), 0
    pair.slow.add(FLUSH)
    pair.front_job = pair.job(pair.plan(ios=30))
    while (effect := pair.front_run(ANY_STEP)) != DONE:
        half = (1 - int(pair.journal.head["list"][0])) * NR_SECTORS
        early = pair.flushed.copy()
        on_its_way = pair.journal.dirty[half:][: int(pair.journal.head["covered"][0])]
        early[on_its_way] = pair.journal.covered[on_its_way]
        outside += judged(pair.lasting, early, pair.issued)["outside"]
        if effect == WAIT:
            pair.serve()
    assert outside > 0


def test_issued_is_there_before_the_ring_shows_the_write() -> None:
    """At each phase all that the backend can see is issued; one write later would be found."""
    pair, late = Volatile(), 0
    pair.front_job = pair.job(pair.plan(ios=30, iodepth=1, fsync=0))
    before = pair.issued.copy()
    while (effect := pair.front_run(ANY_STEP)) != DONE:
        if effect == WAIT:
            pair.serve()
            assert pair.judged(pair.store.memory)["outside"] == 0
            late += judged(pair.store.memory, pair.flushed, before)["outside"]  # type: ignore[arg-type]
            before = pair.issued.copy()
        elif pair.front.turn[STEP] == steps.CLEAR and late == 0:
            continue
    assert (pair.issued == pair.versions).all()
    assert pair.issued.max() > 1


def test_all_that_was_completed_is_flushed_by_the_next_flush_and_no_more() -> None:
    pair = Volatile()
    pair.load(rw="write", ios=BLOCKS, fsync=BLOCKS // 2, iodepth=1)
    assert (pair.flushed == 1).all() and (pair.issued == 1).all()
    pair.load(rw="write", ios=10, fsync=100)
    assert (pair.flushed == 1).all() and (pair.issued[:80] == 2).all()
    assert pair.judged() == {"checked": NR_SECTORS, "uncertain": 80, "outside": 0}


@pytest.mark.parametrize("status", [ERROR, EOPNOTSUPP])
def test_a_flush_that_is_none_covers_nothing_and_the_next_covers_it(status: int) -> None:
    pair = Volatile()
    pair.statuses[FLUSH] = status
    pair.load(rw="write", ios=20, fsync=5, iodepth=1)
    assert not pair.flushed.any() and (pair.issued[:160] == 1).all()
    pair.statuses.clear()
    pair.front.front["flushes_as"] = FLUSH
    pair.load(rw="write", ios=5, fsync=5, iodepth=1)
    assert (pair.flushed[:160] == 1 + (np.arange(160) < 40)).all()
    assert pair.judged()["outside"] == 0


def test_a_failed_write_is_uncertain_and_the_next_version_is_another() -> None:
    pair = Volatile(store=None)
    pair.load(rw="write", ios=BLOCKS, fsync=BLOCKS, iodepth=1)
    pair.statuses[WRITE] = ERROR
    pair.load(rw="write", ios=4, fsync=4, iodepth=1)
    assert (pair.versions[:32] == UNKNOWN).all() and (pair.issued[:32] == 2).all()
    assert (pair.flushed == 1).all()
    pair.statuses.clear()
    pair.load(rw="write", ios=4, fsync=4, iodepth=1)
    assert (pair.issued[:32] == 3).all() and (pair.flushed[:32] == 3).all()
    assert pair.judged()["outside"] == 0


@pytest.mark.parametrize("rw", ["trim", "unverified"])
def test_what_is_discarded_or_not_of_the_pattern_is_unknown_until_it_is_flushed(rw: str) -> None:
    pair = Volatile()
    pair.load(rw="write", ios=BLOCKS, fsync=BLOCKS, iodepth=1)
    how = {"rw": "write", "verify": False} if rw == "unverified" else {"rw": "trim"}
    pair.load(**how, ios=10, fsync=5)
    assert (pair.flushed[:80] == UNKNOWN).all() and (pair.flushed[80:] == 1).all()
    assert pair.judged()["checked"] == NR_SECTORS - 80
    pair.load(rw="write", ios=5, fsync=5, iodepth=1)
    assert (pair.flushed[:40] == 2).all() and (pair.flushed[40:80] == UNKNOWN).all()
    assert pair.judged()["outside"] == 0


def test_a_discard_under_a_flush_is_unknown_though_the_flush_is_done() -> None:
    kept = new_journal(Arena(), *np.zeros((2, 8), np.uint32))
    kept.issued[:4] = 1
    journal.complete(kept, 0, 4)
    journal.begin_flush(kept)
    journal.forget(kept, 1, 1)
    journal.end_flush(kept, True)
    assert kept.flushed.tolist() == [1, UNKNOWN, 1, 1, 0, 0, 0, 0]


def test_no_sector_is_listed_twice_however_often_it_is_written() -> None:
    kept = new_journal(Arena(), *np.zeros((2, 8), np.uint32))
    for version in range(1, 100):
        kept.issued[:] = version
        journal.complete(kept, 0, 8)
        if version % 7 == 0:
            journal.begin_flush(kept)
        if version % 7 == 3:
            journal.end_flush(kept, version % 2 == 0)
    assert kept.head["count"][0] <= 8 and kept.head["covered"][0] <= 8


def test_who_goes_on_knows_what_is_certain_and_checks_nothing_else() -> None:
    pair = Volatile()
    pair.load(rw="write", ios=BLOCKS, fsync=BLOCKS, iodepth=1)
    pair.load(rw="write", ios=4, fsync=0)
    pair.journal = new_journal(Arena(), pair.flushed, pair.issued)
    pair.versions = certain_versions(pair.journal)
    assert (pair.versions[:32] == UNKNOWN).all() and (pair.versions[32:] == 1).all()
    assert pair.store.memory is not None
    pair.store.memory[:] = pair.lasting  # all that was not flushed is lost
    pair.load(rw="randrw", ios=200, fsync=8)
    assert pair.counts()["verify_errors"] == 0 and pair.judged()["outside"] == 0
    assert (pair.issued[:32] >= 2).all()


def test_a_load_of_no_journal_keeps_nothing() -> None:
    pair = Volatile()
    pair.journal = None  # type: ignore[assignment]
    pair.load()
    assert not pair.flushed.any() and not pair.issued.any()


# --- the judge --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flushed", "issued", "within"),
    [
        (0, 2, {0, 1, 2}),
        (1, 1, {1}),
        (2, 4, {2, 3, 4}),
        (0, 0, {0, 1, 2, 3, 4, 5}),  # never written: not looked at
        (UNKNOWN, 3, {0, 1, 2, 3, 4, 5}),
        (UNKNOWN - 1, 2, {1, 2}),  # they have gone round
    ],
)
def test_which_versions_lie_between(flushed: int, issued: int, within: set[int]) -> None:
    versions, found = np.zeros(NR_SECTORS, np.uint32), set[int]()
    for version in range(6):
        image = np.zeros(NR_SECTORS * 512, np.uint8)
        if version:
            fill(address_of(image), DISK, 0, NR_SECTORS, versions)
        bounds = np.zeros((2, NR_SECTORS), np.uint32)
        bounds[0, 7], bounds[1, 7] = flushed, issued
        if judged(image, *bounds)["outside"] == 0:
            found.add(version)
    assert found == within


def test_what_is_outside_is_named_and_counted() -> None:
    image, versions = np.zeros(NR_SECTORS * 512, np.uint8), np.zeros(NR_SECTORS, np.uint32)
    fill(address_of(image), DISK, 0, NR_SECTORS, versions)
    image.reshape(-1, 512)[5, 100] ^= 1
    bounds = np.full((2, NR_SECTORS), 2, np.uint32)
    found = new_judgement(Arena(1 << 16))
    judge(found, address_of(image), DISK, 0, NR_SECTORS, *bounds)
    assert found.found["outside"][0] == NR_SECTORS
    assert found.outside[4].item() == (4, 1, 2, 2) and found.outside[5].item() == (5, -1, 2, 2)
    assert len(found.outside) == NAMED_MAX


def test_what_may_be_lost_is_covered_by_no_later_flush() -> None:
    """Answered, or about to be covered, when the backend died; what is answered afterwards is."""
    flushed, issued = np.zeros((2, NR_SECTORS), np.uint32)
    kept = new_journal(Arena(), flushed, issued)
    issued[:3] = 5
    journal.complete(kept, 0, 1)
    journal.begin_flush(kept)
    journal.complete(kept, 1, 1)
    journal.lose(kept)
    journal.complete(kept, 2, 1)
    journal.end_flush(kept, True)
    assert flushed[:3].tolist() == [0, 0, 0]
    journal.begin_flush(kept)
    journal.end_flush(kept, True)
    assert flushed[:3].tolist() == [0, 0, 5]
    journal.complete(kept, 0, 1)  # written again
    journal.begin_flush(kept)
    journal.end_flush(kept, True)
    assert flushed[:3].tolist() == [5, 0, 5]
