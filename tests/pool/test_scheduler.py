"""Scheduling: pure, so it is tested with tables and at random against a simple model."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_kernel.pool.scheduling.affinity import MAX_LAST
from snakepit_kernel.pool.scheduling.scheduler import QueueFull, QueueItem, Scheduler


class PooledLane(str):  # noqa: SLOT000 - its tests give it attributes
    """A lane of that name, by default the only one of its worker."""

    purposes = frozenset({"call", "cell"})
    load = 0

    @property
    def neighbours(self) -> list[PooledLane]:
        return [self]


def item(
    session: str | None = None, wanted: str | None = None, *, bound: str | None = "max_queue"
) -> QueueItem[PooledLane]:
    return QueueItem(lambda: None, session, wanted, bound=bound)


def assign_or_queue(scheduler: Scheduler[PooledLane], item: QueueItem[PooledLane]) -> bool:
    """Assign a lane at once, or queue the item; say which, as a pool's dispatcher does."""
    if scheduler.assign(item):
        return True
    scheduler.enqueue(item)
    return False


@pytest.fixture
def scheduler() -> Scheduler[PooledLane]:
    scheduler: Scheduler[PooledLane] = Scheduler(max_queue=3)
    for worker in ("a", "b"):
        scheduler.add(PooledLane(worker))
    return scheduler


def assign(scheduler: Scheduler[PooledLane], request: QueueItem[PooledLane]) -> PooledLane | None:
    assign_or_queue(scheduler, request)
    return request.lane


def test_the_worker_that_rested_longest_is_taken_first(scheduler):
    assert assign(scheduler, item()) == "a"
    scheduler.add(PooledLane("a"))
    assert assign(scheduler, item()) == "b"


def test_a_session_gets_its_last_worker_again_when_that_is_free(scheduler):
    assert assign(scheduler, item("s")) == "a"
    scheduler.add(PooledLane("a"))  # behind b now
    assert assign(scheduler, item("s")) == "a"


def test_a_session_does_not_wait_for_its_last_worker(scheduler):
    assign(scheduler, item("s"))
    assert assign(scheduler, item("s")) == "b"


def test_work_for_one_worker_waits_for_that_one(scheduler):
    assign(scheduler, item())
    bound = item(wanted="a")

    assert assign(scheduler, bound) is None
    assert scheduler.add(PooledLane("a")) is bound


def test_who_waits_for_one_worker_does_not_hold_up_the_others(scheduler):
    for _ in range(2):
        assign(scheduler, item())
    bound, anyone = item(wanted="a"), item()
    for request in (bound, anyone):
        assign_or_queue(scheduler, request)

    assert scheduler.add(PooledLane("b")) is anyone


def test_who_waits_for_a_worker_that_goes_is_given_back(scheduler):
    assign(scheduler, item())
    bound = item(wanted="a")
    assign_or_queue(scheduler, bound)

    assert scheduler.remove("a") == [bound]
    assert scheduler.waiting == 0


def test_a_full_queue_refuses_and_an_unbounded_request_neither_cares_nor_counts(scheduler):
    for _ in range(2):
        assign(scheduler, item())
    for _ in range(5):
        assert assign_or_queue(scheduler, item(bound=None)) is False
    bounded = [item() for _ in range(3)]
    for each in bounded:
        assign_or_queue(scheduler, each)

    with pytest.raises(QueueFull):
        assign_or_queue(scheduler, item())
    assert assign_or_queue(scheduler, item(bound=None)) is False
    assert scheduler.waiting == 9
    scheduler.withdraw(bounded[0])
    assert assign_or_queue(scheduler, item()) is False


def test_a_withdrawn_ticket_is_passed_over(scheduler):
    for _ in range(2):
        assign(scheduler, item())
    first, second = item(), item()
    for request in (first, second):
        assign_or_queue(scheduler, request)

    assert scheduler.withdraw(first) is True
    assert scheduler.withdraw(first) is False
    assert scheduler.add(PooledLane("a")) is second


def test_a_worker_that_was_removed_is_not_lent(scheduler):
    scheduler.remove("a")

    assert [assign(scheduler, item()) for _ in range(2)] == ["b", None]


