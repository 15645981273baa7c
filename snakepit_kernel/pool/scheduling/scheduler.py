"""Who gets which worker. Pure: no clock, no lock, no I/O."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, Literal, Protocol, TypeVar

from .affinity import Home, Homes
from .fair_queue import Bound, FairQueue

Purpose = Literal["call", "cell"]


class Place(Hashable, Protocol):
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


W = TypeVar("W", bound=Place)


def nothing() -> None:
    """Stand in for a callback that nobody has set, or needs any more."""


class QueueFull(Exception):
    """The queue is at a bound, which is its argument."""


class Ticket(Generic[W]):
    """One request for a place.

    Parameters
    ----------
    on_grant
        Called when a queued ticket gets its place, with the pool's lock held: brief, never
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
    seat: W | None = None
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

    def fits(self, seat: W) -> bool:
        """Whether a place will do."""
        if self.wanted is not None:
            return self.wanted == seat
        return self.purpose in seat.purposes and (self.home is None or self.home.takes(seat))

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
        Tickets that may wait, of those that count against each of these; None for any number.

    Attributes
    ----------
    idle
        The places that are free, the least recently used first.
    homes
        Which worker each session had last, or is bound to.
    granted
        The ticket from the queue that got a place last, until its owner knows of it and clears
        this. Ctrl-C may come between any two calls; then this says what was under way.
    """

    def __init__(self, max_queue: int, max_futures: int | None = None) -> None:
        self._bounds: dict[Bound | None, int | None] = {
            "max_queue": max_queue,
            "max_futures": max_futures,
        }
        self.idle: OrderedDict[W, None] = OrderedDict()
        self._queue: FairQueue[Ticket[W]] = FairQueue()
        self._lent: dict[W, str | None] = {}  # to whose work
        self.homes: Homes[W] = Homes()
        self.assigned: Ticket[W] | None = None

    @property
    def waiting(self) -> int:
        """Number of tickets that wait."""
        return len(self._queue)

    def request(self, ticket: Ticket[W]) -> bool:
        """Grant a place at once, or queue the ticket.

        Returns
        -------
        bool
            Whether the ticket has its place.

        Raises
        ------
        QueueFull
            The queue is at its bound, which counts for this ticket.
        """
        if self.assign(ticket):
            return True
        most = self._bounds.get(ticket.bound)
        if most is not None and self._queue.waiting[ticket.bound] >= most:
            raise QueueFull(most)
        self._queue.append(ticket)
        return False

    def assign(self, ticket: Ticket[W]) -> bool:
        """Grant a place at once if one is free that fits; say whether it was."""
        session = ticket.session
        seat: W | None = None
        if session is None and ticket.wanted is None and ticket.home is None:
            for free in self.idle:
                if ticket.purpose in free.purposes and free.load == 0:
                    seat = free
                    break
            else:
                seat = self._least_loaded(ticket)
        else:
            seat = self._choose(ticket)
        if seat is None:
            return False
        ticket.seat = seat
        del self.idle[seat]
        self._lent[seat] = session
        self._queue.hold(ticket)
        if session is not None:
            self.homes.note(session, seat)
        return True

    def withdraw(self, ticket: Ticket[W]) -> bool:
        """Take a ticket out of the queue; say whether it was still there."""
        return self._queue.remove(ticket)

    def add(self, seat: W) -> Ticket[W] | None:
        """Take in a place that is free; return the ticket that gets it at once, if any waits."""
        if seat in self._lent:
            self._queue.let_go(self._lent.pop(seat))
        if self._queue.size:
            for ticket in self._queue:
                if ticket.fits(seat):
                    ticket.seat = seat
                    self.assigned = ticket
                    self._queue.remove(ticket)
                    self._assign(seat, ticket)
                    return ticket
        self.idle[seat] = None
        return None

    def quarantine(self, seat: W) -> None:
        """Lend a place no more until it is added again; who is bound to its worker stays so."""
        self.idle.pop(seat, None)

    def remove(self, seat: W) -> list[Ticket[W]]:
        """Forget a place that is not to be lent any more; return what waited for it alone."""
        self.idle.pop(seat, None)
        self._unassign(seat)
        self.homes.leave(seat)
        stranded = [
            ticket
            for ticket in self._queue
            if ticket.wanted == seat or (ticket.wanted is None and ticket.has_lost_home)
        ]
        for ticket in stranded:
            self._queue.remove(ticket)
        return stranded

    def replace(self, seat: W, successor: W) -> None:
        """Let those who wait for one place alone wait for its successor."""
        for ticket in self._queue:
            if ticket.wanted == seat:
                ticket.wanted = successor

    def first(self, count: int) -> list[Ticket[W]]:
        """Return those whose turn comes first."""
        return list(itertools.islice(self._queue, count))

    def first_after(self, seat: W, count: int) -> list[Ticket[W]]:
        """Return those whose turn comes first if a place that is lent were given back."""
        session = self._lent[seat]
        self._queue.let_go(session)
        tickets = self.first(count)
        self._queue.count(session)
        return tickets

    def pass_on(self, seat: W, ticket: Ticket[W]) -> None:
        """Count a place that is lent as that of another ticket, which has left the queue."""
        self._unassign(seat)
        self._assign(seat, ticket)

    def put_first(self, ticket: Ticket[W]) -> None:
        """Put a ticket back to the head of the queue."""
        self._queue.put_first(ticket)

    def drain(self) -> list[Ticket[W]]:
        """Empty the queue; return what waited."""
        return self._queue.clear()

    def _choose(self, ticket: Ticket[W]) -> W | None:
        if ticket.home is not None and ticket.has_lost_home:
            return None
        if ticket.wanted is not None:
            return ticket.wanted if ticket.wanted in self.idle else None
        home = self.homes.preferred(ticket.session) if ticket.session is not None else None
        if home is not None:
            for seat in home.neighbours:
                if seat in self.idle and ticket.fits(seat):
                    found: W = seat
                    return found
        return self._least_loaded(ticket)

    def _least_loaded(self, ticket: Ticket[W]) -> W | None:
        """Return the idle place that fits whose worker has least to do."""
        best = None
        for seat in self.idle:
            if ticket.fits(seat):
                if seat.load == 0:
                    return seat
                if best is None or seat.load < best.load:
                    best = seat
        return best

    def _unassign(self, seat: W) -> None:
        if seat in self._lent:
            self._queue.let_go(self._lent.pop(seat))

    def _assign(self, seat: W, ticket: Ticket[W]) -> None:
        self._lent[seat] = ticket.session
        self._queue.hold(ticket)
        if ticket.session is not None:
            self.homes.note(ticket.session, seat)
