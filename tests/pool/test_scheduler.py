"""Scheduling: pure, so it is tested with tables and at random against a simple model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_kernel.pool.scheduler import MAX_HOMES, QueueFull, Scheduler, Ticket


def ticket(session: str | None = None, wanted: str | None = None) -> Ticket[str]:
    return Ticket(lambda: None, session, wanted)


@pytest.fixture
def scheduler() -> Scheduler[str]:
    scheduler: Scheduler[str] = Scheduler(max_queue=3)
    for worker in ("a", "b"):
        scheduler.add(worker)
    return scheduler


def grant(scheduler: Scheduler[str], request: Ticket[str]) -> str | None:
    scheduler.request(request)
    return request.seat


def test_the_worker_that_rested_longest_is_taken_first(scheduler):
    assert grant(scheduler, ticket()) == "a"
    scheduler.add("a")
    assert grant(scheduler, ticket()) == "b"


def test_a_session_gets_its_last_worker_again_when_that_is_free(scheduler):
    assert grant(scheduler, ticket("s")) == "a"
    scheduler.add("a")  # behind b now
    assert grant(scheduler, ticket("s")) == "a"


def test_a_session_does_not_wait_for_its_last_worker(scheduler):
    grant(scheduler, ticket("s"))
    assert grant(scheduler, ticket("s")) == "b"


def test_work_for_one_worker_waits_for_that_one(scheduler):
    grant(scheduler, ticket())
    bound = ticket(wanted="a")

    assert grant(scheduler, bound) is None
    assert scheduler.add("a") is bound


def test_who_waits_for_one_worker_does_not_hold_up_the_others(scheduler):
    for _ in range(2):
        grant(scheduler, ticket())
    bound, anyone = ticket(wanted="a"), ticket()
    for request in (bound, anyone):
        scheduler.request(request)

    assert scheduler.add("b") is anyone


def test_who_waits_for_a_worker_that_goes_is_given_back(scheduler):
    grant(scheduler, ticket())
    bound = ticket(wanted="a")
    scheduler.request(bound)

    assert scheduler.remove("a") == [bound]
    assert scheduler.waiting == 0


def test_a_full_queue_refuses_and_an_unbounded_request_does_not_care(scheduler):
    for _ in range(2):
        grant(scheduler, ticket())
    for _ in range(3):
        scheduler.request(ticket())

    with pytest.raises(QueueFull):
        scheduler.request(ticket())
    assert scheduler.request(ticket(), bounded=False) is False
    assert scheduler.waiting == 4


def test_a_withdrawn_ticket_is_passed_over(scheduler):
    for _ in range(2):
        grant(scheduler, ticket())
    first, second = ticket(), ticket()
    for request in (first, second):
        scheduler.request(request)

    assert scheduler.withdraw(first) is True
    assert scheduler.withdraw(first) is False
    assert scheduler.add("a") is second


def test_a_worker_that_was_removed_is_not_lent(scheduler):
    scheduler.remove("a")

    assert [grant(scheduler, ticket()) for _ in range(2)] == ["b", None]


def test_sessions_that_came_and_went_are_forgotten():
    scheduler: Scheduler[str] = Scheduler(max_queue=0)
    for number in range(MAX_HOMES + 10):
        scheduler.add("a")
        grant(scheduler, ticket(f"s{number}"))

    assert len(scheduler._homes) == MAX_HOMES


@given(st.lists(st.sampled_from(["request", "release", "withdraw", "die"]), max_size=80))
def test_no_worker_is_lent_twice_and_the_queue_keeps_its_order(actions):
    scheduler: Scheduler[int] = Scheduler(max_queue=1000)
    for worker in range(3):
        scheduler.add(worker)
    lent: dict[int, Ticket[int]] = {}
    queue: list[Ticket[int]] = []
    next_worker = 3

    for action in actions:
        if action == "request":
            request: Ticket[int] = Ticket(lambda: None)
            if scheduler.request(request):
                assert request.seat not in lent
                assert not queue, "nobody overtakes those who wait"
                lent[request.seat] = request
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
            served = scheduler.add(next_worker)
            assert served is (queue.pop(0) if queue else None)
            if served is not None:
                lent[next_worker] = served
            next_worker += 1
        assert scheduler.waiting == len(queue)


def test_who_waits_for_one_worker_waits_for_its_successor(scheduler):
    grant(scheduler, ticket())
    wants_a = ticket(wanted="a")
    scheduler.request(wants_a)
    scheduler.remove("b")

    scheduler.replace("a", "c")

    assert scheduler.add("c") is wants_a
    assert wants_a.worker == "c"


def test_a_ticket_from_the_queue_is_remembered_until_its_owner_was_told(scheduler):
    grant(scheduler, ticket())
    grant(scheduler, ticket())
    waiting = ticket()
    scheduler.request(waiting)

    assert scheduler.granted is None
    scheduler.add("a")
    assert scheduler.granted is waiting
