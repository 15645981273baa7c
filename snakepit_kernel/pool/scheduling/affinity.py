"""Session affinity: the worker that each session prefers or is bound to. Pure: no clock, no I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

MAX_LAST = 10_000
"""Most sessions without a home whose last worker is remembered; the oldest are forgotten."""


class Neighbour(Hashable, Protocol):
    """A lane that knows the other lanes of its worker."""

    @property
    def neighbours(self) -> Iterable[Any]:
        """The lanes of the same worker, itself included."""


W = TypeVar("W", bound=Neighbour)


class Home(Generic[W]):
    """The worker that a strict session is bound to: one process, not its slot.

    All handles of an open session share one home. When its worker ends, the home is lost to them
    for good; opening the session again then creates another one.

    Attributes
    ----------
    lane
        A lane of that worker; None until the session's first work is assigned one.
    is_lost
        Whether that worker is gone.
    worker, kind
        Of a value that stays in a worker: the worker's name, and the value's type; see `pin`.
    """

    def __init__(self, lane: W | None = None, *, worker: str = "", kind: str = "") -> None:
        self.lane = lane
        self.is_lost = False
        self.worker = worker
        self.kind = kind

    def takes(self, lane: W) -> bool:
        """Whether a lane belongs to that worker, or there is no such worker yet."""
        return self.lane is None or lane in self.lane.neighbours


class Homes(Generic[W]):
    """The homes of strict sessions, and the last workers of the other sessions.

    A home is kept until its worker ends or its session is forgotten: a limit on their number would
    silently lose a session's variables. A home without work lives as long as a reference to it.
    """

    def __init__(self) -> None:
        self._last: OrderedDict[str, W] = OrderedDict()
        self._homes: WeakValueDictionary[str, Home[W]] = WeakValueDictionary()
        self._kept: dict[str, Home[W]] = {}

    def open(self, session: str) -> Home[W]:
        """Return the home of a session: the worker that served the session last, if one did."""
        home = self._homes.get(session)
        if home is None:
            home = self._homes[session] = Home(self._last.pop(session, None))
            if home.lane is not None:
                self._kept[session] = home
        return home

    def pin(self, home: Home[W]) -> None:
        """Keep the worker of a home for a value that stays there, until `unpin`."""
        key = f"reference {id(home)}"  # no session has such an id
        self._homes[key] = self._kept[key] = home

    def unpin(self, home: Home[W]) -> None:
        """Let a worker go, as far as that value is concerned."""
        self._homes.pop(f"reference {id(home)}", None)
        self._kept.pop(f"reference {id(home)}", None)

    def kinds(self, lane: W) -> list[str]:
        """Return the types of the values that stay in the worker of a lane."""
        neighbours = set(lane.neighbours)
        return [home.kind for home in self._kept.values() if home.kind and home.lane in neighbours]

    def preferred(self, session: str) -> W | None:
        """Return a lane of a session's home, or of its last worker if it has no home."""
        home = self._homes.get(session)
        return self._last.get(session) if home is None else home.lane

    def note(self, session: str, lane: W) -> None:
        """Record the lane that a session's work is assigned; an existing home does not move."""
        home = self._homes.get(session)
        if home is None:
            self._last[session] = lane
            self._last.move_to_end(session)
            if len(self._last) > MAX_LAST:
                self._last.popitem(last=False)
        elif home.lane is None:
            home.lane = lane
            self._kept[session] = home

    def has_home(self, lane: W) -> bool:
        """Whether any session is bound to the worker of a lane."""
        neighbours = set(lane.neighbours)
        return any(home.lane in neighbours for home in self._kept.values())

    def leave(self, lane: W) -> None:
        """Forget a lane whose worker is gone; homes on it are lost."""
        for session in [session for session, last in self._last.items() if last == lane]:
            del self._last[session]
        self._lose([session for session, home in self._kept.items() if home.lane == lane])

    def leave_all(self) -> None:
        """Forget all lanes: every worker is gone. A home that had none yet stays."""
        self._last.clear()
        self._lose(list(self._kept))

    def _lose(self, sessions: Iterable[str]) -> None:
        for session in sessions:
            home = self._kept.pop(session)
            home.is_lost = True
            del self._homes[session]

    def forget(self, session: str) -> None:
        """Forget a session's home and last worker."""
        self._last.pop(session, None)
        home = self._kept.pop(session, None)
        if home is not None:
            home.lane = None
