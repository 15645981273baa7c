"""Assignment of idle lanes to queued items. Pure: no clock, no lock, no I/O."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, Literal, Protocol, TypeVar

from .affinity import Home, Homes
from .fair_queue import Bound, FairQueue

Purpose = Literal["call", "cell"]


class AssignableLane(Hashable, Protocol):
    """A lane of a worker, assigned to one item at a time."""

    @property
    def purposes(self) -> frozenset[Purpose]:
        """The kinds of work that the lane can carry."""

    @property
    def load(self) -> int:
        """Number of other lanes of the same worker that are assigned."""

    @property
    def neighbours(self) -> Iterable[Any]:
        """The lanes of the same worker, itself included."""


W = TypeVar("W", bound=AssignableLane)


def nothing() -> None:
    """Do nothing: the callback where none is set, or none is needed any more."""


class QueueFull(Exception):
    """The queue is at a limit, which is the argument."""


class QueueItem(Generic[W]):
    """A request for a lane.

    Parameters
    ----------
    on_assigned
        Called when a queued item is assigned its lane, with the pool's lock held: it must be brief
        and never block.
    session
        The session of the work; its last worker is preferred.
    wanted
        The only acceptable lane; None for any.
    purpose
        The kind of work.
    home
        The only acceptable worker; None where the session's last worker is merely preferred.
    priority
        Higher is served first.
    bound
        The queue limit that the item counts against.

    Attributes
    ----------
    moves_session
        Whether later work of the session prefers the worker that this item gets.
    """

    moves_session = True
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
        """Whether a lane is acceptable."""
        if self.wanted is not None:
            return self.wanted == lane
        return self.purpose in lane.purposes and (self.home is None or self.home.takes(lane))

    @property
    def has_lost_home(self) -> bool:
        """Whether the only acceptable worker is gone."""
        return self.home is not None and self.home.is_lost


class Scheduler(Generic[W]):
    """The queue of a pool and its idle lanes.

    A released lane is assigned to the first queued item that it fits, in the order of `FairQueue`.
    A new item gets an idle lane of the least loaded worker, the least recently used first, except
    that a session gets its last worker again when that has an idle lane, and a strict session waits
    for its home.

    Parameters
    ----------
    max_queue, max_futures
        Most items that may wait, of those that count against each limit; None for any number.

    Attributes
    ----------
    idle
        The idle lanes, the least recently used first.
    homes
        The worker that each session had last, or is bound to.
    assigned
        The queued item that was last assigned a lane, until its owner has been notified and clears
        this. A KeyboardInterrupt may come between any two calls; this then says which item was
        affected.
    """

    def __init__(self, max_queue: int, max_futures: int | None = None) -> None:
        self._bounds: dict[Bound | None, int | None] = {
            "max_queue": max_queue,
            "max_futures": max_futures,
        }
        self.idle: OrderedDict[W, None] = OrderedDict()
        self._queue: FairQueue[QueueItem[W]] = FairQueue()
        self._sessions: dict[W, str | None] = {}  # of the work that each assigned lane has
        self.homes: Homes[W] = Homes()
        self.assigned: QueueItem[W] | None = None

    @property
    def waiting(self) -> int:
        """Number of queued items."""
        return len(self._queue)

    def enqueue(self, item: QueueItem[W]) -> None:
        """Queue an item that no idle lane fits.

        Raises
        ------
        QueueFull
            The queue is at the limit that the item counts against.
        """
        limit = self._bounds.get(item.bound)
        if limit is not None and self._queue.waiting[item.bound] >= limit:
            raise QueueFull(limit)
        self._queue.append(item)

    def assign(self, item: QueueItem[W]) -> bool:
        """Assign an idle lane that fits, if there is one; return whether there was."""
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
        self._queue.record_assigned(item)
        if session is not None and item.moves_session:
            self.homes.note(session, lane)
        return True

    def withdraw(self, item: QueueItem[W]) -> bool:
        """Remove an item from the queue; return whether it was still queued."""
        return self._queue.remove(item)

    def add(self, lane: W) -> QueueItem[W] | None:
        """Add an idle lane; return the queued item that is assigned it at once, if one is."""
        if lane in self._sessions:
            self._queue.record_released(self._sessions.pop(lane))
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

    def complete_assignment(self, item: QueueItem[W], lane: W) -> None:
        """Complete an assignment that a KeyboardInterrupt may have ended in `add`."""
        self._queue.remove(item)
        if lane not in self._sessions:
            self._assign(lane, item)

    def quarantine(self, lane: W) -> None:
        """Assign a lane to nothing until it is added again; homes on its worker stay."""
        self.idle.pop(lane, None)

    def remove(self, lane: W) -> list[QueueItem[W]]:
        """Remove a lane for good; return the items that only it could have served."""
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
        """Redirect the items that wait for one particular lane to its successor."""
        for item in self._queue:
            if item.wanted == lane:
                item.wanted = successor

    def first(self, count: int) -> list[QueueItem[W]]:
        """Return the first queued items, in the order of service."""
        return list(itertools.islice(self._queue, count))

    def first_after(self, lane: W, count: int) -> list[QueueItem[W]]:
        """Return the first queued items as they would be if an assigned lane were released."""
        session = self._sessions[lane]
        self._queue.record_released(session)
        items = self.first(count)
        self._queue.record_held(session)
        return items

    def pass_on(self, lane: W, item: QueueItem[W]) -> None:
        """Reassign an assigned lane to another item, which has left the queue."""
        self._unassign(lane)
        self._assign(lane, item)

    def put_first(self, item: QueueItem[W]) -> None:
        """Put an item back at the head of the queue."""
        self._queue.put_first(item)

    def drain(self) -> list[QueueItem[W]]:
        """Empty the queue; return its items."""
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
        """Return the idle lane that fits on the least loaded worker."""
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
            self._queue.record_released(self._sessions.pop(lane))

    def _assign(self, lane: W, item: QueueItem[W]) -> None:
        self._sessions[lane] = item.session
        self._queue.record_assigned(item)
        if item.session is not None and item.moves_session:
            self.homes.note(item.session, lane)
