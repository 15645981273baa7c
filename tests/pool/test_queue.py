"""The queue alone: fair between sessions, by tables and against a simple model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_kernel.pool.scheduling.fair_queue import FairQueue


@dataclass(eq=False)
class Entry:
    session: str | None = None
    priority: int = 0
    bound: str | None = "max_queue"
    number: int = 0


def fill(*sessions: str | None) -> tuple[FairQueue[Entry], list[Entry]]:
    queue: FairQueue[Entry] = FairQueue()
    entries = [Entry(session, number=number) for number, session in enumerate(sessions)]
    for entry in entries:
        queue.append(entry)
    return queue, entries


def served(queue: FairQueue[Entry], *, places: int = 1) -> list[Entry]:
    """Serve all that waits, by places of which the first that was given is given back first."""
    order, held = [], []
    while len(queue):
        if len(held) == places:
            queue.record_released(held.pop(0).session)
        entry = next(iter(queue))
        queue.remove(entry)
        queue.record_assigned(entry)
        held.append(entry)
        order.append(entry)
    return order


def test_one_session_is_served_in_the_order_in_which_it_came():
    queue, entries = fill("a", "a", "a", "a")

    assert served(queue) == entries


def test_many_sessions_with_one_request_each_are_served_in_the_order_in_which_they_came():
    queue, entries = fill(*map(str, range(20)))

    assert served(queue, places=3) == entries


@pytest.mark.parametrize("places", [1, 2, 3])
def test_a_session_with_one_request_does_not_wait_for_one_with_a_hundred(places):
    queue, entries = fill(*["greedy"] * 100, "modest")

    order = served(queue, places=places)

    assert order.index(entries[-1]) <= 1


def test_sessions_take_turns():
    queue, _ = fill("a", "a", "a", "b", "b", None, None)

    assert [entry.session for entry in served(queue)] == ["a", "b", None, "a", "b", None, "a"]


def test_whoever_holds_the_fewest_places_is_served_first():
    queue, _ = fill("slow", "quick", "slow", "quick")
    for _ in range(3):  # three places with long work
        queue.record_assigned(Entry("slow"))
    queue.record_assigned(Entry("quick"))

    assert [entry.session for entry in queue] == ["quick", "quick", "slow", "slow"]


def test_higher_priority_goes_first_whatever_it_has_had():
    queue, entries = fill("a", "b")
    urgent = [Entry("a", priority=5), Entry("a", priority=5), Entry("c", priority=-1)]
    for entry in urgent:
        queue.append(entry)

    assert served(queue) == [*urgent[:2], *entries, urgent[2]]


def test_what_was_put_first_is_served_first_among_its_priority():
    queue, _ = fill("a", "b", "c")
    back = Entry("c")

    queue.put_first(back)

    assert next(iter(queue)) is back


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["append", "first", "remove", "serve", "let go"]),
        st.sampled_from([None, "a", "b", "c"]),
        st.integers(-1, 1),
    ),
    max_size=120,
)


@given(ACTIONS)
def test_nothing_is_lost_or_given_twice_and_the_order_holds(actions):
    queue: FairQueue[Entry] = FairQueue()
    waiting: list[Entry] = []
    held: list[Entry] = []
    for number, (action, session, priority) in enumerate(actions):
        entry = Entry(session, priority, number)
        if action == "append":
            queue.append(entry)
            waiting.append(entry)
        elif action == "first":
            queue.put_first(entry)
            waiting.insert(0, entry)
        elif action == "remove" and waiting:
            gone = waiting.pop(number % len(waiting))
            assert queue.remove(gone)
            assert not queue.remove(gone)
        elif action == "serve" and waiting:
            got = next(iter(queue))
            assert got.priority == max(each.priority for each in waiting)
            of_session = [
                each
                for each in waiting
                if (each.session, each.priority) == (got.session, got.priority)
            ]
            assert got is of_session[0], "first come, first served within a session"
            counts = {
                each.session: sum(holder.session == each.session for holder in held)
                for each in waiting
                if each.priority == got.priority
            }
            assert counts[got.session] == min(counts.values()), "the fewest places first"
            queue.remove(got)
            queue.record_assigned(got)
            waiting.remove(got)
            held.append(got)
        elif action == "let go" and held:
            queue.record_released(held.pop(0).session)
        assert len(queue) == len(waiting)
        assert sorted(each.number for each in queue) == sorted(each.number for each in waiting)
        assert all(each in queue for each in waiting)
    assert sorted(each.number for each in queue.clear()) == sorted(each.number for each in waiting)
    assert len(queue) == 0
