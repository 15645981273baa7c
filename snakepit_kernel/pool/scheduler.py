"""Who gets which worker. Pure: no clock, no lock, no I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)


MAX_HOMES = 10_000
"""Sessions whose last worker is remembered; the oldest are forgotten first."""


class QueueFull(Exception):
    """The queue is at its bound."""


class Ticket(Generic[W]):
    """One request for a worker.

    Parameters
    ----------
    on_grant
        Called when a queued ticket gets its worker, with the pool's lock held: brief, never
        blocking.
    session
        The session of the work; its last worker is preferred.
    wanted
        The one worker that will do; None for any.
    """

    __slots__ = ("on_grant", "session", "wanted", "worker")

    def __init__(
        self,
        on_grant: Callable[[], None],
        session: str | None = None,
        wanted: W | None = None,
    ) -> None:
        self.on_grant = on_grant
        self.session = session
        self.wanted = wanted
        self.worker: W | None = None


class Scheduler(Generic[W]):
    """One queue in front of idle workers: first come, first served.

    A free worker goes to the head of the queue. Free workers are taken in the order in which they
    became free, least recently used first, except that a session gets its last worker again when
    that is free.

    Parameters
    ----------
    max_queue
        Tickets that may wait.

    Attributes
    ----------
    granted
        The ticket from the queue that got a worker last, until its owner knows of it and clears
        this. Ctrl-C may come between any two calls; then this says what was under way.
    """

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self._idle: OrderedDict[W, None] = OrderedDict()
        self._queue: OrderedDict[Ticket[W], None] = OrderedDict()
        self._homes: OrderedDict[str, W] = OrderedDict()
        self.granted: Ticket[W] | None = None

    @property
    def waiting(self) -> int:
        """Number of tickets that wait."""
        return len(self._queue)

    def request(self, ticket: Ticket[W], *, bounded: bool = True) -> bool:
        """Grant a worker at once, or queue the ticket.

        Returns
        -------
        bool
            Whether the ticket has its worker.

        Raises
        ------
        QueueFull
            The queue is at its bound, and ``bounded`` is true.
        """
        worker = self._choose(ticket)
        if worker is not None:
            ticket.worker = worker
            del self._idle[worker]
            self._remember(ticket, worker)
            return True
        if bounded and len(self._queue) >= self._max_queue:
            raise QueueFull
        self._queue[ticket] = None
        return False

    def withdraw(self, ticket: Ticket[W]) -> bool:
        """Take a ticket out of the queue; say whether it was still there."""
        if ticket not in self._queue:
            return False
        del self._queue[ticket]
        return True

    def add(self, worker: W) -> Ticket[W] | None:
        """Take in a worker that is free; return the ticket that gets it at once, if any waits."""
        for ticket in self._queue:
            if ticket.wanted is None or ticket.wanted == worker:
                ticket.worker = worker
                self.granted = ticket
                del self._queue[ticket]
                self._remember(ticket, worker)
                return ticket
        self._idle[worker] = None
        return None

    def remove(self, worker: W) -> list[Ticket[W]]:
        """Forget a worker that is not to be lent any more; return what waited for it alone."""
        self._idle.pop(worker, None)
        for session in [session for session, home in self._homes.items() if home == worker]:
            del self._homes[session]
        stranded = [ticket for ticket in self._queue if ticket.wanted == worker]
        for ticket in stranded:
            del self._queue[ticket]
        return stranded

    def replace(self, worker: W, successor: W) -> None:
        """Let those who wait for one worker alone wait for its successor."""
        for ticket in self._queue:
            if ticket.wanted == worker:
                ticket.wanted = successor

    def drain(self) -> list[Ticket[W]]:
        """Empty the queue; return what waited."""
        tickets = list(self._queue)
        self._queue.clear()
        return tickets

    def _choose(self, ticket: Ticket[W]) -> W | None:
        if ticket.wanted is not None:
            return ticket.wanted if ticket.wanted in self._idle else None
        home = self._homes.get(ticket.session) if ticket.session is not None else None
        if home is not None and home in self._idle:
            return home
        return next(iter(self._idle), None)

    def is_idle(self, worker: W) -> bool:
        """Whether a worker is free."""
        return worker in self._idle

    def _remember(self, ticket: Ticket[W], worker: W) -> None:
        if ticket.session is not None:
            self._homes[ticket.session] = worker
            self._homes.move_to_end(ticket.session)
            if len(self._homes) > MAX_HOMES:
                self._homes.popitem(last=False)