def test_sessions_that_came_and_went_are_forgotten():
    scheduler: Scheduler[PooledLane] = Scheduler(max_queue=0)
    for number in range(MAX_LAST + 10):
        scheduler.add(PooledLane("a"))
        assign(scheduler, item(f"s{number}"))

    assert len(scheduler.homes._last) == MAX_LAST


@given(st.lists(st.sampled_from(["request", "release", "withdraw", "die"]), max_size=80))
def test_no_worker_is_lent_twice_and_the_queue_keeps_its_order(actions):
    scheduler: Scheduler[PooledLane] = Scheduler(max_queue=1000)
    names = map(PooledLane, itertools.count())
    for _ in range(3):
        scheduler.add(next(names))
    lent: dict[PooledLane, QueueItem[PooledLane]] = {}
    queue: list[QueueItem[PooledLane]] = []

    for action in actions:
        if action == "request":
            request: QueueItem[PooledLane] = item()
            if assign_or_queue(scheduler, request):
                assert request.lane not in lent
                assert not queue, "nobody overtakes those who wait"
                lent[request.lane] = request
            else:
                queue.append(request)
        elif action == "release" and lent:
            worker = next(iter(lent))
            del lent[worker]
            served = scheduler.add(worker)
            assert served is (queue.pop(0) if queue else None)
            if served is not None:
                lent[worker] = served
        elif action == "withdraw" and queue:
            assert scheduler.withdraw(queue.pop())
        elif action == "die" and lent:
            del lent[worker := next(iter(lent))]
            scheduler.remove(worker)
            served = scheduler.add(successor := next(names))
            assert served is (queue.pop(0) if queue else None)
            if served is not None:
                lent[successor] = served
        assert scheduler.waiting == len(queue)


def test_who_waits_for_one_worker_waits_for_its_successor(scheduler):
    assign(scheduler, item())
    wants_a = item(wanted="a")
    assign_or_queue(scheduler, wants_a)
    scheduler.remove("b")

    scheduler.replace("a", "c")

    assert scheduler.add(PooledLane("c")) is wants_a
    assert wants_a.lane == "c"


def test_a_ticket_from_the_queue_is_remembered_until_its_owner_was_told(scheduler):
    assign(scheduler, item())
    assign(scheduler, item())
    waiting = item()
    assign_or_queue(scheduler, waiting)

    assert scheduler.assigned is None
    scheduler.add(PooledLane("a"))
    assert scheduler.assigned is waiting


class SharedRegion(PooledLane):
    """One of several lanes of a worker."""

    def __new__(cls, name, worker, purposes=("call",)):
        self = super().__new__(cls, name)
        self.worker = worker
        self.purposes = frozenset(purposes)
        worker.append(self)
        return self

    @property
    def neighbours(self):
        return self.worker

    @property
    def load(self):
        return sum(lane.is_lent for lane in self.worker)

    is_lent = False


def test_work_goes_to_the_worker_that_has_least_to_do():
    scheduler: Scheduler[PooledLane] = Scheduler(max_queue=3)
    busy, free = [], []
    for name, worker in (("a", busy), ("b", busy), ("c", free)):
        scheduler.add(SharedRegion(name, worker))
    first = assign(scheduler, item())
    first.is_lent = True

    assert (first, assign(scheduler, item())) == ("a", "c")


def test_a_session_gets_another_place_at_its_last_worker():
    scheduler: Scheduler[PooledLane] = Scheduler(max_queue=3)
    first, second = [], []
    for name, worker in (("a", first), ("b", second), ("c", second)):
        scheduler.add(SharedRegion(name, worker))
    assign(scheduler, item())
    assert assign(scheduler, item("s")) == "b"

    assert assign(scheduler, item("s")) == "c"


def test_a_place_for_cells_is_not_lent_for_calls():
    scheduler: Scheduler[PooledLane] = Scheduler(max_queue=3)
    worker = []
    scheduler.add(SharedRegion("main", worker, ["cell"]))
    call, cell = item(), QueueItem(lambda: None, purpose="cell")

    assert assign(scheduler, call) is None
    assert assign(scheduler, cell) == "main"
    assert scheduler.add(SharedRegion("thread", worker)) is call
