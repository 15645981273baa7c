"""The homes of sessions: pure, so tested without workers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_kernel.pool.scheduling.affinity import MAX_LAST, Homes
from snakepit_kernel.pool.scheduling.scheduler import QueueItem, Scheduler

from .test_scheduler import PooledLane, assign_or_queue

A, B = PooledLane("a"), PooledLane("b")


@pytest.fixture
def homes() -> Homes[PooledLane]:
    return Homes()


@pytest.fixture
def scheduler() -> Scheduler[PooledLane]:
    scheduler: Scheduler[PooledLane] = Scheduler(max_queue=3)
    for lane in (A, B):
        scheduler.add(lane)
    return scheduler


def strict(scheduler: Scheduler[PooledLane], session: str = "s") -> QueueItem[PooledLane]:
    return QueueItem(lambda: None, session, home=scheduler.homes.open(session))


def test_a_home_is_where_the_first_work_was_done_and_does_not_move(homes):
    home = homes.open("s")

    homes.note("s", A)
    homes.note("s", B)

    assert home.lane == A
    assert homes.open("s") is home


def test_a_session_that_was_not_strict_has_its_last_worker_as_its_home(homes):
    homes.note("s", A)
    homes.note("s", B)

    assert homes.open("s").lane == B


def test_a_lost_home_stays_lost_and_who_opens_the_session_gets_another(homes):
    lost = homes.open("s")
    homes.note("s", A)

    homes.leave(A)
    homes.note("s", B)

    assert lost.is_lost
    assert not homes.open("s").is_lost
    assert homes.open("s").lane == B


def test_many_sessions_that_came_do_not_push_out_a_home(homes):
    home = homes.open("s")
    homes.note("s", A)
    del home

    for number in range(MAX_LAST + 10):
        homes.note(f"s{number}", B)

    assert homes.open("s").lane == A


def test_a_forgotten_session_begins_again_for_those_who_have_it_open(homes):
    home = homes.open("s")
    homes.note("s", A)

    homes.forget("s")

    assert (home.lane, home.is_lost) == (None, False)
    assert homes.open("s") is home
    homes.note("s", B)
    homes.leave(A)
    assert not home.is_lost


def test_a_home_without_work_is_gone_when_nobody_holds_it(homes):
    homes.open("s")

    assert not homes._homes


def test_strict_work_waits_for_its_home_while_others_are_idle(scheduler):
    first, second = strict(scheduler), strict(scheduler)
    assign_or_queue(scheduler, first)

    assert assign_or_queue(scheduler, second) is False
    assert B in scheduler.idle
    assert scheduler.add(A) is second


def test_strict_work_that_waits_for_its_first_worker_shares_it(scheduler):
    for _ in range(2):
        assign_or_queue(scheduler, QueueItem(lambda: None))
    first, second = strict(scheduler), strict(scheduler)
    for item in (first, second):
        assign_or_queue(scheduler, item)

    assert scheduler.add(B) is first
    assert scheduler.add(A) is None
    assert scheduler.add(B) is second


def test_strict_work_that_waits_for_a_worker_that_goes_is_given_back(scheduler):
    first, second, other = strict(scheduler), strict(scheduler), strict(scheduler, "t")
    for item in (first, second, other):
        assign_or_queue(scheduler, item)

    assert scheduler.remove(A) == [second]
    assert second.has_lost_home
    assert not other.has_lost_home
    assert scheduler.assign(second) is False


ACTIONS = st.tuples(st.sampled_from(["ask", "end", "die", "reopen", "forget"]), st.integers(0, 2))


@given(st.lists(ACTIONS, max_size=80))
def test_whatever_happens_strict_work_is_done_at_its_home_or_told_that_it_is_lost(actions):
    scheduler: Scheduler[PooledLane] = Scheduler(max_queue=1000)
    names = (PooledLane(f"lane {number}") for number in itertools.count())
    for _ in range(2):
        scheduler.add(next(names))
    homes = [scheduler.homes.open(str(number)) for number in range(3)]
    lent: list[QueueItem[PooledLane]] = []
    queue: list[QueueItem[PooledLane]] = []

    def take(lane: PooledLane) -> None:
        served = scheduler.add(lane)
        if served is not None:
            queue.remove(served)
            lent.append(served)

    for action, number in actions:
        if action == "ask" and not homes[number].is_lost:
            item: QueueItem[PooledLane] = QueueItem(lambda: None, str(number), home=homes[number])
            (lent if assign_or_queue(scheduler, item) else queue).append(item)
            assert item in queue or item.home.lane == item.lane
        elif action == "end" and lent:
            take(lent.pop(0).lane)
        elif action == "die" and lent:
            died = lent.pop().lane
            stranded = scheduler.remove(died)
            assert all(each.home.is_lost for each in stranded)
            queue = [each for each in queue if each not in stranded]
            assert not any(each.home.is_lost for each in queue)
            take(next(names))
        elif action == "reopen":
            homes[number] = scheduler.homes.open(str(number))
            assert not homes[number].is_lost
        elif action == "forget":
            scheduler.homes.forget(str(number))
        assert scheduler.waiting == len(queue)
