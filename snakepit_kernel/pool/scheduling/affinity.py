"""Which worker each session belongs to. Pure, like the scheduler that asks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

MAX_LAST = 10_000
"""Sessions without a strict home whose last worker is remembered; the oldest are forgotten."""


class Neighbour(Hashable, Protocol):
    """A place at a worker."""

    @property
    def neighbours(self) -> Iterable[Any]:
        """The places at the same worker, itself included."""


W = TypeVar("W", bound=Neighbour)


class Home(Generic[W]):
    """The worker that a session's strict work is bound to: one incarnation of it.

    All who have the session open hold the same one. When that worker goes, it is lost for them for
    good; who opens the session then gets another one.

    Attributes
    ----------
    place
        A place at that worker; None until the session's first work has one.
    is_lost
        Whether that worker is gone.
    """

    def __init__(self, place: W | None = None) -> None:
        self.place = place
        self.is_lost = False

    def takes(self, place: W) -> bool:
        """Whether a place is at that worker, or could become it."""
        return self.place is None or place in self.place.neighbours


class Homes(Generic[W]):
    """The homes of sessions, and the last workers of those that are bound to none.

    A home stays until its worker goes or its session is forgotten: a bound would lose names without
    a word. One that no work was done in stays as long as somebody holds it.
    """

    def __init__(self) -> None:
        self._last: OrderedDict[str, W] = OrderedDict()
        self._homes: WeakValueDictionary[str, Home[W]] = WeakValueDictionary()
        self._kept: dict[str, Home[W]] = {}

    def open(self, session: str) -> Home[W]:
        """Return the home of a session; it is the worker that served it last, if one did."""
        home = self._homes.get(session)
        if home is None:
            home = self._homes[session] = Home(self._last.pop(session, None))
            if home.place is not None:
                self._kept[session] = home
        return home

    def preferred(self, session: str) -> W | None:
        """Return a place at the worker that a session had last, or has as its home."""
        home = self._homes.get(session)
        return self._last.get(session) if home is None else home.place

    def note(self, session: str, place: W) -> None:
        """Take in that a session's work is done at a place; a home stays where it is."""
        home = self._homes.get(session)
        if home is None:
            self._last[session] = place
            self._last.move_to_end(session)
            if len(self._last) > MAX_LAST:
                self._last.popitem(last=False)
        elif home.place is None:
            home.place = place
            self._kept[session] = home

    def has_home(self, place: W) -> bool:
        """Whether a session is bound to the worker of a place."""
        neighbours = set(place.neighbours)
        return any(home.place in neighbours for home in self._kept.values())

    def leave(self, place: W) -> None:
        """Take in that a worker is gone."""
        for session in [session for session, last in self._last.items() if last == place]:
            del self._last[session]
        for session, home in list(self._kept.items()):
            if home.place == place:
                home.is_lost = True
                del self._kept[session], self._homes[session]

    def forget(self, session: str) -> None:
        """Let a session begin again, as if it had never had a worker."""
        self._last.pop(session, None)
        home = self._kept.pop(session, None)
        if home is not None:
            home.place = None
