"""The slots of a pool: their numbers, and which of them are degraded."""

from __future__ import annotations

from snakepit_kernel.pool.workers.lifecycle import MAX_RESTARTS, Slots


def numbers(slots: Slots) -> list[int]:
    return [slot.number for slot in slots]


def test_slots_that_are_added_get_the_lowest_free_numbers():
    slots = Slots(3)
    for slot in slots:
        if slot.number != 3:
            slots.remove(slot)
    added = slots.add(3)

    assert [slot.number for slot in added] == [1, 2, 4]
    assert sorted(numbers(slots)) == [1, 2, 3, 4]
    assert len(slots) == 4


def test_a_slot_that_was_removed_is_not_the_one_that_has_its_number_now():
    slots = Slots(1)
    (before,) = slots
    slots.remove(before)
    assert slots.get(1) is None
    (after,) = slots.add(1)

    assert before not in slots
    assert after in slots
    assert slots.get(1) is after


def test_the_problem_of_the_first_degraded_slot_is_told_with_the_numbers_of_all():
    slots = Slots(3)
    assert slots.problem is None
    for slot in list(slots)[:0:-1]:
        for _ in range(MAX_RESTARTS + 1):
            slot.record_failure(0.0, f"slot {slot.number} has no memory")

    assert slots.problem == "slot 2, 3 is degraded: slot 2 has no memory"
