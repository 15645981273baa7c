"""How many calls of our own Python functions a piece of work takes, in the owner and in the worker.

Times differ from machine to machine and from minute to minute; these numbers do not, and each call
costs some 50 to 100 ns and a line in a traceback. Whoever makes a way shorter lowers its number
here; a higher one needs a reason.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

import snakepit_kernel
from snakepit_kernel import Pool
from snakepit_kernel.telemetry.spans import SDK

BUDGETS: dict[str, tuple[float, float]] = {
    # what is done                            owner, worker
    "call": (57, 49),
    "call of a session": (65, 49),
    "call with a timeout": (59, 49),
    "acall": (89, 49),
    "submit and result": (90, 46),
    "map, for each of 100": (84, 47.5),
    "variable read by its handle": (7, 0),
    "variable written by its handle": (25, 0),
    "call of a tool that reads a variable": (118, 98),
    "call of a tool that writes a variable": (133, 98),
}
"""Calls of our own functions, at most: some per cent more than there are.

The aim is 40 in each of both for a call, hardly more for one of a session or with a timeout, and no
more for a future that is waited for at once. An `acall` takes 71 in the owner, and some 15 more
where its answer comes when that does not look for it any more.
"""

ROUNDS = 20
"""Times that each is done: how often a thread looks whether something has come is not always the
same, so the least number counts."""

PAUSE = 0.0005
"""Seconds between works: a worker that waits does not look again and again for so long."""

ITEMS = 100

MORE = 3
"""Works that are counted in a worker."""

NOT_COUNTED = (
    *("lane/spin_wait.py:", "FrameReader.receive", "Lane._receive_now"),
    *("locks.py:", "event_loops.py:_policy"),
    *("codec.py:_", "protocol/annotations.py:", "protocol/functions.py:", "protocol/objects.py:"),
)
"""Parts of names. How often a thread looks whether something has come depends on the other side;
what is a Python function of ours since 3.14 only, and how many steps a function takes to be pickled
by value, depend on Python."""

OWN = str(Path(snakepit_kernel.__file__).parent) + "/"


class Profile:
    """Counts calls of our own functions in all threads that were started under it, and this one."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.is_on = False

    def note(self, frame: FrameType, event: str, _: object) -> None:
        if self.is_on and event == "call" and frame.f_code.co_filename.startswith(OWN):
            where = frame.f_code.co_filename.removeprefix(OWN)
            self.counts[f"{where}:{frame.f_code.co_qualname}"] += 1

    def count(self, work: Callable[[], object]) -> Counter[str]:
        """Do some work, and count until all threads rest."""
        self.settle()
        self.counts.clear()
        sys.setprofile(self.note)
        try:
            work()
        finally:
            sys.setprofile(None)
        self.settle()
        return Counter(self.counts)

    def settle(self) -> None:
        """Wait until no thread calls anything any more: what follows a result is a part of it."""
        before = -1
        while before != self.counts.total():
            before = self.counts.total()
            time.sleep(0.01)  # nobody tells


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Profile]:
    profile = Profile()
    gc.collect()
    gc.disable()  # finalizers are no part of the work in which they happen to run
    monkeypatch.delitem(sys.modules, SDK, raising=False)  # other tests have imported it
    profile.is_on = True
    yield profile
    gc.enable()


@pytest.fixture
def pool(profile: Profile) -> Iterator[Pool]:
    threading.setprofile(profile.note)  # for the pool's own threads, which start now
    try:
        pool = Pool(1)
    finally:
        threading.setprofile(None)
    try:
        for function in (nothing, read, write, begin_counting, end_counting):
            pool.tool(function)
        pool.session("s").variables.register("x", "integer", 1)
        yield pool
    finally:
        pool.terminate()


def nothing(value: object = None) -> None:
    return None


def read() -> None:
    snakepit_kernel.context().variables["x"]


def write() -> None:
    snakepit_kernel.context().variables["x"] = 2


def begin_counting() -> None:
    """Count, in the thread that serves calls, what it calls from now on."""
    import snakepit_kernel

    own = snakepit_kernel.__file__.removesuffix("__init__.py")
    counts = sys.counts_of_a_test = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(own):
            where = f"{code.co_filename.removeprefix(own)}:{code.co_qualname}"
            counts[where] = counts.get(where, 0) + 1

    sys.setprofile(note)


def end_counting() -> dict[str, int]:
    sys.setprofile(None)
    return sys.__dict__.pop("counts_of_a_test")


for _function in (nothing, read, write, begin_counting, end_counting):
    _function.__module__ = "__main__"  # by value: this module is no module of the workers


def ways(pool: Pool, runner: asyncio.Runner) -> dict[str, Callable[[], object]]:
    """What is counted."""
    session = pool.session("s")
    variables = session.variables

    return {
        "call": lambda: pool.call("nothing"),
        "call of a session": lambda: session.call("nothing"),
        "call with a timeout": lambda: pool.call("nothing", timeout=30),
        "acall": lambda: runner.run(pool.acall("nothing")),
        "submit and result": lambda: pool.submit(nothing).result(),
        "map, for each of 100": lambda: list(pool.map(nothing, range(ITEMS))),
        "variable read by its handle": lambda: variables["x"],
        "variable written by its handle": lambda: variables.set("x", 3),
        "call of a tool that reads a variable": lambda: session.call("read"),
        "call of a tool that writes a variable": lambda: session.call("write"),
    }


def least(count: Callable[[], Counter[str]]) -> Counter[str]:
    count()  # what comes once
    return min((count() for _ in range(ROUNDS)), key=Counter.total)


def in_the_owner(
    work: Callable[[], object], pool: Pool, profile: Profile, is_of_session: bool
) -> Counter[str]:
    return least(lambda: profile.count(work))


def in_the_worker(
    work: Callable[[], object], pool: Pool, profile: Profile, is_of_session: bool
) -> Counter[str]:
    """Count what a worker calls between two calls of its own, for some works and for more of them.

    What the two calls take is in both numbers. They are of the same session as the work, so that
    the worker need not change to another one.
    """
    caller = pool.session("s") if is_of_session else pool

    def count(works: int) -> Counter[str]:
        caller.call("begin_counting")
        for _ in range(works):
            time.sleep(PAUSE)
            work()
        time.sleep(PAUSE)
        return Counter(caller.call("end_counting"))

    found = least(lambda: count(2 + MORE))
    found.subtract(least(lambda: count(2)))
    return Counter({where: number / MORE for where, number in found.items()})


@pytest.mark.parametrize("side", [in_the_owner, in_the_worker])
def test_work_takes_no_more_calls_of_our_own_functions_than_it_did(pool, profile, side):
    place = [in_the_owner, in_the_worker].index(side)
    problems = []
    with asyncio.Runner() as runner:
        for name, work in ways(pool, runner).items():
            counts = side(work, pool, profile, "session" in name or "variable" in name)
            for where in [each for each in counts if any(part in each for part in NOT_COUNTED)]:
                del counts[where]
            found, budget = counts.total(), BUDGETS[name][place]
            if "each of" in name:
                found /= ITEMS
            assert found > 0 or budget == 0, f"nothing of {name} was counted"
            if found > budget:
                listed = "\n".join(f"    {n:5} {where}" for where, n in counts.most_common() if n)
                problems.append(f"{name}: {found:g} calls, not {budget:g}\n{listed}")
    assert not problems, "\n".join(problems)
