"""Who gets which worker. Pure: no clock, no lock, no I/O."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, Literal, Protocol, TypeVar

from .affinity import Home, Homes
from .fair_queue import Bound, FairQueue

Purpose = Literal["call", "cell"]


class AssignableLane(Hashable, Protocol):
    """What is lent: a place at a worker, for one piece of work at a time."""

    @property
    def purposes(self) -> frozenset[Purpose]:
        """What it is good for."""

    @property
    def load(self) -> int:
        """How many other places at the same worker are lent."""

    @property
    def neighbours(self) -> Iterable[Any]:
        """The places at the same worker, itself included."""


W = TypeVar("W", bound=AssignableLane)


def nothing() -> None:
    """Stand in for a callback that nobody has set, or needs any more."""


class QueueFull(Exception):
    """The queue is at a bound, which is its argument."""


class QueueItem(Generic[W]):
    """One request for a place.

    Parameters
    ----------
    on_grant
        Called when a queued item gets its place, with the pool's lock held: brief, never
        blocking.
    session
        The session of the work; its last worker is preferred.
    wanted
        The one place that will do; None for any.
    purpose
        What it is wanted for.
    home
        The worker that alone will do; None where the session's last one is only preferred.
    priority
        Higher goes first.
    bound
        The bound of the queue that it counts against.
    """

    bound: Bound | None = "max_queue"
    home: Home[W] | None = None
    on_assigned: Callable[[], None] = staticmethod(nothing)
    priority = 0
    purpose: Purpose = "call"
    lane: W | None = None
    session: str | None = None
    wanted: W | None = None

    def __init__(
        self,
        on_assigned: Callable[[], None],
        session: str | None = None,
        wanted: W | None = None,
        purpose: Purpose = "call",
        *,
        home: Home[W] | None = None,
        priority: int = 0,
        bound: Bound | None = "max_queue",
    ) -> None:
        self.bound = bound
        self.home = home
        self.priority = priority
        self.on_assigned = on_assigned
        self.session = session
        self.wanted = wanted
        self.purpose = purpose

    def fits(self, lane: W) -> bool:
        """Whether a place will do."""
        if self.wanted is not None:
            return self.wanted == lane
        return self.purpose in lane.purposes and (self.home is None or self.home.takes(lane))

    @property
    def has_lost_home(self) -> bool:
        """Whether the worker that alone would do is gone."""
        return self.home is not None and self.home.is_lost


class Scheduler(Generic[W]):
    """One queue in front of idle places.

    A free place goes to the first in the queue whom it fits, as `FairQueue` puts them. Free places
    are taken from the worker that has least to do, and least recently used first, except that a
    session gets its last worker again when that has a free place, and a strict one waits for its
    home.

    Parameters
    ----------
    max_queue, max_futures
        Items that may wait, of those that count against each of these; None for any number.

    Attributes
    ----------
    idle
        The places that are free, the least recently used first.
    homes
        Which worker each session had last, or is bound to.
    granted
        The item from the queue that got a place last, until its owner knows of it and clears
        this. Ctrl-C may come between any two calls; then this says what was under way.
    """

    def __init__(self, max_queue: int, max_futures: int | None = None) -> None:
        self._bounds: dict[Bound | None, int | None] = {
            "max_queue": max_queue,
            "max_futures": max_futures,
        }
        self.idle: OrderedDict[W, None] = OrderedDict()
        self._queue: FairQueue[QueueItem[W]] = FairQueue()
        self._sessions: dict[W, str | None] = {}  # to whose work
        self.homes: Homes[W] = Homes()
        self.assigned: QueueItem[W] | None = None

    @property
    def waiting(self) -> int:
        """Number of items that wait."""
        return len(self._queue)

    def request(self, item: QueueItem[W]) -> bool:
        """Grant a place at once, or queue the item.

        Returns
        -------
        bool
            Whether the item has its place.

        Raises
        ------
        QueueFull
            The queue is at its bound, which counts for this item.
        """
        if self.assign(item):
            return True
        most = self._bounds.get(item.bound)
        if most is not None and self._queue.waiting[item.bound] >= most:
            raise QueueFull(most)
        self._queue.append(item)
        return False

    def assign(self, item: QueueItem[W]) -> bool:
        """Grant a place at once if one is free that fits; say whether it was."""
        session = item.session
        lane: W | None = None
        if session is None and item.wanted is None and item.home is None:
            for free in self.idle:
                if item.purpose in free.purposes and free.load == 0:
                    lane = free
                    break
            else:
                lane = self._least_loaded(item)
        else:
            lane = self._choose(item)
        if lane is None:
            return False
        item.lane = lane
        del self.idle[lane]
        self._sessions[lane] = session
        self._queue.hold(item)
        if session is not None:
            self.homes.note(session, lane)
        return True

    def withdraw(self, item: QueueItem[W]) -> bool:
        """Take a item out of the queue; say whether it was still there."""
        return self._queue.remove(item)

    def add(self, lane: W) -> QueueItem[W] | None:
        """Take in a place that is free; return the item that gets it at once, if any waits."""
        if lane in self._sessions:
            self._queue.let_go(self._sessions.pop(lane))
        if self._queue.size:
            for item in self._queue:
                if item.fits(lane):
                    item.lane = lane
                    self.assigned = item
                    self._queue.remove(item)
                    self._assign(lane, item)
                    return item
        self.idle[lane] = None
        return None

    def quarantine(self, lane: W) -> None:
        """Lend a place no more until it is added again; who is bound to its worker stays so."""
        self.idle.pop(lane, None)

    def remove(self, lane: W) -> list[QueueItem[W]]:
        """Forget a place that is not to be lent any more; return what waited for it alone."""
        self.idle.pop(lane, None)
        self._unassign(lane)
        self.homes.leave(lane)
        stranded = [
            item
            for item in self._queue
            if item.wanted == lane or (item.wanted is None and item.has_lost_home)
        ]
        for item in stranded:
            self._queue.remove(item)
        return stranded

    def replace(self, lane: W, successor: W) -> None:
        """Let those who wait for one place alone wait for its successor."""
        for item in self._queue:
            if item.wanted == lane:
                item.wanted = successor

    def first(self, count: int) -> list[QueueItem[W]]:
        """Return those whose turn comes first."""
        return list(itertools.islice(self._queue, count))

    def first_after(self, lane: W, count: int) -> list[QueueItem[W]]:
        """Return those whose turn comes first if a place that is lent were given back."""
        session = self._sessions[lane]
        self._queue.let_go(session)
        items = self.first(count)
        self._queue.count(session)
        return items

    def pass_on(self, lane: W, item: QueueItem[W]) -> None:
        """Count a place that is lent as that of another item, which has left the queue."""
        self._unassign(lane)
        self._assign(lane, item)

    def put_first(self, item: QueueItem[W]) -> None:
        """Put a item back to the head of the queue."""
        self._queue.put_first(item)

    def drain(self) -> list[QueueItem[W]]:
        """Empty the queue; return what waited."""
        return self._queue.clear()

    def _choose(self, item: QueueItem[W]) -> W | None:
        if item.home is not None and item.has_lost_home:
            return None
        if item.wanted is not None:
            return item.wanted if item.wanted in self.idle else None
        home = self.homes.preferred(item.session) if item.session is not None else None
        if home is not None:
            for lane in home.neighbours:
                if lane in self.idle and item.fits(lane):
                    found: W = lane
                    return found
        return self._least_loaded(item)

    def _least_loaded(self, item: QueueItem[W]) -> W | None:
        """Return the idle place that fits whose worker has least to do."""
        best = None
        for lane in self.idle:
            if item.fits(lane):
                if lane.load == 0:
                    return lane
                if best is None or lane.load < best.load:
                    best = lane
        return best

    def _unassign(self, lane: W) -> None:
        if lane in self._sessions:
            self._queue.let_go(self._sessions.pop(lane))

    def _assign(self, lane: W, item: QueueItem[W]) -> None:
        self._sessions[lane] = item.session
        self._queue.hold(item)
        if item.session is not None:
            self.homes.note(item.session, lane)
