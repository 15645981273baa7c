"""The decision whether a wait for a lane would never end."""

from __future__ import annotations

import pytest

from snakepit_kernel.pool.scheduling.deadlock import LaneWait, would_deadlock


def wait(fitting: str, blocked: str) -> LaneWait[str]:
    """A wait for one of some lanes, each a letter, while others are blocked by it."""
    return LaneWait(fitting=frozenset(fitting), blocked=frozenset(blocked))


CASES = {
    # what                                        the wait        others                     never
    "its only lane waits for it": (wait("a", "a"), [], True),
    "another lane fits": (wait("ab", "a"), [], False),
    "both lanes of the chain wait for it": (wait("ab", "ab"), [], True),
    "another lane waits for it": (wait("a", "b"), [], False),
    "no lane fits": (wait("", "a"), [], False),
    "two wait for each other": (wait("a", "b"), [wait("b", "a")], True),
    "the other one can have a third lane": (wait("a", "b"), [wait("bc", "a")], False),
    "three wait in a ring": (wait("a", "b"), [wait("b", "c"), wait("c", "a")], True),
    "the ring has a way out": (wait("a", "b"), [wait("b", "c"), wait("cd", "a")], False),
    "others wait for each other, not for it": (
        wait("a", "b"),
        [wait("c", "d"), wait("d", "c")],
        False,
    ),
    "it waits for others that never end": (
        wait("c", "a"),
        [wait("d", "c"), wait("c", "d")],
        True,
    ),
    "all lanes are blocked by several": (
        wait("abc", "a"),
        [wait("abc", "b"), wait("abc", "c")],
        True,
    ),
    "one that can end frees no lane that fits": (
        wait("ab", "a"),
        [wait("ab", "b"), wait("d", "b")],
        True,
    ),
    "no lane fits another, which ends with an error": (wait("a", "b"), [wait("", "a")], False),
}


@pytest.mark.parametrize(("new", "others", "never_ends"), CASES.values(), ids=CASES)
def test_a_wait_never_ends_if_all_that_it_waits_for_wait_for_it(new, others, never_ends):
    assert would_deadlock(new, others) is never_ends
